"""summary.json, and the tables at the end of a run."""

from itertools import count, takewhile
from typing import Any

from etils import epath

from selfreward_jax import storage
from selfreward_jax.evaluate import model_metrics
from selfreward_jax.method.judge import judge_stats
from selfreward_jax.report import tables, time_report
from selfreward_jax.runs.run import Run
from selfreward_jax.runs.stage import StageTable
from selfreward_jax.telemetry import timing
from selfreward_jax.telemetry.terminal import show
from selfreward_jax.worlds import world_of


def write(run: Run, table: StageTable) -> dict[str, Any]:
    """Gathers the figures of all models and stages into summary.json, and prints the tables.

    `seconds`, `peak_memory_bytes` and `time` are of all runs in the directory together, and so are a stage's seconds.
    """
    timing.commit()  # everything is on disk
    run.log.flush()
    config = storage.read_json(run.workdir / "config.json")
    summary = {**gather(run, table), **_time(run, table), "config": config}
    storage.write_json(run.workdir / "summary.json", summary)
    for line in (*tables.summary_tables(summary["models"]), "", time_report.format_line(summary["time"])):
        show(line)
    return summary


def gather(run: Run, table: StageTable) -> dict[str, Any]:
    """The figures of what is made so far: models, rounds, stages, seeds."""
    names = [name for name in run.files.model_names() if storage.exists(run.workdir / name / "eval.json")]
    models = {name: _figures(run.workdir / name / "eval.json") for name in names}
    if world := world_of(run.cfg):
        for name, others in model_metrics.pairwise_win_rates(run.workdir, names, world).items():
            models[name]["versus"] = others
    rounds = takewhile(lambda name: _is_judged(run, name), (f"m{t}" for t in count(2)))
    return {
        "models": models,
        "rounds": {name: _round(run, name) for name in rounds},
        "stages": _stages(run, table),
        "seeds": (run.files.jsonl("seed", "documents").manifest or {}).get("report"),
        "eft": (run.files.jsonl("seed", "eft").manifest or {}).get("counts"),
    }


def _figures(path: epath.Path) -> dict[str, Any] | None:
    """The figures of a checksummed file, without its owner; None if there is none."""
    stored = storage.read_checksummed(path)
    return stored and {name: value for name, value in stored.items() if name != "owner"}


def _is_judged(run: Run, model: str) -> bool:
    return all(run.files.jsonl(model, stage).manifest for stage in ("prompts", "responses", "judgments"))


def _time(run: Run, table: StageTable) -> dict[str, Any]:
    report = time_report.read(run.workdir, table.kind_of)
    kinds, lost = (time_report.totals(report[name]) for name in ("stages", "lost"))
    return {
        "seconds": sum(kinds.values()) + sum(lost.values()),
        "peak_memory_bytes": report["peak_memory_bytes"],
        "time": report | {"kinds": kinds},
    }


def _round(run: Run, model: str) -> dict[str, Any]:
    manifests = {stage: run.files.jsonl(model, stage).manifest or {} for stage in ("responses", "judgments", "pairs")}
    prompts = run.files.jsonl(model, "prompts").manifest
    return {
        "prompts": {k: prompts[k] for k in ("rows", "attempts", "faults")},
        "left_out": {stage: manifests[stage].get("left_out", 0) for stage in ("responses", "judgments")},
        "judge": judge_stats(run.files.jsonl(model, "judgments").rows()),
        "pairs": manifests["pairs"].get("counts"),
        "checks": _figures(run.workdir / model / "checks.json"),
    }


def _stages(run: Run, table: StageTable) -> list[dict[str, Any]]:
    """Rows, tokens and seconds of each step that is complete and makes rows or a model."""
    seconds = time_report.seconds_by_stage(time_report.read(run.workdir, table.kind_of))
    steps = table.known_steps(run)
    complete = [(step, manifest) for step in steps if (manifest := step.manifest(run)) and "rows" in manifest]
    return [
        {
            "model": step.folder,
            "name": manifest.get("stage", step.stage.name),
            **{k: manifest.get(k, 0) for k in ("rows", "tokens")},
            "seconds": round(seconds.get(f"{step.folder} {manifest.get('stage', step.stage.name)}", 0.0), 3),
        }
        for step, manifest in complete
    ]
