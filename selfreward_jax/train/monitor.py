"""Early warnings from the training metrics."""

import math
import statistics
from collections import deque

WINDOW = 50  # previous steps that a loss is compared with
MIN_STEPS = 10  # steps before the first warning
SPIKE_FACTOR = 8.0  # times the median absolute deviation of these losses


class TrainingMonitor:
    """Warns once when the loss jumps, and once when the chosen responses become much less likely than at the start.

    A jump of a single step does not count: a few unusual rows can cause it. DPO can widen its margin by making both
    responses less likely, the rejected one more so.

    Args:
      initial_logprob: mean log-prob of the chosen responses at the start; None if there are none.
      max_fall: how many times as low this log-prob may become.
    """

    def __init__(self, initial_logprob: float | None = None, max_fall: float = 1.0) -> None:
        self.initial_logprob, self.max_fall = initial_logprob, max_fall
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._high = False  # whether the loss of the previous step was
        self._recent: deque[float] = deque(maxlen=MIN_STEPS)
        self._warned: set[str] = set()

    def warnings(self, step: int, metrics: dict[str, float]) -> list[str]:
        """New warnings after a step."""
        current = {"spike": self._spike(metrics["loss"]), "fall": self._fall(metrics.get("chosen_logprob"))}
        new = [f"step {step}: {line}" for name, line in current.items() if line and name not in self._warned]
        self._warned |= {name for name, line in current.items() if line}
        return new

    def _spike(self, loss: float) -> str:
        if not math.isfinite(loss):
            return ""
        losses, was_high, self._high = list(self._losses), self._high, False
        if len(losses) >= MIN_STEPS:
            median = statistics.median(losses)
            deviation = statistics.median(abs(x - median) for x in losses)
            self._high = loss > median + max(SPIKE_FACTOR * deviation, 0.5 * abs(median))
            if self._high and was_high:
                return f"the loss jumped to {loss:.3f}, from {median:.3f} in the {len(losses)} steps before"
        if not self._high:
            self._losses.append(loss)
        return ""

    def _fall(self, logprob: float | None) -> str:
        if self.initial_logprob is None or logprob is None or not math.isfinite(logprob):
            return ""
        self._recent.append(logprob)
        recent = statistics.fmean(self._recent)
        if len(self._recent) == MIN_STEPS and recent < self.max_fall * self.initial_logprob:
            return (
                f"the log-prob of the chosen responses fell to {recent:.1f} from {self.initial_logprob:.1f} "
                f"(checks.max_fall {self.max_fall:g}): lower dpo.lr or dpo.epochs, or raise dpo.nll_weight"
            )
        return ""
