"""The stages. Each makes one artifact or one model from earlier ones. It does nothing if its output is complete, and
continues from what is there if it is not. `table.py` has all of them in order."""

from selfreward_jax.stages.common import StageError

__all__ = ["StageError"]
