"""The steps of the run in progress: which number a stage has, and how much time the later ones will take.

The time of a step is that of the last step of the same name. If there is none yet, it follows from the pace of the
last step of the same kind: seconds for each training step, or for each token that may be sampled.
"""

from collections.abc import Sequence
from typing import NamedTuple


class PlannedStep(NamedTuple):
    """A step of the run that takes time.

    label: as in the log, such as "m2 judgments".
    training: whether its work is counted in training steps, otherwise in tokens to sample.
    work: the likely amount; None if the data decide it.
    done: whether it was complete when this process started.
    """

    label: str
    training: bool
    work: float | None
    done: bool

    @property
    def name(self) -> str:
        """The stage without its model: "judgments"."""
        return self.label.rpartition(" ")[2]


class Schedule:
    """The steps in order, the current one, and the seconds that steps were measured to take.

    Args:
      steps: all steps, also those that are done.
    """

    def __init__(self, steps: Sequence[PlannedStep] = ()) -> None:
        self.steps = list(steps)
        self._current = ""
        self._measured: dict[str, tuple[float, float | None]] = {}  # by label: seconds and work; the latest is last

    def begin(self, label: str) -> None:
        """Makes this the current step."""
        self._current = label

    def numbered(self, label: str) -> str:
        """The label after its number, "[3/19] m1 sft". A stage within a step has the number of the current step."""
        labels = [step.label for step in self.steps]
        step = next((name for name in (label, self._current) if name in labels), None)
        return f"[{labels.index(step) + 1}/{len(labels)}] {label}" if step is not None else label

    def measured(self, label: str, seconds: float, steps: float | None = None) -> None:
        """Notes how long a step takes as a whole, without compiling.

        Args:
          label: the step; others than those of the run are not noted.
          seconds: its time.
          steps: its training steps, for training.
        """
        for step in self.steps:
            if step.label == label:
                self._measured.pop(label, None)
                self._measured[label] = seconds, steps if step.training else step.work

    def seconds_after(self, label: str) -> float | None:
        """Seconds of the steps after this one that are still to do; None where no rate is known for one of them."""
        labels = [step.label for step in self.steps]
        if label not in labels:
            return None
        times = [self._seconds(step) for step in self.steps[labels.index(label) + 1 :] if not step.done]
        return None if None in times else sum(times)

    def _seconds(self, step: PlannedStep) -> float | None:
        if step.work == 0:
            return 0.0
        known = {s.label: s for s in self.steps if s.label in self._measured}
        latest = [known[label] for label in reversed(self._measured)]
        for other in latest:
            if other.name == step.name:
                return self._measured[other.label][0]
        for other in latest:
            seconds, work = self._measured[other.label]
            if other.training == step.training and work and step.work:
                return seconds / work * step.work
        return None


_schedule = Schedule()


def current() -> Schedule:
    """The schedule of the run in progress; one without steps where there is none."""
    return _schedule


def start(schedule: Schedule) -> None:
    """Makes this the schedule of the run in progress."""
    global _schedule
    _schedule = schedule
