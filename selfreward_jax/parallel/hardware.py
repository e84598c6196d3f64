"""What programs are written for: the platform, and of NVIDIA's GPUs the generation."""

import re
from typing import Any, NamedTuple


class Hardware(NamedTuple):
    """The kind of a device.

    platform: as JAX names it: cpu, gpu or tpu.
    capability: an NVIDIA GPU's compute capability, such as (9, 0); (0, 0) for all others.
    """

    platform: str
    capability: tuple[int, int] = (0, 0)


def hardware_of(device: Any) -> Hardware:
    """The kind of a JAX device."""
    capability = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return Hardware(device.platform, (int(capability[1]), int(capability[2])) if capability else (0, 0))
