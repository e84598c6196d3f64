"""The settings that config.json of a working directory holds."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax.config.comments import flatten, flatten_config
from selfreward_jax.config.defaults import default_config
from selfreward_jax.config.errors import ConfigError, brief
from selfreward_jax.config.overrides import override
from selfreward_jax.config.ranges import check_ranges


def from_stored(stored: Mapping[str, Any]) -> ConfigDict:
    """The settings of a parsed config.json. Its field "inputs" is none of them.

    Raises:
      ConfigError: a field is missing, is not a setting, has another type, or is a number outside its range.
    """
    c = default_config()
    given = {name: value for name, value in stored.items() if name != "inputs"}
    if difference := _first_difference(json.loads(c.to_json()), given):
        raise ConfigError(f"config.json is of another version: {difference}")
    try:
        c = override(c, flatten(given))
        check_ranges(flatten_config(c))
    except ConfigError as error:
        raise ConfigError(f"config.json: {error}") from None
    return c


def _first_difference(defaults: dict[str, Any], stored: Any, prefix: str = "") -> str | None:
    """A field that only one of the two has, in words; None if both have the same fields."""
    if not isinstance(stored, dict):
        return f"{prefix[:-1]} is {brief(stored)} in the file, and a group of settings in this program"
    for name in sorted(defaults.keys() ^ stored.keys()):
        return f"the field {prefix}{name} is only in {'this program' if name in defaults else 'the file'}"
    groups = [name for name, value in defaults.items() if isinstance(value, dict)]
    differences = (_first_difference(defaults[name], stored[name], f"{prefix}{name}.") for name in groups)
    return next(filter(None, differences), None)
