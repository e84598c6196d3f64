"""Base -> SFT on IFT + EFT = M1, and its evaluation.

    python -m selfreward_jax.main --config=configs/iter1.py --workdir=runs/a

Hardware: two CPU cores, under 4 GB. Scales: iter1.py:tiny (the default, the embedded world), iter1.py:micro (a check
of seconds), iter1.py:scratch (your own seeds: --config.data.ift=FILE --config.data.eft=FILE).
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M1."""
    c = config.get(scale)
    c.iterations = 1
    return c
