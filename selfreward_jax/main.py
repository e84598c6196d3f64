"""python -m selfreward_jax.main --config=configs/iter2.py[:scale] [--workdir=DIR] [--config.FIELD=VALUE ...]"""

import sys

from selfreward_jax import command, config, loop
from selfreward_jax.llm.hf_config import HubError
from selfreward_jax.method.seeds import SeedError
from selfreward_jax.method.templates import TemplateError
from selfreward_jax.stages import StageError
from selfreward_jax.storage import StorageError
from selfreward_jax.train.trainer import Diverged


def main(argv: list[str]) -> int:
    """Runs the loop. Returns the exit code: 0, or 2 after one line that says what to mend."""
    if {"--help", "-h", "--helpfull"} & set(argv):
        print(f"{__doc__}\nSettings, each with its unit and default: selfreward_jax/config.py")
        return 0
    try:
        loop.run(*command.parse(argv))
    except (config.ConfigError, SeedError, StorageError, TemplateError, HubError, StageError, Diverged) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
