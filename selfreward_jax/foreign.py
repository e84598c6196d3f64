"""Files that come from outside: only regular ones are read, and none that is larger than it may be.

A named pipe would wait for ever, and a device has no end.
"""

import errno
import os
import stat
from typing import IO

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
    _check_size(path, size(path), max_bytes)
    with open_regular(path) as file:
        chunks, total = [], 0
        while chunk := file.read(CHUNK):  # it may grow, and files of /proc have no size
            chunks.append(chunk)
            total += len(chunk)
            _check_size(path, total, max_bytes)
    return b"".join(chunks)


def read_text(path: epath.Path, max_bytes: int = MAX_TEXT) -> str:
    """The same as text.

    Raises:
      OSError: as `read_bytes`.
      UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, max_bytes).decode()


def open_regular(path: epath.Path) -> IO[bytes]:
    """Opens a regular file for reading. It never waits.

    Raises:
      OSError: there is none, it cannot be read, or it is not regular.
    """
    if "://" in str(path):  # an object store has regular files only
        return path.open("rb")
    descriptor = os.open(os.fspath(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def size(path: epath.Path) -> int:
    """The bytes of a file. The path's own `stat` also wants the name of the file's owner, who may have none.

    Raises:
      OSError: there is none.
    """
    return path.stat().length if "://" in str(path) else os.stat(path).st_size


def _check_size(path: epath.Path, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes", str(path))
