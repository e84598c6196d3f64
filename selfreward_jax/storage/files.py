"""Files of the working directory: atomic writes, JSON with a checksum, and the quarantine of damaged files.

With several processes, only the primary process writes. It also decides for all processes whether a file exists and
what a small file holds, because a shared file system may show new files late to the other processes.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from etils import epath

from selfreward_jax import foreign
from selfreward_jax.config import InputError
from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import terminal, timing

T = TypeVar("T")
MAX_JSON = 1 << 30  # bytes of a JSON file of a run
_CHECKSUM_FIELD = ',\n  "checksum": "'


class StorageError(InputError, RuntimeError):
    """A file of the working directory cannot be used; the message names the file and the remedy."""


class CorruptionError(StorageError):
    """A file does not hold the bytes that were written.

    reason: which file, and what is wrong with it.
    paths: what must be quarantined together, so that the same command regenerates it.
    """

    def __init__(self, reason: str, *paths: epath.Path) -> None:
        super().__init__(f"{reason}: restore it, or run the same command again, which regenerates it")
        self.reason, self.paths = reason, paths


def warn(line: str) -> None:
    """Logs a line that deserves attention, from the primary process only."""
    terminal.log_line(f"selfreward_jax: {line}")


def is_remote(path: epath.Path) -> bool:
    """Whether the path is in an object store."""
    return "://" in str(path)


def write_atomic(path: epath.Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old bytes or the new ones, never a part.

    Raises:
      StorageError: the file system refuses it.
    """
    if not processes.is_primary():
        return
    with translate_os_errors(path, len(data)):
        if is_remote(path):
            path.write_bytes(data)
            return
        temporary = path.with_name(path.name + ".tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.unlink(missing_ok=True)  # a symbolic link would be followed
            with _open_no_link(temporary, os.O_CREAT | os.O_EXCL) as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)  # its space may be needed
            raise


def append(path: epath.Path, data: bytes) -> None:
    """Appends to a file of a file system, and returns when the bytes are on disk.

    Raises:
      StorageError: the file system refuses it.
    """
    with translate_os_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_to_append(path) as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())


def open_to_append(path: epath.Path) -> IO[bytes]:
    """Opens a regular file of a file system at its end. A symbolic link is not followed.

    Raises:
      OSError: the file system refuses it.
    """
    return _open_no_link(path, os.O_CREAT | os.O_APPEND)


def _open_no_link(path: epath.Path, flags: int) -> IO[bytes]:
    """Opens a regular file for writing. A symbolic link is not followed: what it names is not ours."""
    flags |= os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(os.fspath(path), flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "wb")


@contextlib.contextmanager
def translate_os_errors(path: epath.Path, size: int) -> Iterator[None]:
    """Turns an OSError into a StorageError with one line, while `size` bytes are written to `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(write_error_message(path, size, error.strerror or str(error))) from None


def write_error_message(path: epath.Path, size: int, reason: str) -> str:
    """One line for a write of `size` bytes that failed: path, reason, size, free space and remedy."""
    free = ""
    if not is_remote(path):
        with contextlib.suppress(OSError):
            existing = next(p for p in (path, *path.parents) if p.exists())
            free = f", {shutil.disk_usage(existing).free:,} bytes are free there"
    return (
        f"{path} cannot be written ({reason}): it needs {size:,} bytes{free}; finished work is kept: fix this and run "
        "the same command again to resume"
    )


def write_json(path: epath.Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises:
      StorageError: the file system refuses it.
    """
    write_atomic(path, f"{_encode(value)}\n".encode())


def _encode(value: Any) -> str:
    """The value as indented JSON. Names of files that are not UTF-8 hold lone surrogates: those are escaped."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace").decode()


def read_json(path: epath.Path) -> Any:
    """The value of a JSON file; None if the file does not exist.

    Raises:
      CorruptionError: the file is not JSON.
    """
    return _read_on_primary(path, lambda: json.loads(foreign.read_text(path, MAX_JSON)))


def write_checksummed(path: epath.Path, value: dict[str, Any]) -> None:
    """Writes a JSON object on which later stages rely. Its last field is a SHA-256 of the bytes before that field.

    Raises:
      StorageError: the file system refuses it.
    """
    text = _encode(value).removesuffix("\n}")
    write_atomic(path, f"{text}{_CHECKSUM_FIELD}{_checksum_line(text)}".encode())
    timing.commit()


def read_checksummed(path: epath.Path) -> dict[str, Any] | None:
    """The object that `write_checksummed` wrote; None if the file does not exist.

    Raises:
      CorruptionError: the file does not match its checksum.
    """

    def read() -> dict[str, Any]:
        text, _, end = foreign.read_text(path, MAX_JSON).rpartition(_CHECKSUM_FIELD)
        if end != _checksum_line(text):
            raise ValueError("its checksum does not match")
        return json.loads(text + "\n}")

    return _read_on_primary(path, read)


def _checksum_line(text: str) -> str:
    return f'{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def _read_on_primary(path: epath.Path, read: Callable[[], Any]) -> Any:
    """What `read` returns on the primary process, on every process; None if the file does not exist."""

    def read_or_fault() -> tuple[Any, str, bool]:
        try:
            return (read() if path.exists() else None), "", False
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deeply, or a wrong checksum
            return None, str(error), True
        except OSError as error:
            return None, error.strerror or str(error), error.errno in foreign.NO_FILE

    value, fault, is_damaged = processes.broadcast_from_primary(read_or_fault)
    if is_damaged:
        raise CorruptionError(f"{path} is damaged ({fault})", path)
    if fault:
        raise StorageError(f"{path} cannot be read ({fault}): repair it, then the same command resumes")
    return value


def exists(path: epath.Path) -> bool:
    """Whether the file or directory exists; the primary process decides for all."""
    return processes.broadcast_from_primary(path.exists)


def remove(path: epath.Path) -> None:
    """Removes a file, or a directory with all its contents, if it exists."""
    if not processes.is_primary() or not path.exists():
        return
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink()


def quarantine(path: epath.Path) -> str:
    """Renames a damaged file to NAME.damaged (or NAME.damaged-2, ...), so that nothing is deleted.

    Returns:
      The new name; "" if the file does not exist.
    """

    def move() -> str:
        if not path.exists():
            return ""
        target = damaged_path(path)
        path.rename(target)
        return target.name

    return processes.broadcast_from_primary(move)


def damaged_path(path: epath.Path) -> epath.Path:
    """NAME.damaged beside a file, or the first of NAME.damaged-2, ... that does not exist."""
    paths = (path.with_name(f"{path.name}.damaged{f'-{n}' * (n > 1)}") for n in range(1, 1 << 20))
    return next(p for p in paths if not os.path.lexists(p) and not p.exists())


def regenerate_damaged(make: Callable[[], T], before_retry: Callable[[], None]) -> T:
    """Calls `make`. What it finds damaged is quarantined, and it is called again: the stage of a missing artifact makes
    it with the same bytes.

    Raises:
      CorruptionError: there is nothing to quarantine, or the same artifact is damaged again.
    """
    seen: set[str] = set()
    while True:
        try:
            return make()
        except CorruptionError as error:
            paths = set(map(str, error.paths))
            moved = [] if seen & paths else [name for name in map(quarantine, error.paths) if name]
            if not moved:
                raise
            seen |= paths
            warn(f"{error.reason}; quarantined as {' and '.join(moved)}, will be regenerated")
            before_retry()
