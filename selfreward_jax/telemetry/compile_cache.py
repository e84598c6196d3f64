"""JAX's persistent compilation cache: where it is, and how much was compiled or read from it."""

import hashlib
import os
import platform
from pathlib import Path
from typing import NamedTuple

import jax

_CACHE_HITS = "/jax/compilation_cache/cache_hits"
_COMPILE_SECONDS = "/jax/core/compile/backend_compile_duration"
_totals = {_CACHE_HITS: 0, "programs": 0, "seconds": 0.0}


class CompileCount(NamedTuple):
    """Programs that were compiled, programs that were read from the cache, and the seconds of both together."""

    compiled: int
    cache_hits: int
    seconds: float

    def since(self, before: "CompileCount") -> "CompileCount":
        """The difference from an earlier count."""
        return CompileCount(*(now - then for now, then in zip(self, before, strict=True)))


def enable(directory: str | None = None, workdir: str = "") -> None:
    """Caches compiled programs below `directory` from now on, a folder or gs://BUCKET/FOLDER; "" disables this.

    By default it is in the user's cache folder; for a working directory in a bucket it is there, since the machines of
    such a run come and go. Each kind of processor has its own folder: machine code for one may not run on another. The
    environment variable JAX_COMPILATION_CACHE_DIR has priority over `directory`. If the folder is not writable, JAX
    warns and the run continues without the cache.
    """
    if directory is None:
        directory = f"{workdir.rstrip('/')}/compile_cache" if "://" in workdir else _default_directory()
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if "://" in (directory if given is None else given):
        # XLA would keep the results of its own searches beside it, in a local folder of that name.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if given is not None:
        return
    if not directory:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    jax.config.update("jax_compilation_cache_dir", os.path.join(directory, _processor_name()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _default_directory() -> str:
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return "" if folder.startswith("~") else os.path.join(folder, "selfreward_jax")  # this user has no home folder


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def count() -> CompileCount:
    """What was compiled since this module was imported."""
    return CompileCount(_totals["programs"] - _totals[_CACHE_HITS], _totals[_CACHE_HITS], _totals["seconds"])


def _on_event(name: str, **_: object) -> None:
    if name in _totals:
        _totals[name] += 1


def _on_duration(name: str, seconds: float, **_: object) -> None:
    if name == _COMPILE_SECONDS:
        _totals["programs"] += 1
        _totals["seconds"] += seconds


jax.monitoring.register_event_listener(_on_event)
jax.monitoring.register_event_duration_secs_listener(_on_duration)
