"""The door of `python -m selfreward_jax.report`; the program is reporting.py, above this floor."""

import sys

from selfreward_jax.reporting import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
