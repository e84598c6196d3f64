"""Renders the chat templates that come with models, in a process beside this one that is ended if it takes too long."""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("template_worker.py")
MAX_SECONDS = 10.0  # for one rendering
_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None


def render(template: str, values: dict[str, Any]) -> str:
    """The rendered text of a template, as `template_worker.render`.

    Raises:
      ValueError: it cannot be rendered, or takes too long or too much memory; the message says why.
    """
    request = json.dumps({"template": template, "values": values}).encode() + b"\n"
    with _lock:
        was_there = _process is not None
        reply = _exchange(request)
        if reply is None and was_there:  # somebody may have ended it
            reply = _exchange(request)
    if reply is None:
        raise ValueError(f"it takes more than {MAX_SECONDS:g} s, or too much memory")
    if "fault" in reply:
        raise ValueError(reply["fault"])
    return reply["text"]


def end() -> None:
    """Ends the process, if there is one."""
    global _process
    if _process is not None:
        _process.kill()
        _process.wait()
        for pipe in (_process.stdin, _process.stdout):
            if pipe:
                pipe.close()
        _process = None


atexit.register(end)


def _exchange(request: bytes) -> dict[str, str] | None:
    """The reply of the process to one line. None if it gives none in time; then it is ended."""
    global _process
    if _process is None:
        # A session of its own: Ctrl-C is for this process, which then ends that one.
        _process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    deadline, reply = time.monotonic() + MAX_SECONDS, b""
    try:
        _process.stdin.write(request)  # type: ignore[union-attr]
        _process.stdin.flush()  # type: ignore[union-attr]
        while not reply.endswith(b"\n"):
            ready, _, _ = select.select([_process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(_process.stdout.fileno(), 1 << 20) if ready else b""  # type: ignore[union-attr]
            if not chunk:
                end()
                return None
            reply += chunk
    except BrokenPipeError:
        end()
        return None
    return json.loads(reply)
