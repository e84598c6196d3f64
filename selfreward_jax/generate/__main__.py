"""The door of `python -m selfreward_jax.generate`; the program is answer.py, above this floor."""

import sys

from selfreward_jax.answer import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
