"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

from selfreward_jax.parallel import processes
from selfreward_jax.telemetry import timing


class Progress:
    """Counts the rows (or steps) and the tokens of a stage.

    Args:
      name: shown at the start of a line, such as "m2 judgments".
      total: expected number of rows.
      done: rows that an earlier start of the run completed.
      unit: name of what is counted.
    """

    LINE_EVERY = 10.0  # seconds between plain lines

    def __init__(self, name: str, total: int, done_before: int = 0, unit: str = "rows") -> None:
        self.name, self.total, self.count, self.unit = name, total, done_before, unit
        self.done_before = done_before
        self.tokens = 0
        timing.begin_stage(name)
        self.start = self.last_line = time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and processes.is_primary():
            self.bar = tqdm(total=total, initial=done_before, desc=name, unit=f" {unit}", leave=False)

    def add(self, rows: int, tokens: int = 0, note: str = "") -> None:
        """Counts `rows` more rows and `tokens` more tokens; `note` is shown at the end of the line."""
        self.count += rows
        self.tokens += tokens
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self._throughput()} {note}".strip(), refresh=False)
            self.bar.update(rows)
        elif time.monotonic() - self.last_line >= self.LINE_EVERY:
            self.last_line = time.monotonic()
            elapsed = self.last_line - self.start
            seconds_left = (self.total - self.count) * elapsed / max(1, self.count - self.done_before)
            log_line(
                f"{self.name}: {self.count}/{self.total} {self.unit}, {self._throughput()}, "
                f"{max(0, seconds_left):.0f} s left {note}".rstrip()
            )

    def _throughput(self) -> str:
        return f"{self.tokens / max(1e-9, time.monotonic() - self.start):,.0f} tokens/s"

    def close(self, note: str = "") -> None:
        """Ends the bar and logs one line with the totals."""
        if self.bar is not None:
            self.bar.close()
        timing.end_stage(self.name)
        seconds = time.monotonic() - self.start
        log_line(f"{self.name}: {self.count} {self.unit}, {self._throughput()}, {seconds:.1f} s {note}".rstrip())


def log_line(line: str) -> None:
    """Prints a line on standard error, on the primary process only."""
    if processes.is_primary():
        print(line, file=sys.stderr, flush=True)
