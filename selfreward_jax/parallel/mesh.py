"""The device mesh."""

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def make_mesh(fsdp: int = 1, tensor: int = 1) -> Mesh:
    """All devices as (data, fsdp, tensor); `data` takes what the other two leave.

    Raises:
      ValueError: the number of devices is not divisible by fsdp * tensor.
    """
    devices = jax.device_count()
    if devices % (fsdp * tensor):
        raise ValueError(f"{devices} devices are not divisible by parallel.fsdp {fsdp} x parallel.tensor {tensor}")
    shape = (devices // (fsdp * tensor), fsdp, tensor)
    # Auto axes: the compiler propagates shardings through Linen; explicit axes, the default, do not allow it.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
