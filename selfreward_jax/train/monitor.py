"""What a training curve shows before it is too late."""

import math
import statistics
from collections import deque

WINDOW = 50  # steps that a loss is compared with
LEAST = 10  # steps before anything is said
SPIKE = 8.0  # times the median distance of these steps' losses from their median


class TrainingMonitor:
    """Says once when the loss jumps, for more than the one step that a few odd rows can make, and once when the chosen
    answers become much less likely than at the start: DPO can widen its margin by pushing both answers down, the
    rejected one further.

    Args:
      chosen: their mean log-prob at the start, if there are any.
      most_fall: how many times as low it may become.
    """

    def __init__(self, chosen: float | None = None, max_fall: float = 1.0) -> None:
        self.chosen, self.max_fall = chosen, max_fall
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._high = False  # the loss of the step before
        self._recent: deque[float] = deque(maxlen=LEAST)
        self._said: set[str] = set()

    def warnings(self, step: int, metrics: dict[str, float]) -> list[str]:
        """What there is to say after a step."""
        found = {"spike": self._spike(metrics["loss"]), "fall": self._fall(metrics.get("chosen_logprob"))}
        new = [f"step {step}: {line}" for name, line in found.items() if line and name not in self._said]
        self._said |= {name for name, line in found.items() if line}
        return new

    def _spike(self, loss: float) -> str:
        if not math.isfinite(loss):
            return ""
        known, was_high, self._high = list(self._losses), self._high, False
        if len(known) >= LEAST:
            middle = statistics.median(known)
            spread = statistics.median(abs(x - middle) for x in known)
            self._high = loss > middle + max(SPIKE * spread, 0.5 * abs(middle))
            if self._high and was_high:
                return f"the loss jumped to {loss:.3f}, from {middle:.3f} in the {len(known)} steps before"
        if not self._high:
            self._losses.append(loss)
        return ""

    def _fall(self, chosen: float | None) -> str:
        if self.chosen is None or chosen is None or not math.isfinite(chosen):
            return ""
        self._recent.append(chosen)
        now = statistics.fmean(self._recent)
        if len(self._recent) == LEAST and now < self.max_fall * self.chosen:
            return (
                f"the chosen answers' log-probability fell to {now:.1f}, from {self.chosen:.1f} at the start "
                f"(checks.max_fall {self.max_fall:g}): lower dpo.lr or dpo.epochs, or raise dpo.nll_weight"
            )
        return ""
