"""A process beside this one that works on what came with a model, and is ended if that takes too long.

A chat template is a program, and a damaged tokenizer can end the process that reads it, or never come to an end.
"""

import atexit
import contextlib
import hashlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

MAX_SECONDS = 5.0  # for one piece of work
START_SECONDS = 60.0  # until the process is there; a loaded machine is slow
AT_ONCE = 0.5  # seconds
MAX_MEMORY = 1 << 30  # bytes of the process
# What a large tokenizer may take on top: bytes, and seconds, for each byte of it.
MEMORY_PER_BYTE = 40
SECONDS_PER_BYTE = 1e-6
LARGE = 4_000_000  # bytes; after a larger tokenizer the process is ended, and its memory is free again

_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_tried: set[bytes] = set()  # digests of the tokenizers that can be used


def render(template: str, values: dict[str, Any]) -> str:
    """The rendered text of a template, as `rendering.render`.

    Raises:
      ValueError: it cannot be rendered, or takes too long or too much memory; the message says why.
    """
    return _work(MAX_SECONDS, memory=MAX_MEMORY, template=template, values=values)


def try_tokenizer(kind: str, data: bytes) -> None:
    """Reads and uses a tokenizer in the other process, as `trial.use_tokenizer`. Later calls with the same data are
    free.

    Raises:
      ValueError: it cannot be read, ends a process, or takes too long or too much memory; the message says why.
    """
    digest = hashlib.sha256(data).digest()
    if digest in _tried:
        return
    _work(
        MAX_SECONDS + SECONDS_PER_BYTE * len(data),
        memory=MAX_MEMORY + MEMORY_PER_BYTE * len(data),
        kind=kind,
        data=data.decode("latin-1"),
    )
    _tried.add(digest)
    if len(data) > LARGE:
        end()


def end() -> None:
    """Ends the process, if there is one."""
    global _process
    process, _process = _process, None
    if process is not None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):  # it closes what it could not write, too
                pipe.close()  # type: ignore[union-attr]


atexit.register(end)


def _work(seconds: float, **request: Any) -> str:
    line = json.dumps(request).encode() + b"\n"
    with _lock:
        was_there, start = _process is not None, time.monotonic()
        reply = _exchange(line, seconds)
        if reply is None and was_there and time.monotonic() - start < AT_ONCE:  # somebody may have ended it before
            reply = _exchange(line, seconds)
    if reply is None:
        raise ValueError("it ends the process that works on it, or takes too much memory")
    if "fault" in reply:
        raise ValueError(reply["fault"])
    return reply["text"]


def _start() -> subprocess.Popen[bytes]:
    """Starts the process. Its first line says that it is there."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "selfreward_jax.llm.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        env={**os.environ, "PYTHONPATH": path},
    )
    if not select.select([process.stdout], [], [], START_SECONDS)[0]:
        process.kill()
    os.read(process.stdout.fileno(), 1)  # type: ignore[union-attr]
    return process


def _exchange(request: bytes, seconds: float) -> dict[str, str] | None:
    """The reply of the process to one line; None if the process ends. If it gives none in time, it is ended."""
    global _process
    if _process is None:
        _process = _start()
    deadline, reply = time.monotonic() + seconds, b""
    try:
        _process.stdin.write(request)  # type: ignore[union-attr]
        _process.stdin.flush()  # type: ignore[union-attr]
        while not reply.endswith(b"\n"):
            if not select.select([_process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                end()
                return {"fault": f"it takes more than {seconds:.2g} s"}
            if not (chunk := os.read(_process.stdout.fileno(), 1 << 20)):  # type: ignore[union-attr]
                end()
                return None
            reply += chunk
    except BrokenPipeError:
        end()
        return None
    return json.loads(reply)
