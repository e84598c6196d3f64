"""Shardings: from the logical axis names of a weight to the axes of the mesh."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logical axis -> mesh axis; axes not named here are not split. In training each weight is sharded over `fsdp` and
# gathered when it is used. Sampling reads each weight once a token, and gathering it would cost more than the product
# itself. So for sampling weights are not sharded over `fsdp`.
TRAINING = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
TRAINING |= {"experts": "tensor"}  # each device has some experts as a whole
SAMPLING = {name: axis for name, axis in TRAINING.items() if axis == "tensor"}
BATCH_AXES = ("replica", "data", "fsdp")  # mesh axes that share the rows of a batch


def param_shardings(specs: Any, mesh: Mesh, table: dict[str, str] = TRAINING) -> Any:
    """NamedShardings for a tree of parameter specs, each with `shape` and logical `axes`.

    Raises:
      ValueError: a dimension is not divisible by the size of its mesh axis; the message has the numbers.
    """

    def sharding_of(path: Any, param: Any) -> NamedSharding:
        spec = [table.get(name) for name in param.axes]
        for axis, name, size in zip(spec, param.axes, param.shape, strict=True):
            if axis and size % mesh.shape[axis]:
                raise ValueError(
                    f"{size} ({name} of the weight {path[-1].key}) is not divisible by the {mesh.shape[axis]} devices "
                    f"of the mesh axis {axis}: {_remedy(table, axis)}"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding_of, specs, is_leaf=lambda x: hasattr(x, "axes"))


def _remedy(table: dict[str, str], axis: str) -> str:
    field = f"parallel.{axis}"
    if table is not TRAINING:
        field = f"parallel.sampling_{axis} (or {field}, if that is 0)"
    return f"set {field} to a number that divides it"


def batch_sharding(mesh: Mesh, ndim: int, axis: int = 0) -> NamedSharding:
    """Splits dimension `axis` of an array of `ndim` dimensions over BATCH_AXES."""
    spec: list[Any] = [None] * ndim
    spec[axis] = BATCH_AXES
    return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_divisor(mesh: Mesh) -> int:
    """Batch sizes must be a multiple of this: the number of devices that share batch rows."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `n`."""
    return -(-n // multiple) * multiple


def constrain(x: jax.Array, *spec: Any) -> jax.Array:
    """Constrains the sharding of `x` in a jitted function, under `jax.set_mesh`; without a mesh the identity.

    Without this the compiler may gather activations instead of weights.

    Args:
      x: an array.
      *spec: a mesh axis, BATCH_AXES or None for each dimension.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    sizes = zip(spec, x.shape[: len(spec)], strict=True)
    spec = tuple(axes_of_rows(size) if axes == BATCH_AXES else axes for axes, size in sizes)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def free_axes(axes: tuple[str, ...] = BATCH_AXES) -> tuple[str, ...]:
    """The axes that no surrounding `shard_map` has split arrays over already."""
    return tuple(axis for axis in axes if axis not in jax.sharding.get_abstract_mesh().manual_axes)


def axes_of_rows(num_rows: int) -> tuple[str, ...]:
    """The mesh axes that so many rows are split over: the free ones of BATCH_AXES, if they divide the rows.

    Else none: a prefix that prompts share is one row, which every device computes.
    """
    axes, mesh = free_axes(), jax.sharding.get_abstract_mesh()
    return axes if num_rows % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def devices_in_use() -> int:
    """The number of devices in the mesh that a function is traced under; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def on_own_rows(
    attend_fn: Callable[..., jax.Array], q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *of_rows: Any
) -> jax.Array:
    """An attention function of each device's rows and heads; its result has the shape of the queries.

    Args:
      attend_fn: called with what follows.
      q_BTNH, k_BSKH, v_BSKH: queries, keys and values.
      *of_rows: arrays, or trees of them, with an entry for each row.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return attend_fn(q_BTNH, k_BSKH, v_BSKH, *of_rows)
    axes = axes_of_rows(len(q_BTNH))
    heads, rows = PartitionSpec(axes, None, "tensor"), PartitionSpec(axes)
    in_specs = (heads, heads, heads, *[rows] * len(of_rows))
    # Neither Pallas nor cuDNN declares how its results vary over the mesh, so the check must be disabled.
    on_each = jax.shard_map(attend_fn, in_specs=in_specs, out_specs=heads, check_vma=False)
    return on_each(q_BTNH, k_BSKH, v_BSKH, *of_rows)
