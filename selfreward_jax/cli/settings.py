"""Settings from the command line: a configuration, and --config.FIELD=VALUE for single fields."""

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from selfreward_jax.config import ConfigError, default_config, files, overrides, paths
from selfreward_jax.config.comments import flatten_config

PREFIXES = ("--config.", "--noconfig.")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that set single fields, and all others. A field's value may be a word of its own."""
    switches = {name for name, value in flatten_config(default_config()).items() if isinstance(value, bool)}
    fields: list[str] = []
    others: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith(PREFIXES):
            others.append(word)
            continue
        takes_value = "=" not in word and word.startswith("--config.") and _field(word) not in switches
        fields.append(f"{word}={words.pop(0)}" if takes_value and words else word)
    return fields, others


def load(spec: str, fields: Sequence[str]) -> ConfigDict:
    """The settings of a configuration, with single fields changed.

    Args:
      spec: as in `config.files.load`.
      fields: words such as "--config.dpo.beta=0.2" and "--noconfig.sft_baseline".

    Raises:
      ConfigError: the configuration does not load; a field does not exist, or its value has another type; or a path
        begins with ~, and there is no home folder.
    """
    cfg = files.load(spec)
    known = flatten_config(cfg)
    for word in fields:
        field, _, value = word.partition("=")
        if (name := _field(field)) not in known:
            raise ConfigError(overrides.unknown_field(name, value, known))
        values = flags.FlagValues()
        try:
            config_flags.DEFINE_config_dict("config", cfg, flag_values=values, sys_argv=["", word])
            values(["", word])
        except Exception:  # the parsers raise many types
            raise ConfigError(overrides.wrong_type(name, value, known[name])) from None
    return paths.expand_settings(cfg)


def _field(word: str) -> str:
    return word.partition("=")[0].partition("config.")[2]
