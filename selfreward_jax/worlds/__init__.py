"""Embedded worlds: each has its own answers and oracle."""

from ml_collections import ConfigDict


def world_of(cfg: ConfigDict) -> str:
    """The world that a run's seeds are of, "toy" or "checkable"; "" for a user's own seeds, which have no oracle."""
    return cfg.world if cfg.world == "checkable" or not cfg.data.ift else ""
