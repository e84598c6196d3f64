"""Device meshes: one for training, and another arrangement of the same devices for sampling."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

# replica: full copies that communicate once a step, over the slow network between slices.
# data: full copies within a slice.
# fsdp: devices that share each weight and gather it when it is used.
# tensor: devices that share each matrix product.
AXES = ("replica", "data", "fsdp", "tensor")


def make_mesh(fsdp: int = 1, tensor: int = 1, replicas: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices (by default all) as (replica, data, fsdp, tensor). The size of `data` follows from the others.

    Raises:
      ValueError: the number of devices is not divisible by replicas * fsdp * tensor, or a TPU has another number of
        slices than of replicas; the message has the numbers.
    """
    devices = jax.devices() if devices is None else list(devices)
    divisor = replicas * fsdp * tensor
    if len(devices) % divisor:
        raise ValueError(
            f"{len(devices)} devices are not divisible by parallel.replicas {replicas} x parallel.fsdp {fsdp} x "
            f"parallel.tensor {tensor} = {divisor}: choose numbers whose product divides {len(devices)}"
        )
    within_replica = (len(devices) // divisor, fsdp, tensor)
    if (slices := num_slices(devices)) > 1:
        if slices != replicas:
            raise ValueError(
                f"parallel.replicas is {replicas}, but the devices are in {slices} slices: set it to {slices}"
            )
        # Fast links within a slice for the last three axes, the slow network between slices for the first.
        arranged = mesh_utils.create_hybrid_device_mesh(
            (1, *within_replica), (replicas, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        # An axis of the mesh need not be a side of the slice: 4 x 4 chips can be arranged as 8 x 2 too.
        arranged = mesh_utils.create_device_mesh((replicas, *within_replica), devices, allow_split_physical_axes=True)
    return _mesh(arranged)


def num_slices(devices: Sequence[Any]) -> int:
    """The number of TPU slices; 1 for other devices, whose `slice_index` is the number of the host."""
    return max(1, len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}))


def sampling_mesh(mesh: Mesh, tensor: int = 0) -> Mesh:
    """The devices of `mesh` in the same order, arranged so that sampling gathers no weights.

    Args:
      mesh: the training mesh.
      tensor: devices that share each matrix product; the others share the batch rows. 0: as many as in `mesh`.

    Raises:
      ValueError: `tensor` does not divide the number of devices in a replica; the message has the numbers.
    """
    replicas = mesh.shape["replica"]
    tensor = tensor or mesh.shape["tensor"]
    per_replica = mesh.size // replicas
    if per_replica % tensor:
        raise ValueError(
            f"{per_replica} devices of a replica are not divisible by parallel.sampling_tensor {tensor}: "
            f"choose a number that divides {per_replica}"
        )
    return _mesh(mesh.devices.reshape(replicas, per_replica // tensor, 1, tensor))


def _mesh(devices: np.ndarray) -> Mesh:
    # Auto axes let the compiler propagate shardings through Linen; explicit axes, the default, do not.
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
