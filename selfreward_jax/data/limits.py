"""How large seed data and prompt files may be, and the errors of what is larger or cannot be read."""

import io
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from selfreward_jax.config import InputError
from selfreward_jax.config.errors import brief

MAX_FILE = 64 << 30  # bytes of a file, unpacked
MAX_ROWS = 20_000_000  # rows of a file, or lines
MAX_LINE = 16 << 20  # bytes of a line or of a Parquet row, characters of an item of a JSON list
MAX_DEPTH = 256  # lists and objects inside each other
MAX_ANSWERS = 10_000  # answers in one record
# A compressed file may unpack to this many bytes, or to this many times its size. Text seldom exceeds ten times.
MAX_UNPACKED, MAX_RATIO = 1 << 30, 200


class DataError(InputError, ValueError):
    """Seed data that cannot be used; the message names the location, the fault and the remedy."""


class Malformed(NamedTuple):
    """Takes the place of a record that cannot be read.

    reason: what is wrong with it.
    remedy: what to do about it, if it is not the usual one.
    """

    reason: str
    remedy: str = ""


class Unreadable:
    """Takes the place of a value that has no counterpart in JSON, such as a date in the year 200,000."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __repr__(self) -> str:
        return f"unreadable ({self.fault})"


Located = tuple[str, Any]  # the location of a record, such as "seeds.jsonl line 3", and the record
TOO_LONG = Malformed(f"longer than {MAX_LINE:,} bytes", "divide it, or leave it out")
TOO_DEEP = Malformed(f"nested more than {MAX_DEPTH} levels deep", "write its lists and objects side by side")


class SizeLimit(NamedTuple):
    """The most bytes that a file may hold, and the error if it holds more."""

    max_bytes: int
    message: str

    def check(self, size: int) -> None:
        """Raises DataError where a size is above the limit."""
        if size > self.max_bytes:
            raise DataError(self.message)


def stored_limit(name: str) -> SizeLimit:
    """The limit of a file as it is stored."""
    remedy = "divide it into several files, and give a pattern that matches them"
    return SizeLimit(MAX_FILE, f"file {name} has more than {MAX_FILE:,} bytes: {remedy}")


def unpacked_limit(name: str, stored: int) -> SizeLimit:
    """The limit of what a compressed file of `stored` bytes unpacks to."""
    limit = min(MAX_FILE, max(MAX_UNPACKED, MAX_RATIO * stored))
    remedy = "divide it into several files" if limit == MAX_FILE else "give it without compression"
    return SizeLimit(limit, f"file {name} has {stored:,} bytes and unpacks to more than {limit:,}: {remedy}")


def check_rows(name: str, count: int) -> None:
    """Raises DataError where a file has too many rows."""
    if count > MAX_ROWS:
        raise DataError(
            f"file {name} has more than {MAX_ROWS:,} rows: divide it into several files, without blank lines"
        )


def file_size(file: BinaryIO) -> int:
    """The bytes of a file as it is stored. Rewinds it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def chunks(file: BinaryIO, limit: SizeLimit, size: int = io.DEFAULT_BUFFER_SIZE) -> Iterator[bytes]:
    """The bytes of a file in parts of at most `size`.

    Raises:
      DataError: it holds more than the limit.
    """
    total = 0
    while chunk := file.read(size):
        total += len(chunk)
        limit.check(total)
        yield chunk


def is_too_deep(value: Any) -> bool:
    """Whether a value in JSON's types has more than MAX_DEPTH lists and objects inside each other."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nodes = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        if not nodes:
            return False
        level = [child for node in nodes for child in node]
    return True


def shown(value: Any) -> str:
    """A value in a message, at most 60 characters. It may be deeper than Python can write out."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**4000:
        return brief(value)  # Python writes out at most 4,300 digits
    return repr(_beginning(value, 4))[:60]


def _beginning(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value[:60]
    if isinstance(value, list):
        return [_beginning(item, depth - 1) for item in value[:20]] if depth else []
    if isinstance(value, dict):
        first = islice(value.items(), 20)
        return {_beginning(key, 0): _beginning(item, depth - 1) for key, item in first} if depth else {}
    return value


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class name. Bytes of a file in it are written as escapes."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
