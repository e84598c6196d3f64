"""Devices to compile for that need not exist: slices of TPUs, by libtpu; GPUs, by the CUDA plugin."""

import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from selfreward_jax.config import ConfigError
from selfreward_jax.memory.machines import CHIPS, GPUS, Machine, datasheet

# Answers to what libtpu would ask a cloud machine for. The last one lets several processes load libtpu.
_LIBTPU_ENV = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
GPUS_PER_HOST = 8


def target_devices(machine: Machine) -> list[Any]:
    """Devices of a machine to lower and compile for.

    Raises:
      ConfigError: what compiles for them is not installed, or there is no such slice.
    """
    jax.config.update("jax_platforms", "cpu")
    return _gpus(machine) if machine.platform == "gpu" else _slice(machine)


def _slice(machine: Machine) -> list[Any]:
    generation, _, shape = machine.name.partition(":")
    if not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise ConfigError(
            f"topology is {machine.name!r}; it must be a generation ({', '.join(CHIPS)}) and the shape of one slice, "
            f"such as v5p:4x4x4, or GPUs, such as h100:8"
        )
    os.environ |= _LIBTPU_ENV
    sides = [*map(int, shape.split("x")), 1][:3]
    options: dict[str, Any] = {"chips_per_host_bounds": [min(2, side) for side in sides[:2]] + [1]}  # at most 2 x 2
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # a chip's two cores are one device, as in a run
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=machine.name, **options).devices
    except Exception as error:  # the plugin's errors have no public types
        remedy = 'pip install "selfreward-jax[tpu]" brings libtpu' if "libtpu" in str(error) else "give another shape"
        raise ConfigError(f"topology {machine.name}: {_first_line(error)} ({remedy})") from None


def _gpus(machine: Machine) -> list[Any]:
    kind = machine.name.partition(":")[0]
    if kind not in GPUS:
        raise ConfigError(f"topology is {machine.name!r}; GPUs to compile for are {', '.join(GPUS)}")
    if machine.devices > GPUS_PER_HOST and machine.devices % GPUS_PER_HOST:
        raise ConfigError(f"topology is {machine.name!r}; more than {GPUS_PER_HOST} GPUs must be a multiple of it")
    hosts = -(-machine.devices // GPUS_PER_HOST)
    shape = f"1x{hosts}x{machine.devices // hosts}"
    try:
        description = topologies.get_topology_desc(platform="cuda", target_config=gpu_description(kind), topology=shape)
    except Exception as error:  # the plugin's errors have no public types
        remedy = 'pip install "selfreward-jax[cuda]" with jax 0.12 or later brings the compiler'
        raise ConfigError(f"topology {machine.name}: {_first_line(error)} ({remedy})") from None
    return description.devices


def gpu_description(kind: str) -> str:
    """XLA's `GpuTargetConfigProto` of a kind of GPU, as text. Limits without a figure are those of every kind."""
    gpu, rates = GPUS[kind], datasheet(kind, 1)
    major, minor = gpu.capability
    return f"""
        platform_name: "CUDA"
        device_description_str: "NVIDIA {kind.upper()}"
        dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 12 minor: 8 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          core_count: {gpu.cores}
          fpus_per_core: {gpu.lanes}
          threads_per_core_limit: {gpu.threads}
          threads_per_block_limit: 1024
          threads_per_warp: 32
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          shared_memory_per_core: {gpu.shared_memory << 10}
          shared_memory_per_block: {48 << 10}
          shared_memory_per_block_optin: {(gpu.shared_memory - (major > 7)) << 10}
          l2_cache_size: {gpu.cache << 20}
          clock_rate_ghz: {gpu.clock}
          memory_bandwidth: {rates.bandwidth:.0f}
          device_memory_size: {gpu.memory * 10**9}
        }}
    """


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
