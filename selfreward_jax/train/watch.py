"""What a training curve shows before it is too late."""

import math
import statistics
from collections import deque

WINDOW = 50  # steps that a loss is compared with
LEAST = 10  # steps before anything is said
SPIKE = 8.0  # times the median distance of these steps' losses from their median
FALL = 3.0  # times as unlikely, in log-probability, as at the start


class Watch:
    """Says once when the loss jumps, and once when the chosen answers become much less likely than at the start: DPO
    can widen its margin by pushing both answers down, the rejected one further."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._chosen: list[float] = []
        self._recent: deque[float] = deque(maxlen=LEAST)
        self._said: set[str] = set()

    def warnings(self, step: int, metrics: dict[str, float]) -> list[str]:
        """What there is to say after a step."""
        found = {"spike": self._spike(metrics["loss"]), "fall": self._fall(metrics.get("chosen_logprob"))}
        new = [f"step {step}: {line}" for name, line in found.items() if line and name not in self._said]
        self._said |= {name for name, line in found.items() if line}
        return new

    def _spike(self, loss: float) -> str:
        known, line = list(self._losses), ""
        if len(known) >= LEAST and math.isfinite(loss):
            middle = statistics.median(known)
            spread = statistics.median(abs(x - middle) for x in known)
            if loss > middle + max(SPIKE * spread, 0.5 * abs(middle)):
                line = f"the loss jumped to {loss:.3f}, from {middle:.3f} in the {len(known)} steps before"
        if math.isfinite(loss):
            self._losses.append(loss)
        return line

    def _fall(self, chosen: float | None) -> str:
        if chosen is None or not math.isfinite(chosen):
            return ""
        self._recent.append(chosen)
        if len(self._chosen) < LEAST:
            self._chosen.append(chosen)
            return ""
        at_start, now = statistics.fmean(self._chosen), statistics.fmean(self._recent)
        if now < FALL * at_start:
            return (
                f"the chosen answers' log-probability fell to {now:.1f}, from {at_start:.1f} at the start: lower "
                "dpo.lr or dpo.epochs, or raise dpo.nll"
            )
        return ""
