"""New prompts by a fixed external writer instead of the model itself.

    python -m selfreward_jax.main --config=configs/ablations/external_prompts.py --workdir=runs/external_prompts

Everything else is as in configs/iter3.py, presets included.
Hardware: two CPU cores, under 2 GB of memory. Time: 6 to 8 minutes.

The writer is the toy task's generator. With your own data give a model folder or a working directory:
--config.prompts.writer=FOLDER.
Expected, over five seeds: M2 over M1 +83 points, no clear difference from the default.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(preset: str = "") -> ConfigDict:
    """The settings of `preset`, up to M3, with one change."""
    c = config.get_config(preset)
    c.iterations = 3
    c.prompts.writer = "world"
    return c
