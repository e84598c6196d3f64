"""Progress of a stage on standard error: a bar on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import threading
import time
from typing import NamedTuple

from tqdm import tqdm

from selfreward_jax.console.escape import escape_line
from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import schedule, timing
from selfreward_jax.telemetry.numbers import counted, duration, three_digits
from selfreward_jax.telemetry.terminal import keep, log_line

_silence: threading.Timer | None = None  # of the stage at hand


def end_silence() -> None:
    """Forgets the line that a stage would still print: it has failed, or another one begins."""
    if _silence is not None:
        _silence.cancel()


class _Mark(NamedTuple):
    """What was done at a time."""

    time: float
    count: int
    tokens: int


class Progress:
    """Counts the rows (or steps) and the tokens of a stage, with the time that the stage and the run still need.

    The first batch contains compiling, so rates are measured from its end on.

    Args:
      name: the stage, such as "m2 judgments".
      total: expected number of rows.
      done_before: rows that an earlier start of the run completed.
      unit: name of what is counted, in the plural.
    """

    LINE_EVERY = 10.0  # seconds between plain lines
    KEEP_EVERY = 60.0  # seconds between lines in log.txt where there is a bar

    def __init__(self, name: str, total: int, done_before: int = 0, unit: str = "rows") -> None:
        self.name, self.total, self.count, self.unit = name, total, done_before, unit
        self.done_before, self.tokens = done_before, 0
        self.label = escape_line(schedule.current().numbered(name))  # may be the name of a user's folder
        timing.begin_stage(name)
        self.start = self._line_at = time.monotonic()
        self._first: _Mark | None = None
        self._latest: _Mark | None = None
        self.bar = self._make_bar()
        # A line that ends the silence of a long compilation.
        global _silence
        end_silence()
        self._silence = _silence = threading.Timer(self.LINE_EVERY, self._say_compiling)
        self._silence.daemon = True
        if processes.is_primary() and total:
            self._silence.start()

    def _make_bar(self) -> tqdm | None:
        if not (self.total and processes.is_primary() and _has_columns()):
            return None
        return tqdm(
            total=self.total,
            initial=self.count,
            desc=self.label,
            unit=self.unit,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt} {unit}{postfix}",
            postfix="compiling",
        )

    def _say_compiling(self) -> None:
        line = f"{self.label}: compiling, {self.count:,}/{self.total:,} {self.unit}"
        (keep if self.bar is not None else log_line)(line)

    def add(self, rows: int, tokens: int = 0, note: str = "") -> None:
        """Counts `rows` more rows and `tokens` more tokens; `note` is shown at the end of the line."""
        self._silence.cancel()
        self.count += rows
        self.tokens += tokens
        self._latest = _Mark(time.monotonic(), self.count, self.tokens)
        self._first = self._first or self._latest
        state = ", ".join(part for part in (self._rate(), self._left(), note) if part)
        if self.bar is not None:
            with contextlib.suppress(OSError):  # the terminal is gone
                self.bar.set_postfix_str(escape_line(state), refresh=False)
                self.bar.update(rows)
        if self._latest.time - self._line_at >= (self.LINE_EVERY if self.bar is None else self.KEEP_EVERY):
            self._line_at = self._latest.time
            line = f"{self.label}: {self.count:,}/{self.total:,} {self.unit}" + f", {state}" * bool(state)
            (log_line if self.bar is None else keep)(line)

    def seconds_per_row(self) -> float | None:
        """Measured from the end of the first batch to the end of the latest; None before the second."""
        if self._first is None or self._latest.count == self._first.count:
            return None
        return (self._latest.time - self._first.time) / (self._latest.count - self._first.count)

    def tokens_per_second(self) -> float | None:
        """Measured over the same time."""
        seconds = self._latest.time - self._first.time if self._first else 0.0
        return (self.tokens - self._first.tokens) / seconds if seconds > 0 else None

    def seconds_left(self) -> tuple[float | None, float | None]:
        """Estimated seconds that this stage and the whole run still need; None while there is no measured rate."""
        pace, plan = self.seconds_per_row(), schedule.current()
        if pace is None:
            return None, None
        plan.measured(self.name, pace * self.total, self.total)
        stage, later = pace * max(0, self.total - self.count), plan.seconds_after(self.name)
        return stage, None if later is None else stage + later

    def _rate(self) -> str:
        rate = self.tokens_per_second()
        return f"{three_digits(rate)} tokens/s" if rate else ""

    def _left(self) -> str:
        stage, run = self.seconds_left()
        parts = [f"{duration(stage)} left"] if stage is not None and self.count < self.total else []
        parts += [f"about {duration(run)} for the run"] if (run or 0.0) >= 1 else []
        return ", ".join(parts)

    def close(self, note: str = "") -> None:
        """Ends the bar and logs one line with the totals."""
        self._silence.cancel()
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.close()
        timing.end_stage(self.name)
        done = counted(self.count, self.unit.removesuffix("s"))
        if self.done_before:
            done += f" ({self.count - self.done_before:,} of them now)"
        seconds = duration(time.monotonic() - self.start)
        left = self.seconds_left()[1] or 0.0
        parts = [done, self._rate(), seconds, note] + [f"about {duration(left)} left for the run"] * (left >= 1)
        log_line(f"{self.label}: {', '.join(part for part in parts if part)}")


def _has_columns() -> bool:
    """Whether standard error is a terminal of a known width: elsewhere a bar would not be seen."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):  # closed, or no file
        return False
