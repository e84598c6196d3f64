"""How far a run is: its steps with the time that they take, and what an earlier start has done."""

import contextlib
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.parallel import processes
from selfreward_jax.report import time_report
from selfreward_jax.runs.run import Run
from selfreward_jax.runs.stage import StageTable, Step
from selfreward_jax.telemetry.numbers import counted
from selfreward_jax.telemetry.schedule import PlannedStep, Schedule
from selfreward_jax.train import checkpoints


def make_schedule(run: Run, table: StageTable) -> Schedule:
    """The steps of a run that take time, those of --dry_run, with the times that earlier starts measured. Of several
    processes only the primary, which prints the time left, has them."""
    if not processes.is_primary():
        return Schedule()
    with processes.local_only():
        steps = [step for step in table.steps(run.cfg) if step.stage.cost is not None]
        manifests = {step.label: _manifest(run, step) for step in steps}
        schedule = Schedule([_planned(run, step, manifests[step.label] is not None) for step in steps])
        times = time_report.read(run.workdir, table.kind_of)["stages"]
    for step in steps:
        seconds, manifest = times.get(step.label, {}).get(step.stage.kind), manifests[step.label]
        if manifest and seconds:
            schedule.measured(step.label, seconds, manifest.get("steps"))
    return schedule


def _manifest(run: Run, step: Step) -> dict[str, Any] | None:
    with contextlib.suppress(storage.StorageError):  # damaged: the stage finds that too, and makes it again
        return step.manifest(run)
    return None


def _planned(run: Run, step: Step, done: bool) -> PlannedStep:
    stage, cost = step.stage, step.stage.cost(run.cfg)
    work = stage.work(run.cfg) if stage.work else float(cost.tokens)
    # Rows without tokens to sample are chosen among others and take no time. Where there are no rows the data decide.
    chosen = bool(cost.rows) and stage.kind in ("sampling", "judging")
    tokens = step_tokens(run.cfg, stage.name) if stage.kind == "training" else 1.0
    return PlannedStep(step.label, stage.kind, work if work or chosen else None, done, tokens)


def step_tokens(cfg: ConfigDict, stage: str) -> float:
    """The likely number of tokens that one training step of a stage computes, forward and backward.

    A step of DPO computes both answers of each pair, and the replayed rows. The reference model computes each pair
    once: forward only, a third of the work.
    """
    if stage != "dpo":
        settings = cfg.pretrain if stage == "pretrain" else cfg.sft
        return settings.batch_size * settings.seq_len
    c = cfg.dpo
    passes = 2 * (1 + 1 / (3 * max(1.0, c.epochs))) if c.dpo_weight else 1  # without DPO: the chosen answer alone
    replayed = c.replay_batch_size * c.replay_seq_len if c.replay_weight else 0
    return c.batch_size * passes * cfg.responses.max_new_tokens + replayed


def resumed(run: Run, schedule: Schedule) -> list[str]:
    """What an earlier start has done, on one line; none if that is nothing."""
    done = [step for step in schedule.steps if step.done]
    todo = [step for step in schedule.steps if not step.done]
    part = ""
    if todo:
        with processes.local_only():
            part = _in_progress(run, *todo[0].label.split(" "), training=todo[0].training)
    if not done and not part:
        return []
    line = f"resuming: {len(done)} of {counted(len(schedule.steps), 'stage')} done"
    if not todo:
        return [f"{line}, nothing is left to do"]
    return [f"{line}, next is {schedule.numbered(todo[0].label)}" + f" with {part} done" * bool(part)]


def _in_progress(run: Run, folder: str, stage: str, training: bool) -> str:
    if training:
        step = checkpoints.latest_step(run.workdir / folder / "steps")
        return counted(step, "step") if step else ""
    rows = run.files.jsonl(folder, stage).count_partial()
    return counted(rows, "row") if rows else ""
