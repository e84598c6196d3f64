"""Whose an artifact is.

Each artifact carries a digest of the step that made it: its name, the settings that decide it, and the digests of what
it read. So the digest of the last model names every setting and every byte before it. An artifact that another run
made, or that was made from other inputs, has another digest, however intact it is.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from selfreward_jax import storage
from selfreward_jax.runs.run import CONFIG_FILE, Run
from selfreward_jax.runs.stage import Step


@contextlib.contextmanager
def making(run: Run, step: Step) -> Iterator[None]:
    """While a step is made, or found complete: what it writes carries its digest, and what it finds is compared."""
    files = run.files
    files.made_from = made_from(run, step)
    files.owner = _digest(files.made_from)
    try:
        yield
    finally:
        files.owner, files.made_from = "", {}


def digest(run: Run, step: Step) -> str:
    """The digest of a step, 16 hex digits. What it reads must be complete."""
    return _digest(made_from(run, step))


def made_from(run: Run, step: Step) -> dict[str, Any]:
    """What a step is made from: its name, the settings that decide it, and what identifies each artifact it reads."""
    settings = _settings(run)
    return {
        "step": [step.folder, step.stage.name],
        "settings": {field: _setting(settings, field) for field in step.stage.settings},
        "inputs": {name: _identity(run, name) for name in map(step.path, step.stage.reads)},
    }


def check_model(run: Run, name: str) -> None:
    """Checks that a finished model is of the run whose folder it is in: its settings are those of the run, and the
    artifacts it was made from are those in the folder. What is no longer there is not compared.

    Raises:
      storage.StorageError: it is of another run.
    """
    path = run.workdir / name / "manifest.json"
    manifest = storage.read_checksummed(path) or {}
    if "made_from" not in manifest:
        raise storage.StorageError(f"{path} was made by an older version of this program: use another --workdir")
    then, settings = manifest["made_from"], _settings(run)
    differs = next((f for f, value in then["settings"].items() if _setting(settings, f) != value), "")
    for artifact, identity in then["inputs"].items():
        if _identity(run, artifact) not in (None, identity):
            differs = differs or artifact
    if differs or manifest["owner"] != _digest(then) or then["step"][0] != name:
        raise storage.StorageError(
            f"{run.workdir / name} is a model of another run; it was made from another {differs or 'folder'}: restore "
            "it, or repeat the command of this run, which makes it again"
        )


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _settings(run: Run) -> dict[str, Any]:
    """The settings, and the hashes of the user's files that the run began with."""
    inputs = (storage.read_json(run.workdir / CONFIG_FILE) or {}).get("inputs")
    return json.loads(run.cfg.to_json()) | {"inputs": inputs}


def _setting(settings: Any, field: str) -> Any:
    for name in field.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def _identity(run: Run, name: str) -> Any:
    """What an artifact that a step reads is known by; None if there is none."""
    folder, _, file = name.partition("/")
    if file.endswith(".jsonl"):
        manifest, field = run.files.jsonl(folder, file.removesuffix(".jsonl")).manifest, "sha256"
    else:  # the checkpoint of a model, or the tokenizer
        manifest = storage.read_checksummed(run.workdir / folder / "manifest.json")
        field = "weights" if file == "checkpoint" else "files"
    return manifest and manifest[field]
