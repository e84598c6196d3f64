"""Time accounting: each second of a process is counted once, by stage and by kind of work.

`Run` writes the seconds to events.jsonl. Each event states whether the results of these seconds are on disk
(`committed`). What was not committed before a kill is lost. `report/time_report.py` reads the events.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import TypedDict

from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import compile_cache

Seconds = dict[str, dict[str, float]]  # stage -> kind -> seconds; kind "" is the stage's own work


class TimeEvent(TypedDict):
    """Seconds of an event in events.jsonl, and whether their results are on disk."""

    committed: bool
    seconds: Seconds


class _Clock:
    """Seconds since the last `drain`, and the current stage and kind of work."""

    def __init__(self) -> None:
        self.stages, self.kinds = [""], [""]
        self.pending: Seconds = {}  # results are not on disk yet
        self.committed: Seconds = {}
        self.accrued_at = time.monotonic()
        self.external = self._external()

    def _external(self) -> dict[str, float]:
        """Total seconds that other modules count."""
        return {"compiling": compile_cache.count().seconds, "waiting": processes.wait_seconds()}

    def accrue(self) -> None:
        """Adds the seconds since the last call to the current stage and kind."""
        now, external = time.monotonic(), self._external()
        remaining = now - self.accrued_at
        for kind, seconds in external.items():
            # JAX measures compilation by wall-clock time, which may be set meanwhile.
            part = min(remaining, max(0.0, seconds - self.external[kind]))
            remaining -= part
            self.add(kind, part)
        self.add(self.kinds[-1], remaining)
        self.accrued_at, self.external = now, external

    def add(self, kind: str, seconds: float) -> None:
        if seconds > 0:
            self.pending.setdefault(self.stages[-1], defaultdict(float))[kind] += seconds


_clock = _Clock()


def restart() -> None:
    """Resets all counts."""
    global _clock
    _clock = _Clock()


def begin_stage(stage: str) -> None:
    """Counts time for `stage` until `end_stage`. Stages may be nested."""
    _clock.accrue()
    _clock.stages.append(stage)


def end_stage(stage: str) -> None:
    """Ends the latest stage of this name, and the stages within it."""
    _clock.accrue()
    if stage in _clock.stages[1:]:
        while _clock.stages.pop() != stage:
            pass


@contextlib.contextmanager
def timed(kind: str) -> Iterator[None]:
    """Counts the time in this context as `kind`, such as "saving", and not as the stage's own work."""
    _clock.accrue()
    _clock.kinds.append(kind)
    try:
        yield
    finally:
        _clock.accrue()
        _clock.kinds.pop()


def commit() -> None:
    """Marks the time so far of this stage, and the time between stages, as committed: the results are on disk."""
    _clock.accrue()
    for stage in {"", _clock.stages[-1]} & _clock.pending.keys():
        committed = _clock.committed.setdefault(stage, defaultdict(float))
        for kind, seconds in _clock.pending.pop(stage).items():
            committed[kind] += seconds


def drain() -> list[TimeEvent]:
    """The events of the time since the last call: committed first, then pending; none for a part without seconds."""
    _clock.accrue()
    parts = ((True, _clock.committed), (False, _clock.pending))
    events = [TimeEvent(committed=committed, seconds=_rounded(seconds)) for committed, seconds in parts if seconds]
    _clock.committed, _clock.pending = {}, {}
    return events


def _rounded(stages: Seconds) -> Seconds:
    return {stage: {kind: round(s, 4) for kind, s in kinds.items()} for stage, kinds in stages.items()}
