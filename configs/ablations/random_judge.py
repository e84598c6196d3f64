"""A random judge: dice in place of the model's votes.

    python -m selfreward_jax.main --config=configs/ablations/random_judge.py --workdir=runs/random_judge

As configs/iter3.py in everything else, and with its scales.
Whatever is gained here is not gained by judging.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M3, with this one change."""
    c = config.get_config(scale)
    c.iterations = 3
    c.judge.kind = "random"
    return c
