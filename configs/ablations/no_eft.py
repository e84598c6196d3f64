"""No EFT: M1 learns to follow instructions, and nobody teaches it to judge.

    python -m selfreward_jax.main --config=configs/ablations/no_eft.py --workdir=runs/no_eft

As configs/iter3.py in everything else, and with its scales.
In the embedded world no vote of M1 can be read, and the run stops before round one with its judge's report (exit code
2). A pretrained model judges a little without being taught; the paper's made 541 pairs where EFT made 3,964.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M3, with this one change."""
    c = config.get_config(scale)
    c.iterations = 3
    c.sft.sets = ("ift", "prompts")
    c.dpo.replay_sets = ("prompts",)
    return c
