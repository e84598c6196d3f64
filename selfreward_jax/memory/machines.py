"""What a machine has: devices, and the memory of each."""

import math
import os
import re
from typing import NamedTuple

import jax

from selfreward_jax.config import ConfigError
from selfreward_jax.parallel.device_memory import device_memory
from selfreward_jax.parallel.mesh import num_slices

GIB = 1 << 30
CHIPS = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 96}  # GiB of memory of a device
DEVICES_PER_CHIP = {"tpu7x": 2}
GPUS = {"t4": 16, "l4": 24, "a100-40": 40, "a100": 80, "h100": 80, "h200": 141, "b200": 180}  # GB, as they are sold
GPU_SHARE = 0.75  # of a GPU's memory is taken by JAX
_TPU = re.compile(rf"({'|'.join(CHIPS)}):(\d+(?:x\d+){{0,2}})(?:\*(\d+))?")
_GPU = re.compile(rf"({'|'.join(GPUS)}|gpu):([1-9]\d{{0,4}})")


class Machine(NamedTuple):
    """Devices of one kind.

    name: for people, such as "v5e:4x4".
    platform: as JAX names it.
    devices: how many.
    memory: bytes of each; 0 if they are not known.
    slices: TPU slices that are joined by a slow network.
    """

    name: str
    platform: str
    devices: int
    memory: int
    slices: int = 1


def this_machine() -> Machine:
    """The devices of this process and of those it runs with."""
    memory, kind = device_memory()
    devices = jax.devices()
    return Machine(f"{len(devices)} x {kind}", devices[0].platform, len(devices), memory, num_slices(devices))


def parse_machine(text: str) -> Machine:
    """A machine that need not be here: GENERATION:AxB[xC] or GENERATION:CHIPS for a TPU slice, with *N for several;
    KIND:COUNT for GPUs, where the kind "gpu" has any memory.

    Raises:
      ConfigError: there is no such machine.
    """
    if match := _TPU.fullmatch(text):
        chips, slices = math.prod(map(int, match[2].split("x"))), int(match[3] or 1)
        if chips and slices:
            devices = chips * slices * DEVICES_PER_CHIP.get(match[1], 1)
            return Machine(text, "tpu", devices, CHIPS[match[1]] * GIB, slices)
    if match := _GPU.fullmatch(text):
        share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or GPU_SHARE)
        return Machine(text, "gpu", int(match[2]), int(GPUS.get(match[1], 0) * share * 10**9))
    raise ConfigError(
        f"machine is {text!r}; it must be a TPU slice ({', '.join(CHIPS)}), such as v5p:4x4x4, or GPUs "
        f"({', '.join(GPUS)}), such as h100:8"
    )
