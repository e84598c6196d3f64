"""No EFT: M1 learns to follow instructions, and nothing teaches it to judge.

    python -m selfreward_jax.main --config=configs/ablations/no_eft.py --workdir=runs/no_eft

Everything else is as in configs/iter3.py, presets included.
Hardware: two CPU cores, under 2 GB of memory. Time: about 3 minutes.

Expected: in the toy task no vote of M1 is parseable. The run stops before round one with the judge's statistics and
exit code 2. A pretrained model judges a little without being taught: the paper's made 541 pairs, with EFT 3,964.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(preset: str = "") -> ConfigDict:
    """The settings of `preset`, up to M3, with one change."""
    c = config.get_config(preset)
    c.iterations = 3
    c.sft.sets = ("ift", "prompts")
    c.dpo.replay_sets = ("prompts",)
    return c
