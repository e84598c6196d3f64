"""Base -> M1 -> M2: one round of self-rewarding.

    python -m selfreward_jax.main --config=configs/iter2.py --workdir=runs/a

Hardware: two CPU cores, under 2 GB of memory. Time: about 4 minutes.
Expect M2 against M1 to win about 84 % of comparisons and to lose about 3 %.

Scales, after a colon: tiny (the default, the embedded world), micro (a check of a minute), scratch (your own seeds, a
model of a million parameters from random weights: --config.data.ift=FILE --config.data.eft=FILE).
With your own seeds and --config.model.init=FOLDER, meant for the machine in brackets and not yet run there:
smollm2_135m [one GPU or TPU chip of 16 GB], tinyllama [one of 80 GB], llama3_8b and qwen3_8b [8 of 80 GB],
llama2_70b [64 of 95 GB; the paper's own model and rates].
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M2."""
    c = config.get_config(scale)
    c.iterations = 2
    return c
