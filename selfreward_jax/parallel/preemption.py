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

AGAIN = 1.0  # seconds
_asked = threading.Event()  # this process was
_all_stop = False


class Stopped(Exception):
    """The program was asked to end, and all that it made is saved."""

    def __init__(self) -> None:
        super().__init__("stopped, and all that was made is kept: the same command goes on from there")


@contextlib.contextmanager
def listening(within: float) -> Iterator[None]:
    """For as long as a run takes, SIGTERM and SIGINT ask it to stop. It ends after `within` seconds if it could not,
    and at once on another SIGINT: not on one that comes with the first, from a parent and from the terminal."""
    global _all_stop
    _all_stop = False
    _asked.clear()
    line = f"what was at hand was not done {within:g} s later (stop_within) and is given up: the same command makes it"
    limit = threading.Timer(within, processes.leave, (processes.LOST, line))
    limit.daemon, since = True, 0.0

    def ask(number: int, _: types.FrameType | None) -> None:
        nonlocal since
        if _asked.is_set():
            if number == signal.SIGINT and time.monotonic() - since > AGAIN:
                processes.leave(processes.LOST, "asked to stop again: ended at once; the same command goes on")
            return
        since = time.monotonic()
        _asked.set()
        limit.start()
        threading.Thread(target=processes.ask_to_stop, daemon=True).start()

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, ask) for number in numbers]
    try:
        yield
    finally:
        limit.cancel()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def asked() -> bool:
    """Whether to stop. All processes ask together and hear the same."""
    global _all_stop
    _all_stop = _all_stop or processes.agreed(lambda: _asked.is_set() or processes.stop_asked.is_set())
    return _all_stop


def check() -> None:
    """Raises Stopped where that is so."""
    if asked():
        raise Stopped
