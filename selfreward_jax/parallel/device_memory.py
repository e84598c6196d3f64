"""How much memory a device of this machine has."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax

_elsewhere = False


@contextlib.contextmanager
def run_elsewhere() -> Iterator[None]:
    """In this context the memory of this machine does not count: the run is to be on another one."""
    global _elsewhere
    before, _elsewhere = _elsewhere, True
    try:
        yield
    finally:
        _elsewhere = before


def device_memory() -> tuple[int, str]:
    """Bytes of a device of this machine (0 if they are not known, or do not count), and its kind. CPU devices share the
    host's memory, to which its swap space counts."""
    device = jax.local_devices()[0]
    if _elsewhere:
        return 0, device.device_kind
    if device.platform == "cpu":
        return _host_memory() // jax.local_device_count(), "cpu"
    return (device.memory_stats() or {}).get("bytes_limit", 0), device.device_kind


def _host_memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):  # only Linux has this file
        if swap := re.search(r"^SwapTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE):
            total += int(swap[1]) * 1024
    return total
