"""summary.json, and the table at the end of a run."""

from typing import Any

from selfreward_jax import storage
from selfreward_jax.evaluate import models as measure
from selfreward_jax.method import judge as judging
from selfreward_jax.run import Run


def write(r: Run) -> dict[str, Any]:
    """Gathers the figures of all models and stages into summary.json and prints the table.

    `seconds` and `peak_memory_bytes` are of all runs in the directory together; a stage's seconds are of the run
    that finished it.
    """
    settings = storage.read_json(r.dir / "config.json")
    names = [f"m{t}" for t in range(1, settings["iterations"] + 1)]
    names = [name for name in names if (r.dir / name / "eval.json").exists()]
    models = {name: storage.read_json(r.dir / name / "eval.json") for name in names}
    if not r.cfg.data.ift:
        for name, others in measure.versus(r.dir, names).items():
            models[name]["versus"] = others
    summary = {
        "models": models,
        "rounds": {name: _round(r, name) for name in names[1:]},
        "stages": _stages(r, ["m0", *names]),
        "seeds": storage.read_json(r.dir / "seed" / "report.json"),
        **r.spent(),
        "config": settings,
    }
    storage.write_json(r.dir / "summary.json", summary)
    print(table(models), flush=True)
    return summary


def _round(r: Run, name: str) -> dict[str, Any]:
    prompts = r.rows(name, "prompts").manifest
    return {
        "prompts": {k: prompts[k] for k in ("rows", "attempts", "faults")},
        "left_out": {n: (r.rows(name, n).manifest or {}).get("left_out", 0) for n in ("candidates", "judgements")},
        "judge": judging.health(r.rows(name, "judgements").rows()),
        "pairs": r.rows(name, "pairs").manifest["counts"],
    }


def _stages(r: Run, names: list[str]) -> list[dict[str, Any]]:
    files = ("prompts", "candidates", "judgements", "pairs")
    found = []
    for name in names:
        for stage in files:
            if (manifest := r.rows(name, stage).manifest) is not None:
                found.append({"model": name, "name": stage, **_figures(manifest)})
        if (manifest := storage.read_json(r.dir / name / "manifest.json")) is not None:
            found.append({"model": name, "name": manifest["stage"], **_figures(manifest)})
        for stage in ("eval_answers", "eval_judgements"):
            if (manifest := r.rows(name, stage).manifest) is not None:
                found.append({"model": name, "name": stage, **_figures(manifest)})
    return found


def _figures(manifest: dict[str, Any]) -> dict[str, Any]:
    return {k: manifest.get(k, 0) for k in ("rows", "seconds", "tokens")}


def table(models: dict[str, Any]) -> str:
    """The paper's tables (head-to-head, then judge agreement) as text."""
    lines = []
    names = list(models)
    if "oracle" in models[names[0]]:
        lines += [
            "",
            "answers      mean  perfect  length   " + "  ".join([*models[names[0]]["oracle"]["criteria"], "repeats"]),
        ]
        for name in names:
            m, o = models[name], models[name]["oracle"]
            shares = o["criteria"] | {"repeats": o["repeats"]}
            each = "  ".join(f"{v:{len(c)}.2f}" for c, v in shares.items())
            lines.append(
                f"  {name.upper():8s}  {o['mean']:5.2f}  {o['perfect']:7.3f}  {m['mean_length']:6.1f}   {each}"
            )
        lines += ["", "head to head  win %  tie %  lose %   win - lose"]
        for a in reversed(names):
            for b in names[: names.index(a)]:
                v = models[a]["versus"][b]
                margin = 100 * (v["win"] - v["lose"])
                lines.append(
                    f"  {a.upper()} : {b.upper()}    {100 * v['win']:6.1f} {100 * v['tie']:6.1f} {100 * v['lose']:7.1f}"
                    f"   {margin:+6.1f} +- {100 * v['error']:.1f}"
                )
    else:
        lines += ["", "answers      length  finished   (no oracle: these are a user's own seeds)"]
        lines += [f"  {n.upper():8s}  {models[n]['mean_length']:7.1f}  {models[n]['finished']:8.2f}" for n in names]
    columns = {
        "pairwise": "pairwise_accuracy",
        "(length)": "length_accuracy",
        "5-best": "five_best",
        "exact": "exact_match",
        "spearman": "spearman",
        "kendall": "kendall",
        "parsed": "parse_rate",
        "ties": "tie_rate",
    }
    lines += ["", "judge        " + "  ".join(f"{c:>8s}" for c in columns)]
    for name in names:
        cells = [models[name]["judge"][field] for field in columns.values()]
        lines.append(f"  {name.upper():8s}   " + "  ".join(_cell(v) for v in cells))
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{value:8.3f}" if value is not None else f"{'-':>8s}"
