"""Random keys of samples: from the stage's key, the row's id and the sample's number."""

import hashlib
from collections.abc import Sequence

import jax
import numpy as np


def stable_hash32(name: str) -> int:
    """A row id as a 32-bit number, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


@jax.jit
def _fold_in(key: jax.Array, rows: jax.Array, samples: jax.Array) -> jax.Array:
    fold_row_and_sample = lambda row, sample: jax.random.fold_in(jax.random.fold_in(key, row), sample)  # noqa: E731
    return jax.vmap(fold_row_and_sample)(rows, samples)


def sample_keys(key: jax.Array, row_ids: Sequence[str], num_samples: int) -> jax.Array:
    """Keys [P * G]: `key` folded with the row's id and the sample's index."""
    rows = np.repeat(np.array([stable_hash32(row_id) for row_id in row_ids], np.uint32), num_samples)
    return _fold_in(key, rows, np.tile(np.arange(num_samples, dtype=np.uint32), len(row_ids)))
