"""Changes single settings, by dotted names."""

import difflib
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax.config.comments import flatten_config
from selfreward_jax.config.errors import ConfigError


def override(cfg: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of the settings with some of them changed.

    Args:
      cfg: the settings.
      values: by dotted names, such as {"dpo.beta": 0.2}. A value has the type of the setting; a whole number is also a
        float, and a list is also a tuple.

    Raises:
      ConfigError: a name is not a setting, or a value has another type.
    """
    known = flatten_config(cfg)
    converted = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(unknown_field(name, value, known))
        try:
            converted[name] = _convert(value, known[name])
        except TypeError:
            raise ConfigError(wrong_type(name, value, known[name])) from None
    cfg = cfg.copy_and_resolve_references()
    cfg.update_from_flattened_dict(converted)
    return cfg


def unknown_field(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """What to say where `name` is not one of the `known` settings."""
    if members := [field for field in known if field.startswith(f"{name}.")]:
        return f"{name} (given as {value!r}) is a group of settings, not a setting; one of it is {members[0]}"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"{name} (given as {value!r}) is not a setting; the nearest one is {nearest[0]}"


def wrong_type(name: str, value: Any, default: Any) -> str:
    """What to say where the value of a setting has another type than its default."""
    return f"{name} is {value!r}, which is not of type {type(default).__name__}; its default is {default!r}"


def _convert(value: Any, default: Any) -> Any:
    """The value in the type of the default.

    Raises:
      TypeError: it has another type.
    """
    if isinstance(value, bool) != isinstance(default, bool):  # True is an int in Python
        raise TypeError
    if isinstance(default, int) and isinstance(value, Integral):
        return type(default)(value)
    if isinstance(default, float) and isinstance(value, Real):
        return float(value)
    if isinstance(default, str) and isinstance(value, str):
        return value
    if isinstance(default, tuple) and isinstance(value, tuple | list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise TypeError
