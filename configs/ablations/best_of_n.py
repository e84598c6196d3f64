"""Best of N, no training: M1 gives the answer that it scores highest itself, of four drawn.

    python -m selfreward_jax.main --config=configs/ablations/best_of_n.py --workdir=runs/best_of_n

As configs/iter1.py in everything else, and with its scales.
What the same judge is worth when it chooses answers and trains nobody. Compare with M2 of the default run.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M1, with this one change."""
    c = config.get_config(scale)
    c.iterations = 1
    c.evaluate.best_of = 4
    return c
