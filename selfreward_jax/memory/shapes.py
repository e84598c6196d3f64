"""A device program that is lowered from shapes, and the bytes of shapes with shardings."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Program(NamedTuple):
    """One device program.

    name: one of NAMES.
    shapes: the sizes that it is compiled for, as text.
    lowered: its lowering.
    bytes: bytes on each device that are known before compilation, by kind.
    resident_bytes: those of `bytes` that belong to arrays which exist while the program runs and are not its arguments.
    """

    name: str
    shapes: str
    lowered: jax.stages.Lowered
    bytes: dict[str, int]
    resident_bytes: int = 0


def with_shardings(tree: Any, shardings: Any) -> Any:
    """The shapes of a tree with the shardings of another one."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def bytes_per_device(tree: Any) -> int:
    """Bytes on each device of a tree of shapes with shardings."""
    leaves = [x for x in jax.tree.leaves(tree) if x.sharding is not None]
    sizes = (jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    return sum(sizes)
