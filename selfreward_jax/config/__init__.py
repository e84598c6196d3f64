"""Settings: defaults, presets, validation, and changes between two runs."""

from selfreward_jax.config.defaults import ConfigError, default_config, from_stored, get_config

__all__ = ["ConfigError", "default_config", "from_stored", "get_config"]
