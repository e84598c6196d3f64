"""One run at a time in a working directory."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from selfreward_jax import storage
from selfreward_jax.console.escape import escape
from selfreward_jax.parallel import processes

LOCK_FILE = "lock"
_HOLDER = "process "  # how the holder's line begins
MAX_HOLDER = 200  # characters of the holder's line in the lock file that a message repeats


@contextlib.contextmanager
def workdir_lock(directory: epath.Path) -> Iterator[None]:
    """Holds the lock DIRECTORY/lock, so that no other run uses the directory. The primary process locks for all.

    The operating system holds the lock for this process, and releases it when the process ends, however it ends. A lock
    file that a kill leaves behind therefore blocks nobody. An object store has no such locks: there is none.

    Raises:
      storage.StorageError: another run holds the lock (the message names it), or the lock is not a regular file.
    """
    file = _acquire(directory) if processes.is_primary() and not storage.is_remote(directory) else None
    try:
        yield
    finally:
        if file is not None:
            (directory / LOCK_FILE).unlink(missing_ok=True)
            file.close()


def is_locked(directory: epath.Path) -> bool:
    """Whether a run holds the lock of a directory, as far as this machine knows. Not for the process that holds it."""
    path = directory / LOCK_FILE
    if storage.is_remote(directory) or not path.is_file():
        return False
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it cannot be read, or the file system has no locks
        return False
    return False


def _acquire(directory: epath.Path) -> IO[Any]:
    path = directory / LOCK_FILE
    directory.mkdir(parents=True, exist_ok=True)
    try:
        file = _open(path)
    except FileNotFoundError:  # a refused start has removed the empty folder that it had made
        return _acquire(directory)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            file.seek(0)
            holder = escape(file.readline(MAX_HOLDER).strip()) or "another process"
            file.close()
            raise storage.StorageError(
                f"workdir {directory} is in use by {holder}: wait for it or end it, or use another --workdir"
            ) from None
        storage.warn(
            f"{path} cannot be locked here ({error.strerror}): do not start a second run in this directory meanwhile"
        )
        return file
    if not _is_same_file(file, path):  # the previous holder has removed it since it was opened
        file.close()
        return _acquire(directory)
    file.seek(0)
    text = file.read(MAX_HOLDER).strip("\0\n")
    if not text.startswith(_HOLDER) and not _HOLDER.startswith(text):  # a kill may have cut it off
        file.close()
        raise storage.StorageError(f"{path} is a file of yours, and the name of a run's lock: rename it")
    file.truncate(0)
    file.write(f"{_HOLDER}{os.getpid()} of {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file


def _open(path: epath.Path) -> IO[Any]:
    """Opens the lock file, and creates it if it does not exist. Never follows a symbolic link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(os.fspath(path), flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "a+", errors="replace")
        os.close(descriptor)
    raise storage.StorageError(
        f"{path} is not a regular file (a symbolic link is not followed): remove it, or use another --workdir"
    )


def _is_same_file(file: IO[Any], path: epath.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(os.fspath(path), follow_symlinks=False))
    except FileNotFoundError:
        return False
