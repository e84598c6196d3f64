"""Arrays between the host and a mesh that may reach over several processes."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding


def put(x: Any, sharding: Sharding) -> jax.Array:
    """Places an array that every process holds whole; each puts its own devices' parts."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def fetch(tree: Any) -> Any:
    """The whole arrays of a tree, as numpy arrays, on every process."""
    if all(x.is_fully_addressable for x in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def moved(tree: Any, shardings: Any, dtype: Any = None) -> Any:
    """The tree in another layout on the same devices, as `dtype` if given: one program, no copy through the host.

    This is how weights go from the layout of training to that of sampling, and back. Nothing is copied where nothing
    changes.
    """
    same = lambda x, s: s.is_equivalent_to(x.sharding, x.ndim) and x.dtype == (dtype or x.dtype)  # noqa: E731
    if all(jax.tree.leaves(jax.tree.map(same, tree, shardings))):
        return tree
    return moving(shardings, dtype)(tree)


def moving(shardings: Any, dtype: Any = None) -> Any:
    """The jitted program of `moved`."""
    return jax.jit(partial(_cast, dtype), out_shardings=shardings)


def _cast(dtype: Any, tree: Any) -> Any:
    return tree if dtype is None else jax.tree.map(lambda x: x.astype(dtype), tree)
