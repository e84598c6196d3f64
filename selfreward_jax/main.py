"""python -m selfreward_jax.main --config=configs/iter2.py[:scale] [--workdir=DIR] [--config.FIELD=VALUE ...]"""

import sys

from absl import app, flags
from ml_collections import config_flags

from selfreward_jax import config, loop
from selfreward_jax.method.seeds import SeedError
from selfreward_jax.stages import StageError
from selfreward_jax.train.trainer import Diverged

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings: a file, or file:scale.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/default", "Where the run lives: a folder, or gs://...")


def main(argv: list[str]) -> None:
    """Runs the loop."""
    del argv
    loop.run(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
