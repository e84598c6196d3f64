"""Which settings may change between two runs in one working directory: those that decide nothing that is made yet."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath

from selfreward_jax.config import ConfigError

# These add to what is there, serve evaluations, check artifacts without making them, or say where the work is done. A
# restart on other machines continues with the same rows.
RUNTIME_FIELDS = ("iterations", "endpoint", "checks", "parallel", "report", "checkpoint_every", "shutdown_timeout_s")


class Change(NamedTuple):
    """A setting that differs, and its values."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} was {self.old!r} and is now {self.new!r}"


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[Change]:
    """The settings in which two runs differ, apart from `RUNTIME_FIELDS`."""
    differing = []
    for name in sorted(old.keys() | new.keys()):
        before, now, field = old.get(name), new.get(name), prefix + name
        if field in RUNTIME_FIELDS or before == now:
            continue
        if isinstance(before, dict | None) and isinstance(now, dict | None):  # no inputs before, or none now
            differing += changes(before or {}, now or {}, f"{field}.")
        else:
            differing.append(Change(field, before, now))
    return differing


def config_hash(settings: dict[str, Any]) -> str:
    """A hash of all settings but `RUNTIME_FIELDS`: artifacts with the same hash come from the same settings."""
    fixed = {name: value for name, value in settings.items() if name not in RUNTIME_FIELDS}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def check_changes(
    workdir: epath.Path,
    differing: Sequence[Change],
    allowed: bool,
    find_dependent_artifact: Callable[[str], str | None],
) -> None:
    """Raises ConfigError where a run may not continue with these changes.

    Args:
      workdir: the working directory.
      differing: the changes.
      allowed: whether the user accepts changes that decide nothing that is made yet.
      find_dependent_artifact: an artifact in the working directory that a setting has decided; None if there is none.
    """
    choices = "use another --workdir, or the settings in its config.json"
    for change in differing:
        if artifact := find_dependent_artifact(change.field):
            raise ConfigError(f"workdir {workdir} has {artifact}, made with other settings: {change}; {choices}")
    if differing and not allowed:
        raise ConfigError(
            f"workdir {workdir} was started with other settings: {'; '.join(map(str, differing))}; no artifact depends "
            f"on them yet: continue with --allow_config_changes, {choices}"
        )
