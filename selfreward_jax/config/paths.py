"""Paths that a user writes: `~` is the home folder, as in a shell, which leaves it alone after `--workdir=`."""

import os

from ml_collections import ConfigDict

from selfreward_jax.config.comments import flatten_config
from selfreward_jax.config.errors import ConfigError

# Settings that may name a file or a folder.
PATH_FIELDS = (
    "data.ift",
    "data.eft",
    "model.init",
    "judge.template",
    "prompts.source",
    "prompts.template",
    "prompts.writer",
    "pairwise.template",
    "meta.template",
)


def expand_home(path: str, name: str) -> str:
    """The path with `~/` and `~USER/` at its start replaced. `./~` is a name of its own, and so is an unknown USER.

    Args:
      path: as the user wrote it.
      name: of the option or setting, for a message.

    Raises:
      ConfigError: this user has no home folder.
    """
    expanded = os.path.expanduser(path)
    if expanded == "~" or expanded.startswith("~/"):
        raise ConfigError(f"{name} is {path!r}, but this user has no home folder: set HOME, or write the path in full")
    return expanded


def expand_settings(cfg: ConfigDict) -> ConfigDict:
    """A copy of the settings in which each path is one of `expand_home`; the settings themselves if none changes."""
    values = flatten_config(cfg)
    expanded = {field: expand_home(values[field], field) for field in PATH_FIELDS}
    changed = {field: path for field, path in expanded.items() if path != values[field]}
    if changed:
        cfg = cfg.copy_and_resolve_references()
        cfg.update_from_flattened_dict(changed)
    return cfg
