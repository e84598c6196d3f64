"""Pretraining and SFT on IFT + EFT: M1, and its evaluation.

    python -m selfreward_jax.main --config=configs/iter1.py --workdir=runs/a

Hardware: two CPU cores, under 2 GB of memory. Time: about 3 minutes.
Expected: an oracle mean of about 2.7 of 5 (the seeds are of mixed quality), one answer in twenty perfect, and a judge
that orders 96 to 99 % of pairs correctly.

Presets, after a colon:
  tiny            the toy task (default)
  micro           a check of a minute
  scratch         your own data, a model of a million parameters from random weights:
                  --config.data.ift=FILE --config.data.eft=FILE
  smollm2_135m, gemma3_270m          one GPU or TPU chip of 16 GB
  qwen3_0_6b, gemma3_1b, tinyllama   one of 80 GB
  smollm3_3b      4 of 80 GB
  llama3_8b, qwen3_8b    8 of 80 GB
  llama2_70b      64 of 95 GB; the paper's model and rates
All from smollm2_135m on need your own data. They download their model from the hub, or take a folder:
--config.model.init=FOLDER. They have not been run on such machines yet.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(preset: str = "") -> ConfigDict:
    """The settings of `preset`, up to M1."""
    c = config.get_config(preset)
    c.iterations = 1
    return c
