"""Self-rewarding, the stages in order (arXiv 2401.10020, section 2.4).

seeds -> base (m0) -> SFT on IFT alone (sft, a baseline); SFT on IFT and EFT (m1)
m_(t-1): prompts -> candidates -> judgments -> pairs -> DPO -> m_t, for t = 2, 3, ...
"""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax import stages, storage
from selfreward_jax.config import ConfigError
from selfreward_jax.data.seed_sets import DataError
from selfreward_jax.evaluate import model_metrics as measure
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.method.templates import TemplateError
from selfreward_jax.parallel import preemption
from selfreward_jax.report import summary
from selfreward_jax.report.page import Page
from selfreward_jax.runs.run import Run
from selfreward_jax.storage import lock
from selfreward_jax.telemetry import compile_cache, timing
from selfreward_jax.telemetry.progress import log_line


def run(
    cfg: ConfigDict,
    workdir: str,
    judge: Callable[[Run, int], None] = stages.self_judge,
    allow_config_changes: bool = False,
) -> dict[str, Any]:
    """Trains m1 ... m_iterations, measures each, and writes summary.json.

    Args:
      cfg: the settings.
      workdir: what it holds already is reused, what is missing is made.
      judge: makes m_t/judgments.jsonl. The model judges itself; an experiment may put a control here.
      allow_config_changes: whether settings may differ from those that the directory was begun with, where nothing was made
        with them yet.

    Returns:
      The summary.
    """
    timing.restart()
    r = Run(cfg, workdir, allow_config_changes=allow_config_changes)
    with lock.workdir_lock(r.workdir):
        r.start()
        log_line(f"workdir {r.workdir}, seed {cfg.seed}, up to m{cfg.iterations}")
        while True:
            try:
                return _made(r, judge)
            except preemption.Stopped:
                r.flush_usage()  # the ledger would count what was saved last as lost
                raise
            except storage.CorruptionError as error:
                # A stage whose file is gone makes it anew, and the same again.
                moved = [name for name in map(storage.quarantine, error.paths) if name]
                if not moved:
                    raise
                storage.warn(f"{error.why}; set aside as {' and '.join(moved)}, to be made anew")
                r.drop_engine()
                timing.restart()


def _made(r: Run, judge: Callable[[Run, int], None]) -> dict[str, Any]:
    """All stages, and behind them the report and the summary."""
    r.verify()
    page = Page(r)
    try:
        for _ in _stages(r, judge):
            page.rewrite()
    except stages.StageError as error:
        page.write(str(error))
        raise
    found = summary.write(r)
    page.write()
    return found


def _stages(r: Run, judge: Callable[[Run, int], None]) -> Iterator[None]:
    """All stages, each of which does what is not done yet."""
    cfg = r.cfg
    try:
        stages.check_inputs(r)
        yield stages.seed(r)
    except (TemplateError, ModelFormatError, DataError, ConfigError):
        r.rollback()  # a mended file may come back to the same directory
        raise
    stages.tokenizer(r)
    yield stages.pretrain(r)
    if cfg.sft_baseline:
        yield stages.sft_baseline(r)
        yield evaluate(r, "sft")
    if "eft" in {*cfg.sft.sets, *cfg.dpo.replay_sets}:
        yield stages.eft(r)
    yield stages.sft(r)
    yield evaluate(r, "m1")
    for t in range(2, cfg.iterations + 1):
        before = compile_cache.count()
        stages.check_judge(r, f"m{t - 1}")
        yield stages.prompts(r, t)
        asked = r.jsonl(f"m{t}", "prompts").rows()
        yield stages.sample_responses(r, f"m{t - 1}", asked, cfg.responses, f"m{t}", "responses")
        yield judge(r, t)
        stages.pairs(r, t)
        yield stages.check_round(r, t)
        yield stages.dpo(r, t)
        yield evaluate(r, f"m{t}")
        new = compile_cache.count().since(before)
        log_line(f"m{t}: {new.compiled} programs compiled, {new.cache_hits} read from the cache, {new.seconds:.1f} s")


def evaluate(r: Run, name: str) -> None:
    """NAME/eval.json: the model's answers to held-out prompts and its judgments of a fixed set of answers."""
    split = r.cfg.evaluate.split
    if storage.read_checksummed(r.workdir / name / "eval.json") is not None:
        return
    asked = r.jsonl("seed", split).rows()
    ranked = r.jsonl("seed", f"ranked_{split}").rows()
    stages.sample_best_of_n(r, name, asked, r.cfg.evaluate, name, "eval_answers")
    stages.judge(r, name, measure.ranked_answers(ranked), name, "eval_judgments")
    figures = measure.answer_figures(r.jsonl(name, "eval_answers").rows(), has_oracle=not r.cfg.data.ift)
    figures["judge"] = measure.judge_figures(ranked, r.jsonl(name, "eval_judgments").rows())
    storage.write_checksummed(r.workdir / name / "eval.json", figures)
