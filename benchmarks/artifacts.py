"""Artifacts that one run takes from another."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from selfreward_jax.runs.run import CONFIG_FILE


def fork(source: Path, target: Path, artifacts: Iterable[str], iterations: int) -> None:
    """Begins a working directory with artifacts of another run, to be continued with `allow_config_changes`.

    The settings of the other run come with them, since they say what the artifacts were made with. An unfinished start
    is begun anew.

    Args:
      source, target: the working directories.
      artifacts: as `copy_artifact` takes them.
      iterations: how far the new run goes, also where the other one goes further.
    """
    if (target / CONFIG_FILE).exists():
        return
    shutil.rmtree(target, ignore_errors=True)
    for artifact in artifacts:
        copy_artifact(source / artifact, target / artifact)
    settings = json.loads((source / CONFIG_FILE).read_text()) | {"iterations": iterations}
    (target / CONFIG_FILE).write_text(json.dumps(settings))  # last: what is there before is not whole


def copy_artifact(source: Path, target: Path) -> None:
    """Copies a folder, a file, or rows (named without a suffix) with their manifest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.suffix:
        shutil.copy(source, target)
    else:
        for suffix in ("jsonl", "manifest.json"):
            shutil.copy(source.with_name(f"{source.name}.{suffix}"), target.parent)
