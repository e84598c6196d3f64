"""Base -> M1 -> M2: one round of self-rewarding.

    python -m selfreward_jax.main --config=configs/iter2.py --workdir=runs/a

Hardware: two CPU cores, under 2 GB of memory. Time: about 5 minutes.
Expect M2 against M1 wins about 75 % of comparisons and loses about 5 %.

Scales: iter2.py:tiny (the default, the embedded world), iter2.py:micro (a check of a minute), iter2.py:scratch
(your own seeds: --config.data.ift=FILE --config.data.eft=FILE).
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M2."""
    c = config.get(scale)
    c.iterations = 2
    return c
