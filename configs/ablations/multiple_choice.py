"""Multiple choice: the judge picks one of five described grades instead of adding up points.

    python -m selfreward_jax.main --config=configs/ablations/multiple_choice.py --workdir=runs/multiple_choice

As configs/iter3.py in everything else, and with its scales.
In the embedded world EFT is written in that form: the same reasons without the adding up, then a grade.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M3, with this one change."""
    c = config.get_config(scale)
    c.iterations = 3
    c.judge.output_format = "choice"
    if c.judge.template == "judge_additive":
        c.judge.template = "judge_choice"
    return c
