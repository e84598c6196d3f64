"""summary.json, and what is printed at the end of a run."""

from functools import partial
from itertools import count, takewhile
from typing import Any

from selfreward_jax import storage
from selfreward_jax.evaluate import model_metrics as measure
from selfreward_jax.method import judge as judging
from selfreward_jax.parallel import processes
from selfreward_jax.report import tables, time_report
from selfreward_jax.runs.run import Run
from selfreward_jax.telemetry import timing


def write(r: Run) -> dict[str, Any]:
    """Gathers the figures of all models and stages into summary.json and prints the table.

    `seconds`, `peak_memory_bytes` and `time` are of all runs in the directory together, and so are a stage's seconds.
    """
    timing.commit()  # all is on disk
    r.flush_usage()
    found = {**gather(r), **_time(r), "config": storage.read_json(r.workdir / "config.json")}
    storage.write_json(r.workdir / "summary.json", found)
    if processes.is_primary():
        print("\n".join([*tables.short(found["models"]), "", time_report.line(found["time"])]), flush=True)
    return found


def gather(r: Run) -> dict[str, Any]:
    """The figures of what is made so far: models, rounds, stages, seeds."""
    names = [name for name in r.models() if storage.exists(r.workdir / name / "eval.json")]
    models = {name: storage.read_checksummed(r.workdir / name / "eval.json") for name in names}
    if not r.cfg.data.ift:
        for name, others in measure.versus(r.workdir, names).items():
            models[name]["versus"] = others
    rounds = takewhile(partial(_is_judged, r), (f"m{t}" for t in count(2)))
    return {
        "models": models,
        "rounds": {name: _round(r, name) for name in rounds},
        "stages": _stages(r, r.models()),
        "seeds": storage.read_json(r.workdir / "seed" / "report.json"),
        "eft": (r.jsonl("seed", "eft").manifest or {}).get("counts"),
    }


def _is_judged(r: Run, name: str) -> bool:
    return all(r.jsonl(name, stage).manifest for stage in ("prompts", "responses", "judgments"))


def _time(r: Run) -> dict[str, Any]:
    found = time_report.read(r.workdir)
    kinds, lost = (time_report.totals(found[name]) for name in ("stages", "lost"))
    return {
        "seconds": sum(kinds.values()) + sum(lost.values()),
        "peak_memory_bytes": found["peak_memory_bytes"],
        "time": found | {"kinds": kinds},
    }


def _round(r: Run, name: str) -> dict[str, Any]:
    prompts = r.jsonl(name, "prompts").manifest
    return {
        "prompts": {k: prompts[k] for k in ("rows", "attempts", "faults")},
        "left_out": {n: (r.jsonl(name, n).manifest or {}).get("left_out", 0) for n in ("responses", "judgments")},
        "judge": judging.judge_stats(r.jsonl(name, "judgments").rows()),
        "pairs": (r.jsonl(name, "pairs").manifest or {}).get("counts"),
        "checks": storage.read_checksummed(r.workdir / name / "checks.json"),
    }


def _stages(r: Run, names: list[str]) -> list[dict[str, Any]]:
    files = ("prompts", "responses", "judgments", "pairs")
    took = {name: sum(kinds.values()) for name, kinds in time_report.read(r.workdir)["stages"].items()}
    found = []
    for name in names:
        for stage in files:
            if (manifest := r.jsonl(name, stage).manifest) is not None:
                found.append(_figures(name, stage, manifest, took))
        if (manifest := storage.read_checksummed(r.workdir / name / "manifest.json")) is not None:
            found.append(_figures(name, manifest["stage"], manifest, took))
        for stage in ("eval_answers", "eval_judgments"):
            if (manifest := r.jsonl(name, stage).manifest) is not None:
                found.append(_figures(name, stage, manifest, took))
    return found


def _figures(model: str, stage: str, manifest: dict[str, Any], took: dict[str, float]) -> dict[str, Any]:
    counts = {k: manifest.get(k, 0) for k in ("rows", "tokens")}
    return {"model": model, "name": stage, **counts, "seconds": round(took.get(f"{model} {stage}", 0.0), 3)}
