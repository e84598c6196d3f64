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


FILE_PREFIX = "inputs."  # before the path of a user's file, whose value is the hash of its contents


class Change(NamedTuple):
    """A setting that differs, and its values.

    named_by: of a file whose contents differ, the setting that names it.
    """

    field: str
    old: Any
    new: Any
    named_by: str = ""

    def __str__(self) -> str:
        if not self.field.startswith(FILE_PREFIX):
            return f"{self.field} was {self.old!r} and is now {self.new!r}"
        prefix, path = f"{self.named_by}: " if self.named_by else "", self.field.removeprefix(FILE_PREFIX)
        if self.new is None:
            return f"{prefix}the file {path} of this run is no longer read or no longer there"
        if self.old is None:
            return f"{prefix}the file {path} was not there when this run began"
        return f"{prefix}the file {path} has changed since this run began (SHA-256 {self.old:.12}, now {self.new:.12})"

    def kind(self) -> str:
        """What differs: settings, or the contents of files."""
        return "files" if self.field.startswith(FILE_PREFIX) else "settings"

    def remedy(self) -> str:
        """What to do where the change is refused."""
        where = "restore the file" if self.kind() == "files" else "the settings in its config.json"
        return f"use another --workdir, or {where}"


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
    for change in differing:
        if artifact := find_dependent_artifact(change.field):
            raise ConfigError(
                f"workdir {workdir} has {artifact}, made with other {change.kind()}: {change}; {change.remedy()}"
            )
    if differing and not allowed:
        raise ConfigError(
            f"workdir {workdir} was started with other {differing[0].kind()}: {'; '.join(map(str, differing))}; no "
            f"artifact depends on them yet: continue with --allow_config_changes, {differing[0].remedy()}"
        )
