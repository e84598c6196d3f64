"""Shardings: from the logical axis names of a weight to the axes of the mesh."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logical axis -> mesh axis; axes not named here are not split.
RULES = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
ROWS = ("data", "fsdp")  # batch rows are split over both


def declared_shardings(declared: Any, mesh: Mesh) -> Any:
    """NamedShardings for a tree of weight declarations (each with `shape` and logical `axes`).

    A dimension that its mesh axis does not divide stays whole.
    """

    def one(weight: Any) -> NamedSharding:
        spec = [
            axis if (axis := RULES.get(name)) and size % mesh.shape[axis] == 0 else None
            for name, size in zip(weight.axes, weight.shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(one, declared, is_leaf=lambda x: hasattr(x, "axes"))


def by_row(mesh: Mesh, ndim: int, axis: int = 0) -> NamedSharding:
    """Splits dimension `axis` of an array of `ndim` dimensions over the data axes."""
    spec: list[Any] = [None] * ndim
    spec[axis] = ROWS
    return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_multiple(mesh: Mesh) -> int:
    """Batch rows must be a multiple of this: the devices that rows are spread over."""
    size = 1
    for axis in ROWS:
        size *= mesh.shape[axis]
    return size
