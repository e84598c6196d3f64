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
    run.files.owner = digest(run, step)
    try:
        yield
    finally:
        run.files.owner = ""


def digest(run: Run, step: Step) -> str:
    """The digest of a step, 16 hex digits. What it reads must be complete."""
    inputs = (storage.read_json(run.workdir / CONFIG_FILE) or {}).get("inputs")
    settings = json.loads(run.cfg.to_json()) | {"inputs": inputs}
    made_from = {
        "step": [step.folder, step.stage.name],
        "settings": {field: _setting(settings, field) for field in step.stage.settings},
        "inputs": {name: _identity(run, name) for name in map(step.path, step.stage.reads)},
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _setting(settings: Any, field: str) -> Any:
    for name in field.split("."):
        settings = settings[name]
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
