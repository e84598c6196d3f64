"""Files that come from outside: only regular ones are read, and none that is larger than it may be.

A named pipe would wait for ever, and a device has no end.
"""

import errno
import os
import stat

from etils import epath

MAX_TEXT = 64 << 20  # bytes of a configuration, a template or an index
MAX_TOKENIZER = 1 << 30  # bytes of a tokenizer

CHUNK = 1 << 22  # bytes
# What stands there is no file that this program wrote.
NO_FILE = (errno.EINVAL, errno.EISDIR, errno.EFBIG, errno.ENXIO, errno.ELOOP)


def read_bytes(path: epath.Path, max_bytes: int = MAX_TEXT) -> bytes:
    """The content of a regular file. A symbolic link to one is followed.

    Raises:
      OSError: there is none, it cannot be read, it is not regular, or it has more than `max_bytes`.
    """
    if "://" in str(path):  # an object store has regular files only
        _check_size(path, path.stat().length, max_bytes)
        return path.read_bytes()
    with os.fdopen(open_regular(path), "rb") as file:
        _check_size(path, os.fstat(file.fileno()).st_size, max_bytes)
        chunks, size = [], 0
        while chunk := file.read(CHUNK):  # it may grow, and files of /proc have no size
            chunks.append(chunk)
            size += len(chunk)
            _check_size(path, size, max_bytes)
    return b"".join(chunks)


def read_text(path: epath.Path, max_bytes: int = MAX_TEXT) -> str:
    """The same as text.

    Raises:
      OSError: as `read_bytes`.
      UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, max_bytes).decode()


def open_regular(path: epath.Path) -> int:
    """A file descriptor to read a regular file from. It never waits.

    Raises:
      OSError: there is none, it cannot be read, or it is not regular.
    """
    descriptor = os.open(os.fspath(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        fault = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(fault, "it is a directory" if fault == errno.EISDIR else "it is not a regular file", str(path))
    return descriptor


def _check_size(path: epath.Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes", str(path))
