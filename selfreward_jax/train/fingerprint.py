"""A hash of arrays that does not depend on their sharding, and changes with every single bit."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax.parallel.arrays import fetch

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprint(tree: Any) -> str:
    """32 hexadecimal digits of the names, shapes, dtypes and bits of all arrays of a tree.

    For each element, a bijection mixes the bits with the indices into 32 bits. These are summed, twice with different
    constants. The devices compute the sums without moving the arrays, and the order of summation does not matter. A
    change of one element is always detected; other changes are missed with probability 2^-64.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One array at a time: what comes from the host's memory must not fill the device's. And XLA's CPU client can hang
    # where more than 32 programs with collectives are in flight on simulated devices.
    sums = fetch([jax.block_until_ready(_sums(_to_device_memory(x))) for _, x in leaves])
    for (path, x), leaf_sums in zip(leaves, sums, strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {x.shape} {x.dtype} {leaf_sums.tolist()}\n".encode())
    return digest.hexdigest()[:32]


def _to_device_memory(x: jax.Array) -> jax.Array:
    """The array in device memory, if it is in the host's."""
    return jax.device_put(x, x.sharding.with_memory_kind(None)) if x.sharding.memory_kind == "pinned_host" else x


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
    """The two sums of an array, uint32 [2]."""
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    bits = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]).astype(jnp.uint32)

    def mixed_sum(constant: int) -> jax.Array:
        index_hash = jnp.full(x.shape, constant, jnp.uint32)
        for axis in range(x.ndim):
            index_hash = _mix(index_hash + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis))
        return jnp.sum(_mix(bits ^ index_hash), dtype=jnp.uint32)

    return jnp.stack([mixed_sum(0x9E3779B9), mixed_sum(0x85EBCA6B)])


def _mix(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: a bijection in which each output bit depends on all input bits."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
