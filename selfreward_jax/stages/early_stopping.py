"""Early stopping of DPO: a model that no longer wins against its own earlier step has learned enough
(arXiv 2401.10020, section 3.1.3)."""

from typing import Any

from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.evaluate.head_to_head import win_rates
from selfreward_jax.method.rows import EvalRow
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.pairwise_eval import compare
from selfreward_jax.stages.sampling import sample_responses, sample_with_engine
from selfreward_jax.telemetry import timing
from selfreward_jax.telemetry.numbers import three_digits
from selfreward_jax.telemetry.terminal import log_line
from selfreward_jax.train import checkpoints


class EarlyStopping:
    """Compares the model in training with its best step so far, on validation prompts.

    The judge is the model that the round started from. The first step to beat is that model itself.

    Args:
      run: the run.
      model, previous: the model in training, and the one it started from.
    """

    def __init__(self, run: Run, model: str, previous: str) -> None:
        self.run, self.model, self.previous = run, model, previous
        self.prompts = run.files.jsonl("seed", "validation").rows()[: run.cfg.dpo.eval_prompts]
        self.artifact = run.files.jsonl(model, "early_stopping")
        rows = self.artifact.rows() if run.files.is_complete(model, "early_stopping") else self.artifact.load_partial()
        self.evals: dict[str, EvalRow] = {row["id"]: row for row in rows}
        self.best = max((int(row["id"]) for row in self.evals.values() if row["kept"]), default=0)

    def __call__(self, step: int, params: Any) -> bool:
        """Whether training should continue after `step`: whether the model wins more often than it loses."""
        if row := self.evals.get(str(step)):
            return row["kept"]
        label = f"{self.model} early_{step}"
        timing.begin_stage(label)  # what it stores does not make the training steps before it safe
        row = self._compare(step, params)
        timing.end_stage(label)
        return row["kept"]

    def _compare(self, step: int, params: Any) -> EvalRow:
        run, models = self.run, self.run.models
        one_sample = _one_sample(run.cfg.evaluate)
        sample_responses(run, self.previous, self.prompts, one_sample, self.model, _stage(0, "answers"))
        engine = models.make_engine(models.merge_lora(params))
        sample_with_engine(run, engine, self.prompts, one_sample, self.model, _stage(step, "answers"))
        ours, best = (run.files.jsonl(self.model, _stage(s, "answers")).rows() for s in (step, self.best))
        verdicts = compare(run, self.previous, ours, best, self.model, _stage(step, "judgments"))
        models.drop_engine()
        rates = win_rates(verdicts)
        kept = rates["win"] > rates["lose"]
        if kept:
            checkpoints.save_step(run.workdir / self.model / "best", step, params, run.files.owner)
        shares = {k: rates[k] for k in ("win", "tie", "lose")}
        row: EvalRow = {"id": str(step), "against": self.best, **shares, "kept": kept}
        self.artifact.append([row])
        win, lose = (f"{three_digits(100 * rates[name])} %" for name in ("win", "lose"))
        log_line(f"  {self.model}: step {step} against step {self.best}: wins {win}, loses {lose}")
        self.evals[row["id"]] = row
        self.best = step if kept else self.best
        return row

    def best_params(self) -> Any:
        """The parameters of the best step; those the round started from, where no step was better.

        Raises:
          storage.CorruptionError: that step is not what was saved. Only training can make it again, with the same
            evaluations.
        """
        if not self.best:
            log_line(f"  {self.model}: no step won against {self.previous}; it keeps the weights of {self.previous}")
            return self.run.models.load_trainable(self.previous)
        folder = self.run.workdir / self.model
        try:
            return self.run.models.load_trainable(self.model, folder / "best" / str(self.best))
        except storage.CorruptionError as error:
            evals = self.artifact.path, self.artifact.partial_path, self.artifact.manifest_path
            raise storage.CorruptionError(error.reason, *error.paths, folder / "steps", *evals) from None

    def finish(self) -> None:
        """Completes the artifact of evaluations. The best parameters stay until the model itself is complete: a kill in
        between costs a few steps and decides nothing again."""
        self.artifact.finish(list(self.evals.values()))


def _stage(step: int, what: str) -> str:
    return f"early_{step}_{what}"


def _one_sample(settings: ConfigDict) -> ConfigDict:
    one = settings.copy_and_resolve_references()
    one.num_samples = 1
    return one
