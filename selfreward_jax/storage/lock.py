"""One run at a time in a working directory."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from selfreward_jax import storage
from selfreward_jax.parallel import processes

LOCK_FILE = "lock"


@contextlib.contextmanager
def workdir_lock(directory: epath.Path) -> Iterator[None]:
    """Holds DIRECTORY/lock, which no other run gets meanwhile; of several processes, the first does so for all.

    The operating system holds it for this process, and lets go when the process ends, however it does: a file that a
    kill leaves behind locks nobody out. An object store has no such locks.

    Raises:
      storage.StorageError: another run holds it; the message says which.
    """
    held = _acquire(directory) if processes.is_primary() and not storage.is_remote(directory) else None
    try:
        yield
    finally:
        if held is not None:
            (directory / LOCK_FILE).unlink(missing_ok=True)
            held.close()


def _acquire(directory: epath.Path) -> IO[Any]:
    directory.mkdir(parents=True, exist_ok=True)
    file = open(os.fspath(directory / LOCK_FILE), "a+")  # noqa: SIM115 (open for as long as it is held)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            file.seek(0)
            who = file.read().strip() or "another process"
            file.close()
            raise storage.StorageError(
                f"workdir {directory} is in use by {who}: wait for it or end it, or use another --workdir"
            ) from None
        storage.warn(
            f"{directory / LOCK_FILE} cannot be locked here ({error.strerror}): let no second run use the folder"
        )
        return file
    if not _same(file, directory / LOCK_FILE):  # who held it until now has removed it
        file.close()
        return _acquire(directory)
    file.truncate(0)
    file.write(f"process {os.getpid()} of {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file


def _same(file: IO[Any], path: epath.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(os.fspath(path)))
    except FileNotFoundError:
        return False
