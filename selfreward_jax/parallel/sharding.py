"""Shardings: from the logical axis names of a weight to the axes of the mesh."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logical axis -> mesh axis; axes not named here are not split. The first table is for training: each weight is shared
# by all devices of `fsdp` and gathered when it is used. The second is for sampling, where a weight is read once a
# token: gathering it each time would cost more than the product itself, so it stays where it is used.
TRAINING = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
SAMPLING = {name: axis for name, axis in TRAINING.items() if axis == "tensor"}
BATCH_AXES = ("replica", "data", "fsdp")  # batch rows are split over these


def param_shardings(declared: Any, mesh: Mesh, table: dict[str, str] = TRAINING) -> Any:
    """NamedShardings for a tree of weight declarations (each with `shape` and logical `axes`).

    Raises:
      ValueError: a mesh axis does not divide a dimension that it is to split; the message has the numbers.
    """

    def one(path: Any, weight: Any) -> NamedSharding:
        spec = [table.get(name) for name in weight.axes]
        for axis, name, size in zip(spec, weight.axes, weight.shape, strict=True):
            if axis and size % mesh.shape[axis]:
                raise ValueError(
                    f"{size} ({name} of the weight {path[-1].key}) is not divisible by the {mesh.shape[axis]} devices "
                    f"of the mesh axis {axis}: {_remedy(table, axis)}"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(one, declared, is_leaf=lambda x: hasattr(x, "axes"))


def _remedy(table: dict[str, str], axis: str) -> str:
    fields = (
        f"parallel.{axis}" if table is TRAINING else f"parallel.sample_{axis} (or, where that is 0, parallel.{axis})"
    )
    return f"set {fields} to a number that divides it"


def batch_sharding(mesh: Mesh, ndim: int, axis: int = 0) -> NamedSharding:
    """Splits dimension `axis` of an array of `ndim` dimensions over the axes that share rows."""
    spec: list[Any] = [None] * ndim
    spec[axis] = BATCH_AXES
    return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_divisor(mesh: Mesh) -> int:
    """Batch rows must be a multiple of this: the devices that rows are spread over."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `n`."""
    return -(-n // multiple) * multiple


def constrain(x: jax.Array, *spec: Any) -> jax.Array:
    """Holds `x` inside a jitted function to one mesh axis (or ROWS, or None) for each dimension, under `jax.set_mesh`.
    Without a mesh it is the identity. The compiler left alone may gather activations instead of weights."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def devices_in_use() -> int:
    """Devices of the mesh that a function is traced under; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size
