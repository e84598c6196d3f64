"""Progress on the terminal: a bar where there is one, plain lines where there is none."""

import sys
import time

from tqdm import tqdm

from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import timing


class Progress:
    """Counts rows (or steps) of a stage and its tokens.

    Args:
      name: shown in front, such as "m2 judgments".
      total: rows expected.
      done: rows that an earlier run made.
      unit: what is counted.
    """

    LINE_EVERY = 10.0  # seconds between plain lines

    def __init__(self, name: str, total: int, done: int = 0, unit: str = "rows") -> None:
        self.name, self.total, self.count, self.unit = name, total, done, unit
        self.begun = self.count
        self.tokens = 0
        timing.begin_stage(name)
        self.start = self.last = time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and processes.is_primary():
            self.bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", leave=False)

    def add(self, rows: int, tokens: int = 0, note: str = "") -> None:
        """Counts `rows` more rows and `tokens` more tokens; `note` is shown behind."""
        self.count += rows
        self.tokens += tokens
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self._speed()} {note}".strip(), refresh=False)
            self.bar.update(rows)
        elif time.monotonic() - self.last >= self.LINE_EVERY:
            self.last = time.monotonic()
            elapsed = self.last - self.start
            left = (self.total - self.count) * elapsed / max(1, self.count - self.begun)
            log_line(
                f"{self.name}: {self.count}/{self.total} {self.unit}, {self._speed()}, "
                f"{max(0, left):.0f} s left {note}".rstrip()
            )

    def _speed(self) -> str:
        return f"{self.tokens / max(1e-9, time.monotonic() - self.start):,.0f} tokens/s"

    def close(self, note: str = "") -> None:
        """Ends the bar and says in one line what was done."""
        if self.bar is not None:
            self.bar.close()
        timing.end_stage(self.name)
        seconds = time.monotonic() - self.start
        log_line(f"{self.name}: {self.count} {self.unit}, {self._speed()}, {seconds:.1f} s {note}".rstrip())


def log_line(line: str) -> None:
    """A line for the person who watches; of several processes the first one's alone."""
    if processes.is_primary():
        print(line, file=sys.stderr, flush=True)
