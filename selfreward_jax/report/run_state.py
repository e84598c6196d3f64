"""How far a run is, and how long it still takes."""

import time
from collections.abc import Container
from typing import NamedTuple

from selfreward_jax.report import time_report
from selfreward_jax.report.status import make_schedule
from selfreward_jax.runs.run import Run
from selfreward_jax.runs.stage import StageTable, Step


class RunState(NamedTuple):
    """How far a run is.

    word: "running", "stopped" or "finished".
    stage: label of the first step that is not complete, such as "m2 judgments"; "" if the run is finished.
    round: number of the model that this step belongs to, from 1; all that comes before M1 counts as its.
    rounds: number of models to train.
    stage_left, left: seconds that this step and all steps still take, as far as they are known; stage_left is None
      where it is not.
    unknown: names of the stages that `left` does not include.
    at: when this was estimated, in seconds since 1970.
    """

    word: str
    stage: str
    round: int
    rounds: int
    stage_left: float | None
    left: float
    unknown: tuple[str, ...]
    at: float


def read(run: Run, table: StageTable, measured: Container[str], is_running: bool) -> RunState:
    """The state of a run.

    Args:
      run: the run.
      table: the stages.
      measured: names of the models that are evaluated.
      is_running: whether a process is working on it.
    """
    rounds = run.cfg.iterations
    if f"m{rounds}" in measured:
        return RunState("finished", "", rounds, rounds, None, 0.0, (), time.time())
    steps = [step for step in table.steps(run.cfg) if step.stage.manifest and step.manifest(run) is None]
    first = next(iter(steps), None)
    seconds = seconds_left(run, table)
    unknown = dict.fromkeys(label.rpartition(" ")[2] for label, left in seconds.items() if left is None)
    return RunState(
        "running" if is_running else "stopped",
        first.label if first else "",
        _round(first) if first else rounds,
        rounds,
        seconds.get(first.label) if first else None,
        sum(left for left in seconds.values() if left),
        tuple(unknown),
        time.time(),
    )


def _round(step: Step) -> int:
    number = step.folder.removeprefix("m")
    return max(1, int(number)) if number.isdigit() else 1


def seconds_left(run: Run, table: StageTable) -> dict[str, float | None]:
    """Seconds that each step to do still takes, by its label, in order; None where nothing like it was measured.

    `telemetry.schedule` says how they are estimated. What the first of them has taken already is subtracted.
    """
    schedule = make_schedule(run, table)
    left = {step.label: schedule.seconds(step) for step in schedule.steps if not step.done}
    spent = time_report.read(run.workdir, table.kind_of)["stages"]
    for label, seconds in list(left.items())[:1]:
        taken = sum(s for kind, s in spent.get(label, {}).items() if kind != "compiling")
        left[label] = max(0.0, seconds - taken) if seconds is not None else None
    return left
