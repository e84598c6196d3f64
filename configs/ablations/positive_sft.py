"""Positives only: supervised training on each pair's chosen answer, no DPO.

    python -m selfreward_jax.main --config=configs/ablations/positive_sft.py --workdir=runs/positive_sft

As configs/iter3.py in everything else, and with its scales.
The replayed seed rows stay, as in the default.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M3, with this one change."""
    c = config.get_config(scale)
    c.iterations = 3
    c.dpo.dpo_weight = 0.0
    c.dpo.nll_weight = 1.0
    return c
