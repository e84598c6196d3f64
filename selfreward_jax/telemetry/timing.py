"""Where the time goes: each second of a process is counted once, by stage and by what was being done.

`Run` writes what is counted here to events.jsonl, and says of each line whether what the seconds were spent on is on disk:
after a kill, what was not is what was lost. `report/time_report.py` reads it.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import compile_cache

Seconds = dict[str, dict[str, float]]  # of stages, by what was done; "" is the stage's own work


class _Clock:
    """What was counted since the last line, and what is being done now."""

    def __init__(self) -> None:
        self.stages, self.doing = [""], [""]
        self.pending: Seconds = {}  # spent on what is not on disk yet
        self.committed: Seconds = {}
        self.since = time.monotonic()
        self.elsewhere = self._elsewhere()

    def _elsewhere(self) -> dict[str, float]:
        """Seconds that others count."""
        return {"compiling": compile_cache.count().seconds, "waiting": processes.wait_seconds()}

    def accrue(self) -> None:
        """Books the time since the last look."""
        now, elsewhere = time.monotonic(), self._elsewhere()
        left = now - self.since
        for kind, seconds in elsewhere.items():
            # JAX measures compiling by the clock on the wall, which may be set meanwhile.
            part = min(left, max(0.0, seconds - self.elsewhere[kind]))
            left -= part
            self.book(kind, part)
        self.book(self.doing[-1], left)
        self.since, self.elsewhere = now, elsewhere

    def book(self, kind: str, seconds: float) -> None:
        if seconds > 0:
            of = self.pending.setdefault(self.stages[-1], defaultdict(float))
            of[kind] += seconds


_clock = _Clock()


def restart() -> None:
    """Begins to count anew."""
    global _clock
    _clock = _Clock()


def begin_stage(stage: str) -> None:
    """From now on time is the stage's, until `end`; stages may lie within each other."""
    _clock.accrue()
    _clock.stages.append(stage)


def end_stage(stage: str) -> None:
    """The stage that began last under this name is over."""
    _clock.accrue()
    if stage in _clock.stages[1:]:
        while _clock.stages.pop() != stage:
            pass


@contextlib.contextmanager
def timed(kind: str) -> Iterator[None]:
    """What is done within is of this kind, such as "saving", and not the stage's own work."""
    _clock.accrue()
    _clock.doing.append(kind)
    try:
        yield
    finally:
        _clock.accrue()
        _clock.doing.pop()


def commit() -> None:
    """What this stage has done so far is on disk now, and what led to it."""
    _clock.accrue()
    for stage in {"", _clock.stages[-1]} & _clock.pending.keys():
        of = _clock.committed.setdefault(stage, defaultdict(float))
        for kind, seconds in _clock.pending.pop(stage).items():
            of[kind] += seconds


def drain() -> list[dict[str, object]]:
    """Lines {kept, spent: seconds by stage and kind} of what was counted since the last call."""
    _clock.accrue()
    found = [
        {"kept": kept, "spent": _rounded(of)} for kept, of in ((True, _clock.committed), (False, _clock.pending)) if of
    ]
    _clock.committed, _clock.pending = {}, {}
    return found


def _rounded(of: Seconds) -> Seconds:
    return {stage: {kind: round(s, 4) for kind, s in kinds.items()} for stage, kinds in of.items()}
