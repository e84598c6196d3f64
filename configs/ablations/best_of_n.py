"""Best of N without training: of four sampled answers M1 gives the one that it scores highest.

    python -m selfreward_jax.main --config=configs/ablations/best_of_n.py --workdir=runs/best_of_n

Everything else is as in configs/iter1.py, presets included.
Hardware: two CPU cores, under 2 GB of memory. Time: 3 to 5 minutes.

This is what the judge is worth when it chooses answers and trains nothing. Compare it with M2 of the default run.
Expected, over five seeds: +57 points over M1's plain answers, -54 against M2's.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(preset: str = "") -> ConfigDict:
    """The settings of `preset`, up to M1, with one change."""
    c = config.get_config(preset)
    c.iterations = 1
    c.evaluate.best_of = 4
    return c
