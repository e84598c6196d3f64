"""python -m selfreward_jax.main --config=configs/iter2.py[:PRESET] ... is the same as selfreward-jax run."""

import sys
from collections.abc import Sequence

from selfreward_jax.cli import program


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the training loop with these options, by default those of this process. Exit codes as in `cli.run`."""
    return program.main(["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
