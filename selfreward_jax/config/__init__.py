"""Settings: defaults, presets, validation, and changes between two runs."""

from selfreward_jax.config.defaults import default_config, get_config
from selfreward_jax.config.errors import ConfigError, InputError
from selfreward_jax.config.stored import from_stored

__all__ = ["ConfigError", "InputError", "default_config", "from_stored", "get_config"]
