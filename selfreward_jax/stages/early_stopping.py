"""Early stopping of DPO: a model that no longer wins against its own earlier self has learnt enough
(arXiv 2401.10020, section 3.1.3)."""

from typing import Any

from selfreward_jax import storage
from selfreward_jax.evaluate.head_to_head import win_rates
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.pairwise_eval import compare
from selfreward_jax.stages.self_reward import sample_responses, sample_with_engine
from selfreward_jax.telemetry import timing
from selfreward_jax.telemetry.progress import log_line
from selfreward_jax.train import checkpoints


class EarlyStopping:
    """Compares the model in training with the best one so far, on validation prompts.

    The judge is the model that the round began with; the first to be beaten is that model itself.

    Args:
      run: the run.
      name, previous: the model in training, and the one it started from.
    """

    def __init__(self, run: Run, name: str, previous: str) -> None:
        self.run, self.name, self.previous = run, name, previous
        self.prompts = run.jsonl("seed", "validation").rows()[: run.cfg.dpo.eval_prompts]
        self.rows = run.jsonl(name, "early_stopping")
        looks = self.rows.rows() if self.rows.manifest else self.rows.load_partial()
        self.known = {row["id"]: row for row in looks}
        self.best = max((int(row["id"]) for row in self.known.values() if row["kept"]), default=0)

    def _stage(self, step: int, what: str) -> str:
        return f"early_{step}_{what}"

    def __call__(self, step: int, params: Any) -> bool:
        """Whether training should go on after `step`: whether the model wins more often than it loses."""
        if row := self.known.get(str(step)):
            return row["kept"]
        label = f"{self.name} early_{step}"
        timing.begin_stage(label)  # what is kept here is not the steps between
        row = self._compare(step, params)
        timing.end_stage(label)
        return row["kept"]

    def _compare(self, step: int, params: Any) -> dict[str, Any]:
        run = self.run
        how = _one_answer(run.cfg.evaluate)
        first = self._stage(0, "answers")
        sample_responses(run, self.previous, self.prompts, how, self.name, first)
        ours = self._stage(step, "answers")
        sample_with_engine(run, run.make_engine(run.merge_lora(params)), self.prompts, how, self.name, ours)
        theirs = self._stage(self.best, "answers")
        sides = [run.jsonl(self.name, stage).rows() for stage in (ours, theirs)]
        verdicts = compare(run, self.previous, *sides, self.name, self._stage(step, "judgments"))
        run.drop_engine()
        found = win_rates(verdicts)
        kept = found["win"] > found["lose"]
        if kept:
            checkpoints.save_step(self.run.workdir / self.name / "best", step, params)
        shares = {k: found[k] for k in ("win", "tie", "lose")}
        row = {"id": str(step), "against": self.best, **shares, "kept": kept}
        self.rows.append([row])
        log_line(f"{self.name} step {step} : step {self.best}  win {found['win']:.3f}, lose {found['lose']:.3f}")
        self.known[row["id"]] = row
        self.best = step if kept else self.best
        return row

    def best_params(self) -> Any:
        """The parameters of the best step; those the round began with, where none was better.

        Raises:
          storage.Damaged: that step is not what was saved; only training can make it again, with the same looks.
        """
        run = self.run
        if not self.best:
            log_line(f"{self.name}: no step won against {self.previous}; it is {self.previous} again")
            return run.load_trainable(self.previous)
        try:
            return run.load_trainable(self.name, run.workdir / self.name / "best" / str(self.best))
        except storage.CorruptionError as error:
            looks = self.rows.path, self.rows.partial, self.rows.manifest_path
            raise storage.CorruptionError(error.why, *error.paths, run.workdir / self.name / "steps", *looks) from None

    def finish(self) -> None:
        """Makes the record whole. The best parameters stay until the model itself is: a kill in between costs a few
        steps and decides nothing anew."""
        self.rows.finish(list(self.known.values()))


def _one_answer(settings: Any) -> Any:
    one = settings.copy_and_resolve_references()
    one.num_samples = 1
    return one
