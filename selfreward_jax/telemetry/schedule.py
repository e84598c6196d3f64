"""The steps of the run in progress: which number a stage has, and how much time the later ones will take.

The time of a step is that of the last step of the same name. If there is none yet, it follows from the pace of its
kind so far: seconds for each token that is trained on, or that may be sampled.
"""

from collections.abc import Sequence
from typing import NamedTuple


class PlannedStep(NamedTuple):
    """A step of the run that takes time.

    label: as in the log, such as "m2 judgments".
    kind: training, or another kind of `Stage`.
    work: the likely number of training steps, or of tokens to sample; None if the data decide it.
    done: whether it was complete when this process started.
    step_tokens: the likely number of tokens that one training step computes.
    """

    label: str
    kind: str
    work: float | None
    done: bool
    step_tokens: float = 1.0

    @property
    def name(self) -> str:
        """The stage without its model: "judgments"."""
        return self.label.rpartition(" ")[2]

    @property
    def training(self) -> bool:
        """Whether its work is counted in training steps."""
        return self.kind == "training"


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
                self._measured[label] = seconds, (steps or 0.0) * step.step_tokens if step.training else step.work

    def seconds_after(self, label: str) -> float | None:
        """Seconds of the steps after this one that are still to do; None where no rate is known for one of them."""
        labels = [step.label for step in self.steps]
        if label not in labels:
            return None
        times = [self.seconds(step) for step in self.steps[labels.index(label) + 1 :] if not step.done]
        return None if None in times else sum(times)

    def seconds(self, step: PlannedStep) -> float | None:
        """Seconds that a step takes as a whole; None where no rate is known."""
        if step.work == 0:
            return 0.0
        by_label = {s.label: s for s in self.steps}
        known = [(by_label[label], *self._measured[label]) for label in reversed(self._measured)]
        for other, seconds, _ in known:
            if other.name == step.name:
                return seconds
        same_kind = [x for x in known if x[0].kind == step.kind and x[2]]
        same_unit = [x for x in known if x[0].training == step.training and x[2]]
        alike = same_kind or same_unit
        if not alike or not step.work:
            return None
        return (
            sum(seconds for _, seconds, _ in alike) / sum(work for _, _, work in alike) * step.work * step.step_tokens
        )


_schedule = Schedule()


def current() -> Schedule:
    """The schedule of the run in progress; one without steps where there is none."""
    return _schedule


def start(schedule: Schedule) -> None:
    """Makes this the schedule of the run in progress."""
    global _schedule
    _schedule = schedule
