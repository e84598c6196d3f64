"""What the program prints, and log.txt, which keeps it.

An output that is gone (a closed pipe) or full never ends a run: the line is lost there, and is still in log.txt.
"""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import TextIO

from etils import epath
from tqdm import tqdm

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
        with contextlib.suppress(Exception):
            if self._remote and path.exists():
                self._data = path.read_bytes()

    def add(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S ")
        data = "".join(f"{stamp}{line}\n" for line in text.split("\n")).encode(errors="backslashreplace")
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
        _print(sys.stderr, line)
        keep(line)


def show(line: str) -> None:
    """Prints a line of the results on standard output and keeps it in log.txt, on the primary process only."""
    if processes.is_primary():
        _print(sys.stdout, line)
        keep(line)


def keep(line: str) -> None:
    """Adds a line to log.txt of the run that this process holds, if it holds one. Prints nothing."""
    if _log is not None:
        _log.add(line)


@contextlib.contextmanager
def log_to(workdir: epath.Path) -> Iterator[None]:
    """In this context lines are also appended to log.txt of the working directory, and so is an error that ends it."""
    global _log
    _log = _LogFile(workdir / LOG_FILE) if processes.is_primary() else None
    try:
        yield
    except BaseException as error:
        ours = type(error).__module__.startswith("selfreward_jax.")
        keep(str(error) if ours else traceback.format_exc().rstrip())
        raise
    finally:
        if _log is not None:
            _log.upload()
        _log = None


def discard_log(workdir: epath.Path) -> None:
    """Removes log.txt of a start that leaves no trace. Later lines are only printed."""
    global _log
    _log = None
    with contextlib.suppress(OSError):
        if processes.is_primary():
            (workdir / LOG_FILE).unlink(missing_ok=True)


def open_closed_streams() -> None:
    """Connects closed standard streams to the null device. Otherwise the next file to be opened would get the number
    of a closed one, and with it all that libraries print there."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _connect_to_null(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 (stays open)


def _print(stream: TextIO | None, line: str) -> None:
    if stream is None:  # closed from the start
        return
    try:
        with tqdm.external_write_mode(file=stream):  # above a progress bar
            print(line, file=stream, flush=True)
    except UnicodeEncodeError:
        _print(stream, line.encode("ascii", "backslashreplace").decode())
    except BlockingIOError:  # a pipe that its reader does not empty: the line may come later
        pass
    except (OSError, ValueError):
        silence(stream)


def silence(stream: TextIO) -> None:
    """Connects a stream that cannot be written to the null device. Otherwise what its buffer still holds would fail
    again with every line, and at the end turn the exit code into 120."""
    with contextlib.suppress(OSError, ValueError):  # no file: a stream of a notebook or of a test
        _connect_to_null(stream.fileno())
        stream.flush()


def _connect_to_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
