"""python -m selfreward_jax COMMAND ... is the same as selfreward-jax COMMAND ..."""

import sys

from selfreward_jax.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
