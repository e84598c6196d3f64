"""The device meshes: one for training, and the same devices in another arrangement for sampling."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

# replica: whole copies that meet once a step, over the slow network between slices; data: whole copies within one;
# fsdp: devices that share each weight and gather it when it is used; tensor: devices that share each matrix product.
AXES = ("replica", "data", "fsdp", "tensor")


def make_mesh(fsdp: int = 1, tensor: int = 1, replicas: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices (all there are, if not given) as (replica, data, fsdp, tensor); `data` takes what the others leave.

    Raises:
      ValueError: the number of devices is not divisible by replicas * fsdp * tensor, or the slices of a TPU are not
        as many as the replicas; the message has the numbers.
    """
    devices = jax.devices() if devices is None else list(devices)
    shared = replicas * fsdp * tensor
    if len(devices) % shared:
        raise ValueError(
            f"{len(devices)} devices are not divisible by parallel.replicas {replicas} x parallel.fsdp {fsdp} x "
            f"parallel.tensor {tensor} = {shared}: choose numbers whose product divides {len(devices)}"
        )
    within = (len(devices) // shared, fsdp, tensor)
    if (found := num_slices(devices)) > 1:
        if found != replicas:
            raise ValueError(f"parallel.replicas is {replicas}, but the devices are in {found} slices: set it so")
        # Fast links within a slice for the last three axes, the slow network between slices for the first.
        arranged = mesh_utils.create_hybrid_device_mesh(
            (1, *within), (replicas, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        # An axis of the mesh need not be a side of the slice: 16 chips of 4 x 4 serve as 8 x 2 too.
        arranged = mesh_utils.create_device_mesh((replicas, *within), devices, allow_split_physical_axes=True)
    return _mesh(arranged)


def num_slices(devices: Sequence[Any]) -> int:
    """How many TPU slices the devices are in; 1 of other devices, of which `slice_index` tells the hosts."""
    return max(1, len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}))


def sampling_mesh(mesh: Mesh, tensor: int = 0) -> Mesh:
    """The devices of `mesh` in the same order, with `tensor` of them sharing each matrix product (0: as many as in
    `mesh`) and the others sharing the rows: no weight is gathered while text is sampled.

    Raises:
      ValueError: `tensor` does not divide the devices of a replica; the message has the numbers.
    """
    replicas = mesh.shape["replica"]
    tensor = tensor or mesh.shape["tensor"]
    of_replica = mesh.size // replicas
    if of_replica % tensor:
        raise ValueError(
            f"{of_replica} devices of a replica are not divisible by parallel.sampling_tensor {tensor}: choose a number "
            f"that divides {of_replica}"
        )
    return _mesh(mesh.devices.reshape(replicas, of_replica // tensor, 1, tensor))


def _mesh(devices: np.ndarray) -> Mesh:
    # Auto axes: the compiler propagates shardings through Linen; explicit axes, the default, do not allow it.
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
