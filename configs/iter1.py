"""Base -> SFT on IFT + EFT = M1, and its evaluation.

    python -m selfreward_jax.main --config=configs/iter1.py --workdir=runs/a

Hardware: two CPU cores, under 2 GB of memory. Time: about 3 minutes.
Expect an M1 that answers as its mixed seeds do (oracle mean about 3.1 of 5, one answer in ten perfect) and a judge
that orders 96 % of pairs rightly.

Scales: iter1.py:tiny (the default, the embedded world), iter1.py:micro (a check of a minute), iter1.py:scratch
(your own seeds: --config.data.ift=FILE --config.data.eft=FILE).
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M1."""
    c = config.get(scale)
    c.iterations = 1
    return c
