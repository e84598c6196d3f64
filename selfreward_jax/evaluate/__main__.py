"""The door of `python -m selfreward_jax.evaluate`; the program is evaluation.py, above this floor."""

import sys

from selfreward_jax.evaluation import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
