"""events.jsonl: what happened in a run, one JSON object a line: starts, training metrics, and where the time went."""

import json
import math
import os
import resource
import sys
import time
from typing import Any

from etils import epath

from selfreward_jax import foreign, storage
from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import timing

EVENTS_FILE = "events.jsonl"


class EventLog:
    """The log of one working directory. Of several processes the primary writes it.

    Args:
      workdir: the working directory. Nothing is written before the first event.
    """

    TIME_EVERY = 5.0  # seconds between lines that say where the time went
    UPLOAD_EVERY = 30.0  # seconds between uploads to an object store, which cannot append

    def __init__(self, workdir: epath.Path) -> None:
        self.path = workdir / EVENTS_FILE
        self._pending: list[str] = []
        self._uploaded = self._timed = time.monotonic()
        self._size_before: int | None = None  # 0 if it did not exist; None before this process has written to it

    def event(self, **fields: Any) -> None:
        """Adds a line. Numbers that JSON does not know (NaN, infinity) become texts."""
        if not processes.is_primary():
            return
        fields = {k: repr(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
        self._pending.append(json.dumps({"time": round(time.time(), 3), **fields}) + "\n")
        if not storage.is_remote(self.path) or time.monotonic() - self._uploaded > self.UPLOAD_EVERY:
            self._write()

    def note_time(self) -> None:
        """Adds lines with the seconds spent since the last ones, at most every `TIME_EVERY` seconds."""
        if time.monotonic() - self._timed > self.TIME_EVERY:
            self._add_time()

    def flush(self) -> None:
        """Writes all lines, and with them the seconds spent and the peak memory of this process."""
        self._add_time()
        self._write()

    def discard(self) -> None:
        """Leaves the file as it was before a start that leaves no trace."""
        if self._size_before is None or not processes.is_primary():
            return
        if self._size_before == 0 or storage.is_remote(self.path):
            storage.remove(self.path)
        else:
            os.truncate(self.path, self._size_before)
        self._pending = []

    def _add_time(self) -> None:
        self._timed = time.monotonic()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        for line in timing.drain():
            self.event(**line, peak_memory_bytes=peak)

    def _write(self) -> None:
        if not self._pending or not processes.is_primary():
            return
        lines = "".join(self._pending)
        if self._size_before is None:
            self._size_before = foreign.size(self.path) if self.path.exists() else 0
        if storage.is_remote(self.path):
            self.path.write_text((self.path.read_text() if self.path.exists() else "") + lines)
        else:
            data = lines.encode(errors="backslashreplace")
            with storage.translate_os_errors(self.path, len(data)), storage.open_to_append(self.path) as file:
                file.write(data)
        self._pending, self._uploaded = [], time.monotonic()
