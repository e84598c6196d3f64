"""The last lines of a run: where its report is, its best model, and what to do with it."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from selfreward_jax.telemetry.numbers import three_digits


def lines(workdir: epath.Path, summary: Mapping[str, Any]) -> list[str]:
    """The lines.

    Args:
      workdir: the working directory.
      summary: as `summary.write` returns it.
    """
    model, why = best_model(summary["models"])
    folder = shlex.quote(_short(str(workdir)))
    return [
        "",
        f"report:     {_short(str(workdir / 'report.html'))}",
        f"best model: {model} ({why})",
        "next:",
        f"  {program()} chat --workdir={folder} --model={model}",
        f"  {program()} export --workdir={folder} --model={model} --out={model}_hf",
        f"  {program()} evaluate --workdir={folder}",
    ]


def best_model(models: Mapping[str, Any]) -> tuple[str, str]:
    """The model with the best figure that there is for all of them, the later of equals, and the reason in words.

    It is only shown: no training depends on it.

    Args:
      models: the metrics of each model, in training order.
    """
    scores = {name: metrics.get("oracle", {}).get("mean") for name, metrics in models.items()}
    accuracies = {name: metrics["judge"]["pairwise_accuracy"] for name, metrics in models.items()}
    if None not in scores.values():
        best = _last_best(scores)
        return best, f"mean score {three_digits(scores[best])} of 5 by the toy world's oracle, which no training sees"
    if None not in accuracies.values():
        best = _last_best(accuracies)
        return best, f"it orders {three_digits(100 * accuracies[best])} % of the held-out answers as your scores do"
    return list(models)[-1], "the last one; its round passed all checks"


def _last_best(figures: Mapping[str, float]) -> str:
    return max(reversed(list(figures)), key=lambda name: figures[name])


def program() -> str:
    """How a shell starts this program: the console script, or this Python where there is none."""
    if shutil.which("selfreward-jax"):
        return "selfreward-jax"
    python = shutil.which("python")
    same = python is not None and os.path.abspath(python) == os.path.abspath(sys.executable)
    return f"{'python' if same else shlex.quote(_short(sys.executable))} -m selfreward_jax"


def _short(path: str) -> str:
    """The path as seen from the current folder, if it is below it."""
    if "://" in path or not Path(path).is_relative_to(Path.cwd()):
        return path
    return str(Path(path).relative_to(Path.cwd()))
