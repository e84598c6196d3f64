"""Array transfers between the host and a mesh, which may span several processes."""

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding


def put(x: Any, sharding: Sharding) -> jax.Array:
    """Puts an array on devices. Every process holds the full array and puts the shards of its own devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def fetch(tree: Any) -> Any:
    """The full arrays of a tree, as numpy arrays, on every process."""
    if all(x.is_fully_addressable for x in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def reshard(tree: Any, shardings: Any, dtype: Any = None) -> Any:
    """Reshards a tree on the same devices, without a copy through the host; casts to `dtype` if given.

    Weights move this way between the shardings of training and sampling. Arrays move one at a time, so the extra
    memory is that of one array. An array whose sharding and dtype do not change is not copied.
    """

    def reshard_array(x: jax.Array, sharding: Sharding) -> jax.Array:
        if sharding.is_equivalent_to(x.sharding, x.ndim) and x.dtype == (dtype or x.dtype):
            return x
        return jax.block_until_ready(reshard_fn(sharding, dtype)(x))

    return jax.tree.map(reshard_array, tree, shardings)


@cache
def reshard_fn(sharding: Sharding, dtype: Any = None) -> Any:
    """The jitted function that reshards one array; casts to `dtype` if given."""
    return jax.jit(lambda x: x if dtype is None else x.astype(dtype), out_shardings=sharding)
