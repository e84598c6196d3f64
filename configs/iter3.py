"""Base -> M1 -> M2 -> M3: two rounds of self-rewarding.

    python -m selfreward_jax.main --config=configs/iter3.py --workdir=runs/a

Hardware: two CPU cores, under 2 GB of memory. Time: about 6 minutes.
Expect M2 against M1 about +70 points (win - lose), M3 against M2 about +27, M3 against M1 about +85.

Scales: iter3.py:tiny (the default, the embedded world), iter3.py:micro (a check of a minute), iter3.py:scratch
(your own seeds: --config.data.ift=FILE --config.data.eft=FILE).
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M3."""
    c = config.get(scale)
    c.iterations = 3
    return c
