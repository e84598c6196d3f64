"""The only file that prints.

Each line is one line on the screen: what a terminal would obey in it is escaped, and so is what the stream cannot
encode. Messages go to standard error; where that is closed, gone or full they are lost, and nothing else. Results go to
standard output, and a command whose results are lost ends.
"""

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from selfreward_jax.console.escape import escape_line


class OutputError(Exception):
    """Standard output cannot be written."""


def message(line: str) -> None:
    """A line on standard error. It never fails."""
    write(sys.stderr, line)


def result(*lines: str) -> None:
    """Lines of a command's results on standard output, which hold no line breaks.

    Raises:
      BrokenPipeError: the reader has seen enough.
      OutputError: they cannot be written, for example to a full disk.
    """
    _write_results("".join(f"{_one_line(sys.stdout, line)}\n" for line in lines))


def prompt(text: str) -> None:
    """A text on standard output after which the user writes. Raises as `result`."""
    _write_results(_one_line(sys.stdout, text))


def _write_results(text: str) -> None:
    if sys.stdout is None:  # closed from the start
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
        raise
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        raise OutputError(f"standard output cannot be written ({_reason(error)}): free space, or redirect it") from None


def write(stream: TextIO | None, line: str) -> str:
    """A line on a stream. What cannot be written is lost.

    Returns:
      Why the stream is silent from now on; "" if it is not.
    """
    if stream is None:  # closed from the start
        return ""
    try:
        stream.write(f"{_one_line(stream, line)}\n")
        stream.flush()
    except BlockingIOError:  # a pipe that its reader does not empty: the line may come later
        pass
    except (OSError, ValueError) as error:
        silence(stream)
        return _reason(error)
    return ""


def write_now(line: str) -> None:
    """A line on standard error at once, past all buffers and locks. What cannot be written is lost."""
    if sys.__stderr__ is not None:  # otherwise it was closed at the start, and its number may be that of another file
        with contextlib.suppress(OSError):
            start = "\n" if os.isatty(2) else ""  # below a progress bar, or the ^C of the terminal
            os.write(2, f"{start}{escape_line(line)}\n".encode(errors="backslashreplace"))


def failure() -> None:
    """The traceback of the exception at hand on standard error: an error of the program itself."""
    for line in traceback.format_exc().rstrip().split("\n"):
        message(line)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _one_line(stream: TextIO | None, line: str) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return escape_line(line).encode(encoding, "backslashreplace").decode(encoding)


class _Handler(logging.Handler):
    """Prints what a library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).split("\n"):
            message(line)


@contextlib.contextmanager
def libraries() -> Iterator[None]:
    """In this context the warnings and logged lines of libraries are messages too: they repeat names of files."""

    def show_warning(text: Any, category: type[Warning], *_: Any) -> None:
        message(f"{category.__name__}: {text}")

    previous, handler = warnings.showwarning, _Handler(logging.WARNING)
    warnings.showwarning = show_warning
    if not logging.root.handlers:  # else the first line that a library logs adds one that prints all as it is
        logging.root.addHandler(handler)
    try:
        yield
    finally:
        warnings.showwarning = previous
        logging.root.removeHandler(handler)


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
