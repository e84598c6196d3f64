"""What arrays hold, in a few digits: the same however they are laid out, another if a single bit is."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax.parallel.arrays import fetch

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprint(tree: Any) -> str:
    """32 hexadecimal digits of the names, shapes, dtypes and bits of all arrays of a tree.

    Each element's bits are mixed with its indices, one to one, into 32 bits, and these are added, twice with different
    constants. So the sums, which the devices make where the arrays lie, do not depend on the order; a change of one
    element is always seen, any other change but once in 2^64.
    """
    found = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = fetch([_sums(_near(x)) for _, x in leaves])
    for (path, x), of_leaf in zip(leaves, sums, strict=True):
        found.update(f"{jax.tree_util.keystr(path)} {x.shape} {x.dtype} {of_leaf.tolist()}\n".encode())
    return found.hexdigest()[:32]


def _near(x: jax.Array) -> jax.Array:
    """An array in the devices' memory, if it lies in the host's."""
    return jax.device_put(x, x.sharding.with_memory_kind(None)) if x.sharding.memory_kind == "pinned_host" else x


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
    """Two sums, uint32 [2]."""
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    bits = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]).astype(jnp.uint32)

    def one(constant: int) -> jax.Array:
        at = jnp.full(x.shape, constant, jnp.uint32)
        for axis in range(x.ndim):
            at = _mix(at + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis))
        return jnp.sum(_mix(bits ^ at), dtype=jnp.uint32)

    return jnp.stack([one(0x9E3779B9), one(0x85EBCA6B)])


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's last step: one to one, and each bit of what comes out depends on all that went in."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
