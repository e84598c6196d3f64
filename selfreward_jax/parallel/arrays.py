"""Arrays between the host and a mesh that may reach over several processes."""

from functools import cache
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


def reshard(tree: Any, shardings: Any, dtype: Any = None) -> Any:
    """The tree in another layout on the same devices, as `dtype` if given, without a copy through the host. One array
    after the other, so that what the move takes beside its result is what one array takes.

    This is how weights go from the layout of training to that of sampling, and back. Nothing is copied where nothing
    changes.
    """

    def one(x: jax.Array, sharding: Sharding) -> jax.Array:
        if sharding.is_equivalent_to(x.sharding, x.ndim) and x.dtype == (dtype or x.dtype):
            return x
        return jax.block_until_ready(reshard_fn(sharding, dtype)(x))

    return jax.tree.map(one, tree, shardings)


@cache
def reshard_fn(sharding: Sharding, dtype: Any = None) -> Any:
    """The jitted program that brings one array into a layout, as `dtype` if given."""
    return jax.jit(lambda x: x if dtype is None else x.astype(dtype), out_shardings=sharding)
