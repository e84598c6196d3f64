"""Length control: of the good answers the shortest is chosen, of the poor ones the longest rejected.

    python -m selfreward_jax.main --config=configs/ablations/length_control.py --workdir=runs/length_control

As configs/iter3.py in everything else, and with its scales.
Good and poor are the upper and the lower rho of each prompt's range of scores (Meta-Rewarding, arXiv 2407.19594).
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M3, with this one change."""
    c = config.get_config(scale)
    c.iterations = 3
    c.pairs.length_control_rho = 0.32
    return c
