"""Settings: defaults, presets, validation, and changes between two runs."""

from selfreward_jax.config.defaults import default_config, from_stored, get_config
from selfreward_jax.config.errors import ConfigError, InputError

__all__ = ["ConfigError", "InputError", "default_config", "from_stored", "get_config"]
