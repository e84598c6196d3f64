"""The working directory: files that are whole or not there, JSON that knows when it was damaged, and what is done with
a file that was.

Of several processes the first alone writes, and whether a file is there, and what a small one says, it tells the
others: a shared file system may show them late what it wrote.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import timing

_CHECKSUM_FIELD = ',\n  "seal": "'


class StorageError(RuntimeError):
    """A file of the working directory is not what it should be; the message names it and the remedy."""


class CorruptionError(StorageError):
    """A file is not what was written.

    paths: what must be set aside together, so that the same command makes it anew.
    """

    def __init__(self, why: str, *paths: epath.Path) -> None:
        super().__init__(f"{why}: put it back, or start the run again with its command, which makes it anew")
        self.why, self.paths = why, paths


def warn(line: str) -> None:
    """Tells the user, once."""
    if processes.is_primary():
        print(f"selfreward_jax: {line}", file=sys.stderr, flush=True)


def is_remote(path: epath.Path) -> bool:
    """Whether the path is in an object store."""
    return "://" in str(path)


def write_atomic(path: epath.Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old bytes or the new ones, never a part."""
    if not processes.is_primary():
        return
    with translate_os_errors(path, len(data)):
        if is_remote(path):
            path.write_bytes(data)
            return
        temporary = path.with_name(path.name + ".tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)  # the room may be needed
            raise


def append(path: epath.Path, data: bytes) -> None:
    """Adds to a file of a file system, and returns when that is on disk."""
    with translate_os_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())


@contextlib.contextmanager
def translate_os_errors(path: epath.Path, size: int) -> Iterator[None]:
    """Where a file of `size` bytes is written: what the file system refuses becomes a StorageError with one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(cannot_write(path, size, error.strerror or str(error))) from None


def cannot_write(path: epath.Path, size: int, why: str) -> str:
    """The line for it."""
    room = ""
    if not is_remote(path):
        with contextlib.suppress(OSError):
            there = next(p for p in (path, *path.parents) if p.exists())
            room = f", {shutil.disk_usage(there).free:,} are free there"
    return (
        f"{path} cannot be written ({why}): it takes {size:,} bytes{room}; what was finished is kept, and the same "
        "command goes on when this is mended"
    )


def write_json(path: epath.Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: epath.Path) -> Any:
    """The value of a JSON file, None if there is no such file.

    Raises:
      StorageError: it is damaged.
    """
    return _read_on_primary(path, lambda: json.loads(path.read_text()))


def write_checksummed(path: epath.Path, value: dict[str, Any]) -> None:
    """Writes an object on which later stages rely, with a hash of the bytes before it as its last field."""
    text = json.dumps(value, indent=2, ensure_ascii=False).removesuffix("\n}")
    write_atomic(path, f"{text}{_CHECKSUM_FIELD}{_checksum_line(text)}".encode())
    timing.commit()


def read_checksummed(path: epath.Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, None if there is no such file.

    Raises:
      Damaged: it is not what was written.
    """

    def read() -> dict[str, Any]:
        text, _, end = path.read_bytes().decode().rpartition(_CHECKSUM_FIELD)
        if end != _checksum_line(text):
            raise ValueError("it is not what was written")
        return json.loads(text + "\n}")

    return _read_on_primary(path, read)


def _checksum_line(text: str) -> str:
    return f'{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def _read_on_primary(path: epath.Path, read: Callable[[], Any]) -> Any:
    """What `read` finds on the first process, on all of them; None if there is no such file."""

    def tried() -> tuple[Any, str]:
        try:
            return (read() if path.exists() else None), ""
        except ValueError as error:  # not UTF-8, not JSON, not what was sealed
            return None, f"{path} is damaged ({error})"

    found, fault = processes.broadcast_from_primary(tried)
    if fault:
        raise CorruptionError(fault, path)
    return found


def exists(path: epath.Path) -> bool:
    """Whether there is such a file or directory."""
    return processes.broadcast_from_primary(path.exists)


def remove(path: epath.Path) -> None:
    """Removes a file or a directory with all that is in it, if it is there."""
    if not processes.is_primary() or not path.exists():
        return
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink()


def quarantine(path: epath.Path) -> str:
    """Gives what was damaged another name, which it returns: nothing is thrown away. "" if there is no such file."""

    def move() -> str:
        if not path.exists():
            return ""
        names = (f"{path.name}.damaged{f'-{n}' * (n > 1)}" for n in range(1, 1 << 20))
        to = next(path.with_name(name) for name in names if not path.with_name(name).exists())
        path.rename(to)
        return to.name

    return processes.broadcast_from_primary(move)
