"""Stopping on request: SIGTERM and SIGINT let the current step or the current rows finish and be saved.

The program then exits with `processes.EXIT_RETRY`, and the same command resumes the run. If there are several
processes, any of them may get the signal; all stop at the same place.
"""

import contextlib
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
    """The program was asked to stop, and all its results are saved."""

    def __init__(self) -> None:
        super().__init__("stopped, all results are saved: run the same command to resume")


@contextlib.contextmanager
def handle_signals(timeout_s: float) -> Iterator[None]:
    """In this context SIGTERM and SIGINT request a stop.

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
    first_signal_at = 0.0

    def request_stop(number: int, _: types.FrameType | None) -> None:
        nonlocal first_signal_at
        if _requested.is_set():
            if number == signal.SIGINT and time.monotonic() - first_signal_at > REPEAT_WINDOW:
                again = "second stop request: stopped at once, run the same command to resume"
                processes.exit_now(processes.EXIT_RETRY, again)
            return
        first_signal_at = time.monotonic()
        _requested.set()
        limit.start()
        threading.Thread(target=processes.broadcast_stop, daemon=True).start()

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, request_stop) for number in numbers]
    try:
        yield
    finally:
        limit.cancel()
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


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
