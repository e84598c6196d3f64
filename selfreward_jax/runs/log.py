"""events.jsonl: what happened in a run, one JSON object a line: starts, training metrics, and where the time went.

Each start is a line with the hash of its settings, and of those before it. So a log that another run wrote is known.
"""

import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from selfreward_jax import foreign, storage
from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import timing

EVENTS_FILE = "events.jsonl"
MAX_LOG = 1 << 34  # bytes
MAX_NUMBER = 1e30  # of a metric
# What readers of events rely on.
_TYPES = {"begins": bool, "committed": bool, "seconds": dict, "peak_memory_bytes": int, "step": int}
_TYPES |= dict.fromkeys(("model", "stage", "stopped", "settings", "before"), str)
_NAME = re.compile(r"[\w ./-]{0,100}", re.ASCII)  # of a model or a stage
_SURROGATE = re.compile("[\ud800-\udfff]")


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

    def begin(self, settings: str, before: str) -> None:
        """Adds the line of a start. A log of another run is quarantined.

        Args:
          settings: the hash of the settings.
          before: the hash of the settings that the run had before; the same where they have not changed.
        """
        last = processes.broadcast_from_primary(lambda: _last_begin(self.path))
        if last and before not in last:
            moved = storage.quarantine(self.path)
            storage.warn(f"{self.path} is of another run: quarantined as {moved}; the log begins anew")
        self.event(begins=True, settings=settings, before=before)

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
            with storage.translate_os_errors(self.path, len(data)):
                torn = _is_torn(self.path)  # by a kill; what is appended to it would be lost with it
                with storage.open_to_append(self.path) as file:
                    file.write(b"\n" * torn + data)
        self._pending, self._uploaded = [], time.monotonic()


def read_events(log: epath.Path) -> Iterator[dict[str, Any]]:
    """The events of a log; none if there is no log. What is no event of ours is left out, such as a torn line."""
    try:
        lines = foreign.read_bytes(log, MAX_LOG).split(b"\n") if log.exists() else []
    except OSError as error:
        if error.errno not in foreign.NO_FILE:
            raise
        return
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and _is_event(event):
            yield event


def _is_event(event: dict[str, Any]) -> bool:
    """Whether all that a reader relies on has its type."""
    if not all(type(event[name]) is kind for name, kind in _TYPES.items() if name in event):
        return False
    seconds = event.get("seconds", {})
    names = [event.get("model", ""), event.get("stage", ""), *seconds]
    return (
        all(map(_NAME.fullmatch, names))
        and not _SURROGATE.search(event.get("stopped", ""))
        and all(isinstance(kinds, dict) for kinds in seconds.values())
        and all(_is_number(value) for kinds in seconds.values() for value in kinds.values())
        and all(_is_number(value) for value in event.values() if isinstance(value, int | float))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= MAX_NUMBER  # neither of them holds for NaN


def _last_begin(log: epath.Path) -> tuple[str, str] | None:
    """The hashes in the last line of a start; None if there is none."""
    begins = [event for event in read_events(log) if event.get("begins")]
    last = begins[-1] if begins else {}
    return (last["settings"], last.get("before", "")) if "settings" in last else None  # older versions wrote none


def _is_torn(path: epath.Path) -> bool:
    """Whether a file's last line has no end."""
    try:
        with foreign.open_regular(path) as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
    except OSError:  # there is none, or it is empty
        return False
