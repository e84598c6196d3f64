"""Every setting, its default and its checks."""

from selfreward_jax.config.defaults import ConfigError, default_config, from_stored, get_config

__all__ = ["ConfigError", "default_config", "from_stored", "get_config"]
