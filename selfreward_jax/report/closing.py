"""The last lines of a run: where its report is, its best model, and what to do with it."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from selfreward_jax.console.escape import shell_word
from selfreward_jax.report import model_intervals
from selfreward_jax.report.comparison import best_model, win_rates


def lines(workdir: epath.Path, summary: Mapping[str, Any]) -> list[str]:
    """The lines.

    Args:
      workdir: the working directory.
      summary: as `summary.write` returns it.
    """
    models = summary["models"]
    rates = win_rates(models, model_intervals.evaluations(workdir))
    model, why = best_model(list(models), rates)
    folder = shell_word(_short(str(workdir)))
    return [
        "",
        f"report:     {_short(str(workdir / 'report.html'))}",
        f"best model: {model} ({why})",
        "next:",
        f"  {program()} chat --workdir={folder} --model={model}",
        f"  {program()} export --workdir={folder} --model={model} --out={model}_hf",
        f"  {program()} evaluate --workdir={folder}",
    ]


def program() -> str:
    """How a shell starts this program: the console script, or this Python where there is none."""
    if shutil.which("selfreward-jax"):
        return "selfreward-jax"
    if os.path.basename(sys.argv[0]) == "selfreward-jax":  # not on the path, but it was started by its own
        return shlex.quote(_short(os.path.abspath(sys.argv[0])))
    python = shutil.which("python")
    same = python is not None and os.path.abspath(python) == os.path.abspath(sys.executable)
    return f"{'python' if same else shlex.quote(_short(sys.executable))} -m selfreward_jax"


def _short(path: str) -> str:
    """The path as seen from the current folder, if it is below it."""
    if "://" in path or not Path(path).is_relative_to(Path.cwd()):
        return path
    return str(Path(path).relative_to(Path.cwd()))
