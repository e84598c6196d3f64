"""Artifacts that one run takes from another."""

import shutil
from pathlib import Path


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
