"""Changes single settings, by dotted names."""

import difflib
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax.config.comments import field_comments, flatten_config
from selfreward_jax.config.defaults import default_config
from selfreward_jax.config.errors import ConfigError

# Last parts of names that other libraries use, and ours.
OTHER_NAMES = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "grad_accum_steps",
    "max_seq_length": "seq_len",
    "max_seq_len": "seq_len",
    "loss_type": "loss",
    "max_grad_norm": "grad_clip_norm",
    "n": "num_samples",
    "num_return_sequences": "num_samples",
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "model_name_or_path": "init",
}
MAX_MEMBERS = 12  # settings of a group that a message shows


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


def with_default_types(cfg: ConfigDict, label: str) -> ConfigDict:
    """A copy of settings from elsewhere, in which every setting has the type of its default.

    Args:
      cfg: the settings.
      label: what they are, in an error.

    Raises:
      ConfigError: a setting is missing, does not exist, or has another type.
    """
    given, default = flatten_config(cfg), default_config()
    if missing := sorted(flatten_config(default).keys() - given.keys()):
        raise ConfigError(f"{label} has no {missing[0]}: begin with selfreward_jax.config.get_config()")
    try:
        return override(default, given)
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}") from None


def unknown_field(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """What to say where `name` is not one of the `known` settings."""
    if members := [field for field in field_comments() if field.startswith(f"{name}.")]:  # in the order of the defaults
        # A word is more likely meant for a setting that holds words.
        members.sort(key=lambda field: isinstance(known[field], str) != _is_word(value))
        listed = ", ".join(members[:MAX_MEMBERS]) + ", ..." * (len(members) > MAX_MEMBERS)
        return f"{name} (given as {value!r}) is a group of settings, not a setting; name one of it: {listed}"
    group, dot, last = name.rpartition(".")
    translated = f"{group}{dot}{OTHER_NAMES.get(last, last)}"
    nearest = translated if translated in known else difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"{name} (given as {value!r}) is not a setting; the nearest one is {nearest}"


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.lower() not in ("", "true", "false") and value.strip("+-")[:1].isalpha()


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
        try:
            return float(value)
        except OverflowError:  # an integer beyond all floats; its range refuses it
            return math.inf if value > 0 else -math.inf
    if isinstance(default, str) and isinstance(value, str):
        return value
    if isinstance(default, tuple) and isinstance(value, tuple | list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise TypeError
