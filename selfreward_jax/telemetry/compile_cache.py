"""Compiled programs: kept on disk from run to run, and counted."""

import hashlib
import os
import platform
from pathlib import Path
from typing import NamedTuple

import jax

_HIT = "/jax/compilation_cache/cache_hits"
_SECONDS = "/jax/core/compile/backend_compile_duration"
_counted = {_HIT: 0, "programs": 0, "seconds": 0.0}


class CompileCount(NamedTuple):
    """Programs that were compiled, and those that were read back instead; seconds that both took."""

    compiled: int
    cache_hits: int
    seconds: float

    def since(self, before: "CompileCount") -> "CompileCount":
        """What has come to it since then."""
        return CompileCount(*(now - then for now, then in zip(self, before, strict=True)))


def enable(directory: str) -> None:
    """Keeps what is compiled from now on below `directory` and reads it back from there; "" keeps nothing.

    A folder for each kind of processor: machine code for one need not run on another. JAX_COMPILATION_CACHE_DIR comes
    before `directory`. A folder that cannot be written costs a warning of JAX's, and time, but no run.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if not directory:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser() / _processor()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def default_directory() -> str:
    """Where programs are kept if nobody says otherwise: in the user's cache folder."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "selfreward_jax")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        said = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def count() -> CompileCount:
    """Since this module was imported."""
    return CompileCount(_counted["programs"] - _counted[_HIT], _counted[_HIT], _counted["seconds"])


def _event(name: str, **_: object) -> None:
    if name in _counted:
        _counted[name] += 1


def _duration(name: str, seconds: float, **_: object) -> None:
    if name == _SECONDS:
        _counted["programs"] += 1
        _counted["seconds"] += seconds


jax.monitoring.register_event_listener(_event)
jax.monitoring.register_event_duration_secs_listener(_duration)
