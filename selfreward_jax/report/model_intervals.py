"""Figures with intervals that the head of the page shows, from the rows of a run."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from selfreward_jax import storage
from selfreward_jax.evaluate import model_metrics
from selfreward_jax.report.comparison import named
from selfreward_jax.runs.run import Run
from selfreward_jax.worlds import world_of


def measure(run: Run, models: Sequence[str]) -> dict[str, Any]:
    """What the run's files say about each model.

    Args:
      run: the run.
      models: names of the models that are evaluated.

    Returns:
      `score_intervals`: {model: [low, high]} of the oracle's mean score, where there is an oracle. `judges`: {model:
      `model_metrics.lead_over_length`}. `evaluations`: {judge: {model: {opponent: win rates}}} of the evaluations that
      were made of the run, an outside judge first.
    """
    ranked = _rows(run, "seed", f"ranked_{run.cfg.evaluate.split}")
    world = world_of(run.cfg)
    answers = {name: _rows(run, name, "eval_answers") for name in models} if world else {}
    return {
        "score_intervals": {name: model_metrics.score_interval(rows, world) for name, rows in answers.items()},
        "judges": {name: model_metrics.lead_over_length(ranked, _rows(run, name, "eval_judgments")) for name in models},
        "evaluations": evaluations(run.workdir),
    }


def _rows(run: Run, folder: str, stage: str) -> list[Any]:
    artifact = run.files.jsonl(folder, stage)
    return artifact.rows() if artifact.manifest else []


def evaluations(workdir: epath.Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Win rates in evaluation/report_JUDGE.json, by judge, an outside judge first. A report that cannot be read is left
    out: the command that made it makes it again."""
    versus = {}
    folder = workdir / "evaluation"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (path.name.startswith("report_") and path.suffix == ".json"):
            continue
        try:
            versus[path.stem.removeprefix("report_")] = named(storage.read_json(path))
        except (storage.StorageError, KeyError, TypeError, AttributeError):
            storage.warn(f"{path} cannot be read: evaluate again")
    return dict(sorted(versus.items(), key=lambda item: item[0] != "endpoint"))
