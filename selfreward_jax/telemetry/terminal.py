"""What the program prints, and log.txt, which keeps it.

An output that is gone (a closed pipe) or full never ends a run: the line is lost there, and is still in log.txt.
"""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator

from etils import epath
from tqdm import tqdm

from selfreward_jax import foreign
from selfreward_jax.console import streams
from selfreward_jax.console.escape import escape_line
from selfreward_jax.parallel import processes

LOG_FILE = "log.txt"


class _LogFile:
    """log.txt of a working directory. A line that cannot be written is lost: no error leaves this class."""

    MAX_BYTES = 4_000_000  # beyond this only the later half is kept
    UPLOAD_EVERY = 30.0  # seconds between uploads to an object store, which cannot append

    def __init__(self, path: epath.Path) -> None:
        self._path, self._remote = path, "://" in str(path)
        self._uploaded = time.monotonic()
        self._data = b""  # in an object store: all that it holds
        self._size_before: int | None = None
        with contextlib.suppress(Exception):
            if path.exists():
                self._data = path.read_bytes() if self._remote else b""
                self._size_before = len(self._data) if self._remote else foreign.size(path)

    def add(self, line: str) -> None:
        data = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode()
        with contextlib.suppress(Exception):
            if not self._remote:
                self._append(data)
                return
            self._data = (self._data + data)[-self.MAX_BYTES :]
            if time.monotonic() - self._uploaded > self.UPLOAD_EVERY:
                self.upload()

    def _append(self, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # what a link names is not ours
        with os.fdopen(os.open(os.fspath(self._path), flags, 0o666), "ab") as file:
            file.write(data)
            size = file.tell()
        if size > self.MAX_BYTES:
            self._path.write_bytes(self._path.read_bytes()[-self.MAX_BYTES // 2 :])

    def discard(self) -> None:
        """Leaves the file as it was before."""
        with contextlib.suppress(Exception):
            if self._size_before is None:
                self._path.unlink(missing_ok=True)
            elif self._remote:
                self._path.write_bytes(self._data[: self._size_before])
            elif foreign.size(self._path) > self._size_before and not os.path.islink(self._path):
                os.truncate(self._path, self._size_before)

    def upload(self) -> None:
        """Writes what an object store does not hold yet."""
        self._uploaded = time.monotonic()
        with contextlib.suppress(Exception):
            if self._remote:
                self._path.write_bytes(self._data)


_log: _LogFile | None = None


def log_line(line: str) -> None:
    """Prints a line on standard error and keeps it in log.txt, on the primary process only."""
    if processes.is_primary():
        _print("stderr", line)
        keep(line)


def show(line: str) -> None:
    """Prints a line of the results on standard output and keeps it in log.txt, on the primary process only."""
    if processes.is_primary():
        _print("stdout", line)
        keep(line)


def keep(line: str) -> None:
    """Adds a line to log.txt of the run that this process holds, if it holds one. Prints nothing."""
    if _log is not None:
        _log.add(escape_line(line))


@contextlib.contextmanager
def log_to(workdir: epath.Path) -> Iterator[None]:
    """In this context lines are also appended to log.txt of the working directory, and so is an error that ends it."""
    global _log
    _log = _LogFile(workdir / LOG_FILE) if processes.is_primary() else None
    try:
        yield
    except BaseException as error:
        ours = type(error).__module__.startswith("selfreward_jax.")
        for line in [str(error)] if ours else traceback.format_exc().rstrip().split("\n"):
            keep(line)
        raise
    finally:
        if _log is not None:
            _log.upload()
        _log = None


def discard_log() -> None:
    """Leaves log.txt as it was before a start that leaves no trace. Later lines are only printed."""
    global _log
    if _log is not None:
        _log.discard()
    _log = None


def _print(name: str, line: str) -> None:
    stream = getattr(sys, name)
    if stream is None:  # closed from the start
        return
    try:
        with tqdm.external_write_mode(file=stream):  # above a progress bar
            fault = streams.write(stream, line)
    except (OSError, ValueError) as error:  # the bar cannot be cleared
        streams.silence(stream)
        fault = str(error)
    if fault:
        keep(f"selfreward_jax: sys.{name} cannot be written ({fault}): from here on its lines are in this file alone")
