"""A random judge: random scores in place of the model's votes.

    python -m selfreward_jax.main --config=configs/ablations/random_judge.py --workdir=runs/random_judge

Everything else is as in configs/iter3.py, presets included.
Hardware: two CPU cores, under 2 GB of memory. Time: 6 to 8 minutes.

A gain here does not come from judging.
Expected, over five seeds: M2 over M1 -0.4 points, [-9.7 +8.9].
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(preset: str = "") -> ConfigDict:
    """The settings of `preset`, up to M3, with one change."""
    c = config.get_config(preset)
    c.iterations = 3
    c.judge.kind = "random"
    return c
