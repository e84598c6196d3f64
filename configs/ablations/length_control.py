"""Length control: the shortest good answer is chosen, the longest poor one rejected.

    python -m selfreward_jax.main --config=configs/ablations/length_control.py --workdir=runs/length_control

Everything else is as in configs/iter3.py, presets included.
Hardware: two CPU cores, under 2 GB of memory. Time: 6 to 8 minutes.

Good and poor are the upper and lower rho of each prompt's score range (Meta-Rewarding, arXiv 2407.19594).
Expected, over five seeds: M2 over M1 +83 points, with answers three characters shorter than the default's.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(preset: str = "") -> ConfigDict:
    """The settings of `preset`, up to M3, with one change."""
    c = config.get_config(preset)
    c.iterations = 3
    c.pairs.length_control_rho = 0.32
    return c
