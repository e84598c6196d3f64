"""What processes of the tests, and the programs that they start, have in their environment. Imported before JAX is."""

import atexit
import importlib.util
import mmap
import os
import shutil
import tempfile
from pathlib import Path

# They make compiling three times as fast.
FAST = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}


def known(name: str) -> bool:
    """Whether XLA has a flag of this name: it ends a process that gives one which it does not know."""
    path = Path(importlib.util.find_spec("jaxlib").origin).parent / "libjax_common.so"
    with path.open("rb") as library, mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(name.encode()) >= 0


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process that has so many simulated devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # tests compile many small programs and run each of them once
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = " ".join(f"--{name}={value}" for name, value in FAST.items() if known(name))
# What tests compile, all workers share for as long as they run, and leave nothing behind.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="selfreward_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
