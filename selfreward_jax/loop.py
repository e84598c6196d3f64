"""Self-rewarding: all stages in order, on one working directory (arXiv 2401.10020, section 2.4).

The order is in `stages/table.py`. What the working directory holds already is used; what is missing is made.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.config import ConfigError, validate
from selfreward_jax.console import streams
from selfreward_jax.data.readers import DataError
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.memory import planner
from selfreward_jax.method.templates import TemplateError
from selfreward_jax.parallel import preemption
from selfreward_jax.report import closing, status, summary
from selfreward_jax.report.page import Page
from selfreward_jax.runs.owner import making
from selfreward_jax.runs.run import Run, claim, make_run, rollback
from selfreward_jax.sampling.engine import NonFiniteLogitsError
from selfreward_jax.stages import StageError
from selfreward_jax.stages.common import check_inputs
from selfreward_jax.stages.table import MEASURE, TABLE
from selfreward_jax.telemetry import compile_cache, progress, schedule, terminal, timing
from selfreward_jax.telemetry.numbers import counted, duration
from selfreward_jax.telemetry.terminal import log_line, show

Replacements = Mapping[str, Callable[[Run, str], object]]


def run(
    cfg: ConfigDict, workdir: str, replace: Replacements | None = None, allow_config_changes: bool = False
) -> dict[str, Any]:
    """Trains m1 ... m_iterations, evaluates each, and writes summary.json.

    Args:
      cfg: the settings.
      workdir: the working directory.
      replace: stages by name that an experiment makes in another way, such as a control's judgments.
      allow_config_changes: accept settings that differ from those stored there, where no artifact depends on them yet.

    Returns:
      The summary.

    Raises:
      ConfigError, DataError, ModelFormatError, TemplateError: the input is not usable.
      StageError: a stage cannot continue.
      StorageError: the working directory cannot be used.
      Stopped: the process was asked to stop.
    """
    streams.open_closed_streams()
    timing.restart()
    validate.validate(cfg, row_devices=1)
    cfg, reasons = planner.resolve(cfg, workdir)
    this = make_run(cfg, workdir)
    with claim(this, TABLE.dependents, allow_config_changes), terminal.log_to(this.workdir):
        for line in reasons:
            log_line(line)
        log_line(f"workdir {this.workdir}, seed {cfg.seed}, up to m{cfg.iterations}")

        def before_retry() -> None:
            this.models.drop_engine()
            timing.restart()

        try:
            return storage.regenerate_damaged(lambda: _run_steps(this, replace or {}), before_retry)
        finally:
            progress.end_silence()


def _run_steps(run: Run, replace: Replacements) -> dict[str, Any]:
    """All steps, each of which does what is missing. The report follows them."""
    run.files.verify()
    steps = TABLE.steps(run.cfg)
    schedule.start(status.make_schedule(run, TABLE))
    for line in status.resumed(run, schedule.current()):
        log_line(line)
    page = Page(run, TABLE)
    try:
        check_inputs(run)
        compiled = compile_cache.count()
        for step in steps:
            schedule.current().begin(step.label)
            if make := replace.get(step.stage.name, step.stage.run):
                with making(run, step), _with_label(step.label):
                    make(run, step.folder)
            page.write_if_due()
            if step.stage is MEASURE[-1]:
                compiled = _log_compilation(step.folder, compiled)
    except StageError as error:
        run.log.event(stopped=str(error))
        page.write(str(error))
        raise
    except preemption.Stopped:
        run.log.flush()  # otherwise what was saved last would count as lost
        page.write()  # the page of a run in progress would wait for it
        timing.restart()  # the writing of the page is no work that is lost
        raise
    except (TemplateError, ModelFormatError, DataError, ConfigError, OSError):
        rollback(run)  # a corrected input may use the same directory
        raise
    result = summary.write(run, TABLE)
    page.write()
    for line in closing.lines(run.workdir, result):
        show(line)
    return result


@contextlib.contextmanager
def _with_label(label: str) -> Iterator[None]:
    """Names the step whose model has logits that are not finite."""
    try:
        yield
    except NonFiniteLogitsError as error:
        raise StageError(f"{label}: {error}") from None


def _log_compilation(model: str, before: compile_cache.CompileCount) -> compile_cache.CompileCount:
    now = compile_cache.count()
    new = now.since(before)
    seconds = duration(new.seconds)
    programs = f"{counted(new.compiled, 'program')} compiled, {new.cache_hits:,} read from the cache"
    log_line(f"  compiling for {model}: {seconds}, {programs}")
    return now
