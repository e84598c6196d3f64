"""Base -> SFT on IFT + EFT = M1, and its evaluation.

    python -m selfreward_jax.main --config=configs/iter1.py --workdir=runs/a

Hardware: two CPU cores, under 2 GB of memory. Time: about 3 minutes.
Expect an M1 that answers as its mixed seeds do (oracle mean about 2.8 of 5, one answer in twenty perfect) and a judge
that orders 96 to 99 % of pairs rightly.

Scales, after a colon: tiny (the default, the embedded world), micro (a check of a minute), scratch (your own seeds, a
model of a million parameters from random weights: --config.data.ift=FILE --config.data.eft=FILE).
With your own seeds and --config.model.init=FOLDER, meant for the machine in brackets and not yet run there:
smollm2_135m [one GPU or TPU chip of 16 GB], tinyllama [one of 80 GB], llama3_8b and qwen3_8b [8 of 80 GB],
llama2_70b [64 of 95 GB; the paper's own model and rates].
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M1."""
    c = config.get_config(scale)
    c.iterations = 1
    return c
