"""Being asked to stop: SIGTERM and SIGINT let the step or the rows at hand come to their end and be saved.

The program then ends with the exit code `processes.LOST`: the same command goes on. Of several processes any may be
asked; all stop at the same place.
"""

import contextlib
import signal
import threading
import time
import types
from collections.abc import Iterator

from selfreward_jax.parallel import processes

REPEAT_WINDOW = 1.0  # seconds
_requested = threading.Event()  # this process was
_stopping = False


class Stopped(Exception):
    """The program was asked to end, and all that it made is saved."""

    def __init__(self) -> None:
        super().__init__("stopped, and all that was made is kept: the same command goes on from there")


@contextlib.contextmanager
def handle_signals(timeout_s: float) -> Iterator[None]:
    """For as long as a run takes, SIGTERM and SIGINT ask it to stop. It ends after `within` seconds if it could not,
    and at once on another SIGINT: not on one that comes with the first, from a parent and from the terminal."""
    global _stopping
    _stopping = False
    _requested.clear()
    line = f"what was at hand was not done {timeout_s:g} s later (shutdown_timeout_s) and is given up: the same command makes it"
    limit = threading.Timer(timeout_s, processes.exit_now, (processes.EXIT_RETRY, line))
    limit.daemon, since = True, 0.0

    def ask(number: int, _: types.FrameType | None) -> None:
        nonlocal since
        if _requested.is_set():
            if number == signal.SIGINT and time.monotonic() - since > REPEAT_WINDOW:
                processes.exit_now(processes.EXIT_RETRY, "asked to stop again: ended at once; the same command goes on")
            return
        since = time.monotonic()
        _requested.set()
        limit.start()
        threading.Thread(target=processes.broadcast_stop, daemon=True).start()

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, ask) for number in numbers]
    try:
        yield
    finally:
        limit.cancel()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def stop_requested() -> bool:
    """Whether to stop. All processes ask together and hear the same."""
    global _stopping
    _stopping = _stopping or processes.broadcast_from_primary(
        lambda: _requested.is_set() or processes.peer_stop_requested.is_set()
    )
    return _stopping


def raise_if_stopped() -> None:
    """Raises Stopped where that is so."""
    if stop_requested():
        raise Stopped
