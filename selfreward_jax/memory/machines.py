"""What a machine has: devices, and the memory of each."""

import math
import os
import re
from typing import NamedTuple

import jax

from selfreward_jax.config import ConfigError
from selfreward_jax.parallel.device_memory import device_memory
from selfreward_jax.parallel.hardware import Hardware, hardware_of
from selfreward_jax.parallel.mesh import num_slices

GIB = 1 << 30
CHIPS = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 96}  # GiB of memory of a device
TPU_KINDS = {
    "tpu7x": "tpu7x",
    "v6": "v6e",
    "v5 lite": "v5e",
    "v5e": "v5e",
    "tpu v5": "v5p",
    "v4": "v4",
}  # as JAX has it
DEVICES_PER_CHIP = {"tpu7x": 2}


class GpuModel(NamedTuple):
    """A kind of GPU, from NVIDIA's architecture papers.

    memory: GB, as it is sold. capability: of CUDA. cores: streaming multiprocessors. lanes: float32 units of a core.
    threads: of a core, at most. shared_memory: KiB of a core. cache: MiB of the second level. clock: GHz.
    """

    memory: int
    capability: tuple[int, int]
    cores: int
    lanes: int
    threads: int
    shared_memory: int
    cache: int
    clock: float


GPUS = {
    "t4": GpuModel(16, (7, 5), 40, 64, 1024, 64, 4, 1.59),
    "l4": GpuModel(24, (8, 9), 58, 128, 1536, 100, 48, 2.04),
    "a100-40": GpuModel(40, (8, 0), 108, 64, 2048, 164, 40, 1.41),
    "a100": GpuModel(80, (8, 0), 108, 64, 2048, 164, 40, 1.41),
    "h100": GpuModel(80, (9, 0), 132, 128, 2048, 228, 50, 1.98),
    "h200": GpuModel(141, (9, 0), 132, 128, 2048, 228, 50, 1.98),
    "b200": GpuModel(180, (10, 0), 148, 128, 2048, 228, 126, 1.97),
}
GPU_SHARE = 0.75  # of a GPU's memory is taken by JAX
ANY_GPU = (9, 0)  # the capability of a GPU that is not named
# Datasheets: dense bfloat16 FLOP/s, and bytes/s of a device's memory. The first name that a device's kind contains.
DATASHEETS = {
    "b200": (2250e12, 8.0e12),
    "h200": (989e12, 4.8e12),
    "h100": (989e12, 3.35e12),
    "a100": (312e12, 1.6e12),
    "l40s": (362e12, 0.864e12),
    "l40": (181e12, 0.864e12),
    "l4": (121e12, 0.3e12),
    "t4": (65e12, 0.32e12),
    "tpu7x": (1153e12, 3.69e12),
    "v6": (918e12, 1.64e12),
    "v5p": (459e12, 2.77e12),
    "v5 lite": (197e12, 0.82e12),
    "v5e": (197e12, 0.82e12),
    "tpu v5": (459e12, 2.77e12),  # a v5p, as some versions of JAX name it
    "v4": (275e12, 1.23e12),
}
_TPU = re.compile(rf"({'|'.join(CHIPS)}):(\d+(?:x\d+){{0,2}})(?:\*(\d+))?")
_GPU = re.compile(rf"({'|'.join(GPUS)}|gpu):([1-9]\d{{0,4}})")


class Rates(NamedTuple):
    """What some devices do together.

    devices: how many they are.
    flops: of matrix products in a second.
    bandwidth: bytes/s of their memory.
    source: where the two come from.
    """

    devices: int
    flops: float
    bandwidth: float
    source: str

    def of_one(self) -> "Rates":
        """The rates of each of them."""
        return Rates(1, self.flops / self.devices, self.bandwidth / self.devices, self.source)


def datasheet(kind: str, devices: int) -> Rates | None:
    """The rates of `devices` devices, by their kind as JAX names it or by a machine's name; None for an unknown one."""
    rates = next((rates for name, rates in DATASHEETS.items() if name in kind.lower()), None)
    if rates is None:
        return None
    return Rates(devices, devices * rates[0], devices * rates[1], f"the datasheet of {devices} x {kind}")


class Machine(NamedTuple):
    """Devices of one kind.

    name: for people, such as "v5e:4x4".
    hardware: their kind.
    devices: how many.
    memory: bytes of each; 0 if they are not known.
    slices: TPU slices that are joined by a slow network.
    """

    name: str
    hardware: Hardware
    devices: int
    memory: int
    slices: int = 1

    @property
    def platform(self) -> str:
        """As JAX names it."""
        return self.hardware.platform


def this_machine() -> Machine:
    """The devices of this process and of those it runs with."""
    memory, kind = device_memory()
    devices = jax.devices()
    if memory and (chip := next((chip for name, chip in TPU_KINDS.items() if name in kind.lower()), "")):
        memory = CHIPS[chip] * GIB  # as `parse_machine`, so that a check elsewhere chooses the same
    return Machine(f"{len(devices)} x {kind}", hardware_of(devices[0]), len(devices), memory, num_slices(devices))


def parse_machine(text: str, field: str = "machine") -> Machine:
    """A machine that need not be here: GENERATION:AxB[xC] or GENERATION:CHIPS for a TPU slice, with *N for several;
    KIND:COUNT for GPUs, where the kind "gpu" has any memory. `field` is what the user calls it.

    Raises:
      ConfigError: there is no such machine.
    """
    if match := _TPU.fullmatch(text):
        chips, slices = math.prod(map(int, match[2].split("x"))), int(match[3] or 1)
        if chips and slices:
            devices = chips * slices * DEVICES_PER_CHIP.get(match[1], 1)
            return Machine(text, Hardware("tpu"), devices, CHIPS[match[1]] * GIB, slices)
    if match := _GPU.fullmatch(text):
        share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or GPU_SHARE)
        if match[1] == "gpu":
            return Machine(text, Hardware("gpu", ANY_GPU), int(match[2]), 0)
        gpu = GPUS[match[1]]
        return Machine(text, Hardware("gpu", gpu.capability), int(match[2]), int(gpu.memory * share * 10**9))
    raise ConfigError(
        f"{field} is {text!r}; it must be a TPU slice ({', '.join(CHIPS)}), such as v5p:4x4x4, or GPUs "
        f"({', '.join(GPUS)}), such as h100:8"
    )
