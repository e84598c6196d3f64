"""Stopping on request: SIGTERM and SIGINT let the current step or the current rows finish and be saved.

The program then exits with `processes.EXIT_RETRY`, and the same command resumes the run. If there are several
processes, any of them may get the signal; all stop at the same place.
"""

import contextlib
import os
import signal
import threading
import time
import types
from collections.abc import Iterator

from selfreward_jax.parallel import processes

REPEAT_WINDOW = 1.0  # seconds
_requested = threading.Event()  # this process got a signal
_stopping = False


class Stopped(Exception):
    """The program was asked to stop, and what a next start needs is saved."""

    def __init__(self) -> None:
        super().__init__("stopped, all results are saved: run the same command to resume")


@contextlib.contextmanager
def handle_signals(timeout_s: float) -> Iterator[None]:
    """In this context SIGTERM and SIGINT request a stop, and are answered at once on standard error.

    The process exits if it has not stopped after `timeout_s` seconds, and at once on a later SIGINT. A SIGINT within
    REPEAT_WINDOW of the first signal does not count: a parent process and the terminal may both send it.
    """
    global _stopping
    _stopping = False
    _requested.clear()
    line = (
        f"the current work did not finish within shutdown_timeout_s {timeout_s:g} s and is lost: "
        "run the same command to resume"
    )
    limit = threading.Timer(timeout_s, processes.exit_now, (processes.EXIT_RETRY, line))
    limit.daemon = True
    # Python runs a handler only between two bytecodes, so not while a program compiles. Python's C code writes the
    # number of the signal to a pipe at once, and a thread of its own answers.
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    answering = threading.Thread(target=_answer_signals, args=(read_end, limit, timeout_s), daemon=True)
    answering.start()
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, _request_stop) for number in numbers]
    previous_pipe = signal.set_wakeup_fd(write_end)
    try:
        yield
    finally:
        limit.cancel()
        signal.set_wakeup_fd(previous_pipe)
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
        os.close(write_end)  # ends the thread
        answering.join()
        os.close(read_end)


def _request_stop(number: int, _: types.FrameType | None) -> None:
    _requested.set()


def _answer_signals(read_end: int, limit: threading.Timer, timeout_s: float) -> None:
    """Answers the signals whose numbers come through the pipe, until the pipe is closed."""
    first_signal_at: float | None = None
    while received := os.read(read_end, 1):
        if received[0] not in (signal.SIGTERM, signal.SIGINT):
            continue
        if first_signal_at is None:
            first_signal_at = time.monotonic()
            _requested.set()
            limit.start()
            threading.Thread(target=processes.broadcast_stop, daemon=True).start()
            at_most = f"stopping after the step at hand (at most {timeout_s:g} s); Ctrl-C again ends at once"
            processes.write_stderr(at_most)
        elif received[0] == signal.SIGINT and time.monotonic() - first_signal_at > REPEAT_WINDOW:
            again = "second stop request: stopped at once, run the same command to resume"
            processes.exit_now(processes.EXIT_RETRY, again)


def stop_requested() -> bool:
    """Whether to stop. All processes make this call together and get the same result."""
    global _stopping
    _stopping = _stopping or processes.broadcast_from_primary(
        lambda: _requested.is_set() or processes.peer_stop_requested.is_set()
    )
    return _stopping


def raise_if_stopped() -> None:
    """Raises Stopped if a stop was requested."""
    if stop_requested():
        raise Stopped
