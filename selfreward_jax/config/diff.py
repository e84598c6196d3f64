"""What may change between two runs in one working directory.

A field may, if what it decides is not made yet: then what comes is all of one kind. Which that is says `TRACES`.
"""

import hashlib
import json
from functools import partial
from typing import Any, NamedTuple

from etils import epath

from selfreward_jax.config import ConfigError
from selfreward_jax.parallel import processes

# These add to what is there, serve evaluations, judge what is made and do not make it, or say where the work is done
# and not what: a restart on other machines goes on with the same rows.
RUNTIME_FIELDS = ("iterations", "endpoint", "checks", "parallel", "report", "checkpoint_every", "shutdown_timeout_s")

# What is made with other fields first: patterns in the working directory, the longest name of a field counts.
DEPENDENT_ARTIFACTS: dict[str, tuple[str, ...]] = {
    "seed": ("seed/*",),
    "inputs": ("seed/*",),
    "data": ("seed/*",),
    "eft": ("seed/*",),
    "tokenizer": ("tokenizer/*",),
    "model": ("tokenizer/*", "m0/*"),
    "optimizer": ("m0/*",),
    "lora": ("sft/*", "m1/*"),
    "sft_baseline": (),
    "pretrain": ("m0/*",),
    "sft": ("sft/*", "m1/*"),
    "prompts": ("*/prompts.*", "prompts_writer.json"),
    "prompts.template": ("seed/*",),
    "prompts.num_seed_examples": ("seed/*",),
    "prompts.num_generated_examples": ("seed/*",),
    "prompts.min_words": ("seed/*",),
    "prompts.max_words": ("seed/*",),
    "responses": ("*/responses.*",),
    "judge": ("*/*judgments*", "*/*judged*"),
    "judge.template": ("seed/*",),
    "judge.output_format": ("seed/*",),
    "pairs": ("*/pairs.*",),
    "dpo": ("*/ref_logprobs.json",),
    "pairwise": ("*/early_*",),
    "sampling": (),  # how many are drawn together changes no row
    "evaluate": ("*/eval*", "*/early_*"),
    "max_nonfinite_steps": ("*/steps/*",),
}


class Change(NamedTuple):
    """A field that differs, and its values."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} was {self.old!r} and is {self.new!r} now"


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[Change]:
    """The fields in which two settings differ, but for those that may differ freely."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, now, field = old.get(name), new.get(name), prefix + name
        if field in RUNTIME_FIELDS or before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            found += changes(before, now, f"{field}.")
        else:
            found.append(Change(field, before, now))
    return found


def config_hash(settings: dict[str, Any]) -> str:
    """A hash of all settings that may not differ freely: whose rows have the same were made by the same."""
    held = {name: value for name, value in settings.items() if name not in RUNTIME_FIELDS}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:16]


def find_dependent_artifact(directory: epath.Path, field: str) -> str | None:
    """Something in the working directory that was made with a field; None if nothing was."""
    names = field.split(".")
    longest = next(
        (".".join(names[:n]) for n in range(len(names), 0, -1) if ".".join(names[:n]) in DEPENDENT_ARTIFACTS), None
    )
    patterns = ("*/*",) if longest is None else DEPENDENT_ARTIFACTS[longest]
    found = (path for pattern in patterns for path in sorted(directory.glob(pattern)))
    return next((str(path.relative_to(directory)) for path in found), None)


def check_changes(directory: epath.Path, found: list[Change], accepted: bool) -> None:
    """Raises ConfigError where a run may not go on with these changes.

    Args:
      directory: the working directory.
      found: what differs from what is there.
      accepted: whether the user wants those that alter nothing that is made.
    """
    for change in found:
        choices = "use another --workdir, or the settings in its config.json"
        if trace := processes.broadcast_from_primary(partial(find_dependent_artifact, directory, change.field)):
            raise ConfigError(f"workdir {directory} was made by other settings: {change}, and made {trace}; {choices}")
    if found and not accepted:
        raise ConfigError(
            f"workdir {directory} was begun with other settings: {'; '.join(map(str, found))}; nothing was made with "
            f"{'it' if len(found) == 1 else 'them'} yet: go on with --allow_config_changes, {choices}"
        )
