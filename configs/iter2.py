"""Placeholder."""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M2."""
    c = config.get(scale)
    c.iterations = 2
    return c
