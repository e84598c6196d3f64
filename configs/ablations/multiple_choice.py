"""Multiple choice: the judge picks one of five described grades instead of adding up points.

    python -m selfreward_jax.main --config=configs/ablations/multiple_choice.py --workdir=runs/multiple_choice

Everything else is as in configs/iter3.py, presets included.
Hardware: two CPU cores, under 2 GB of memory. Time: 6 to 8 minutes.

In the toy task EFT has that format: the same reasons without the adding up, then a grade.
Expected, over five seeds: M1's judge orders .972 of pairs correctly (default .988), M2 over M1 +78 points.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(preset: str = "") -> ConfigDict:
    """The settings of `preset`, up to M3, with one change."""
    c = config.get_config(preset)
    c.iterations = 3
    c.judge.output_format = "choice"
    if c.judge.template == "judge_additive":
        c.judge.template = "judge_choice"
    return c
