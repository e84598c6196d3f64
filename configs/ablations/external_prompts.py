"""New prompts by a fixed writer from outside instead of the model itself.

    python -m selfreward_jax.main --config=configs/ablations/external_prompts.py --workdir=runs/external_prompts

As configs/iter3.py in everything else, and with its scales.
The writer is the embedded world's own. With your own seeds name another, a folder or a working directory:
--config.prompts.writer=FOLDER.
"""

from ml_collections import ConfigDict

from selfreward_jax import config


def get_config(scale: str = "") -> ConfigDict:
    """The settings of `scale`, up to M3, with this one change."""
    c = config.get_config(scale)
    c.iterations = 3
    c.prompts.writer = "world"
    return c
