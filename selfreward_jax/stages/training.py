"""What SFT and DPO share: a resumable training run that ends in a checkpoint and a manifest."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from selfreward_jax import storage
from selfreward_jax.llm import lora
from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.parameters import Params, abstract_params
from selfreward_jax.parallel import preemption
from selfreward_jax.parallel.arrays import fetch
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import StageError
from selfreward_jax.stages.early_stopping import EarlyStopping
from selfreward_jax.telemetry.numbers import three_digits
from selfreward_jax.telemetry.progress import Progress
from selfreward_jax.telemetry.terminal import log_line
from selfreward_jax.train import checkpoints, metric_writers, trainer
from selfreward_jax.train.monitor import TrainingMonitor


class Job(NamedTuple):
    """One training run.

    model: the model that it makes, such as "m2".
    stage: the section of the settings: pretrain, sft or dpo.
    loss_fn: the loss of a microbatch.
    steps: optimizer steps.
    batch_at: the sharded batch of a step; a pure function.
    start: makes the parameters that training starts from.
    tokens_per_step: tokens of a batch, padding included.
    monitor: warns of spikes and falls.
    metadata: further fields of the manifest.
    early_stopping: ends the run early, if given.
    """

    model: str
    stage: str
    loss_fn: trainer.LossFn
    steps: int
    batch_at: Callable[[int], dict[str, Any]]
    start: Callable[[], Params]
    tokens_per_step: int
    monitor: TrainingMonitor
    metadata: dict[str, Any]
    early_stopping: EarlyStopping | None = None

    @property
    def label(self) -> str:
        """The job in messages and in the log."""
        return f"{self.model} {self.stage}"


def has_model(run: Run, model: str) -> bool:
    """Whether there is a complete model, whoever made it."""
    folder = run.workdir / model
    return all(storage.exists(folder / name) for name in ("manifest.json", "checkpoint.json"))


def is_trained(run: Run, model: str) -> bool:
    """Whether the model is complete, and made by the step at hand. Then what only served its training is removed.

    Raises:
      storage.CorruptionError: it is of another run, or was made from other inputs.
    """
    folder = run.workdir / model
    checkpoint = folder / "checkpoint"
    of_checkpoint = checkpoint, checkpoints.manifest_path(checkpoint)
    manifest = run.files.own(folder / "manifest.json", *of_checkpoint)
    saved = storage.read_checksummed(of_checkpoint[1])
    if manifest is None or saved is None:  # the checkpoint may be quarantined
        return False
    if saved["fingerprint"] != manifest["weights"]:
        raise storage.CorruptionError(f"{checkpoint} is not that of {folder / 'manifest.json'}", *of_checkpoint)
    _remove_steps(run, model)  # a kill may have come between the manifest and this
    return True


def _remove_steps(run: Run, model: str) -> None:
    for name in ("steps", "best"):
        storage.remove(run.workdir / model / name)


def drop_overlong(examples: Sequence[Example], seq_len: int, label: str, setting: str) -> list[Example]:
    """The examples of at most `seq_len` tokens, the value of `setting`. Logs how many are left out.

    Raises:
      StageError: there are none.
    """
    short = [example for example in examples if len(example.ids) <= seq_len]
    if len(short) < len(examples):
        count = len(examples) - len(short)
        log_line(f"{label}: {count} of {len(examples)} examples have more than {seq_len} tokens ({setting}): left out")
    if not short:
        raise StageError(f"{label}: no example fits into {seq_len} tokens: raise {setting}")
    return short


def train(run: Run, job: Job) -> None:
    """Trains from `job.start()`, or from the latest saved step, and writes MODEL/checkpoint and MODEL/manifest.json.

    Raises:
      StageError: the loss or its gradient is not finite.
    """
    run.models.drop_engine()  # of an earlier stage
    specs = lora.trainable_specs(run.models.model_config(adapters=job.model != "m0"))
    optimizer = trainer.make_optimizer(run.cfg.optimizer, run.cfg.max_nonfinite_steps)
    params = abstract_params(specs, "float32")
    shardings = trainer.state_shardings(
        optimizer, params, run.models.shardings(specs), run.models.mesh, run.cfg.optimizer.offload
    )

    def initial(params: Any) -> trainer.TrainState:
        return trainer.TrainState(jnp.int32(0), params, optimizer.init(params))

    abstract, owner = jax.eval_shape(initial, params), run.files.owner
    state = checkpoints.restore_latest(_steps_dir(run, job), abstract, shardings, owner)
    if state is None:
        state = jax.jit(initial, out_shardings=shardings, donate_argnums=0)(job.start())
    else:
        log_line(f"  {job.label}: resuming from step {int(state.step):,} of {job.steps:,}")
    progress = Progress(job.label, job.steps, int(state.step), unit="steps")
    update = trainer.make_update(job.loss_fn, optimizer, shardings, run.models.mesh)
    state = _fit(run, job, state, update, progress)
    steps, params = int(state.step), state.params
    del state  # frees the optimizer's moments
    _finish(run, job, steps, params)
    progress.close()
    run.log.flush()


def _steps_dir(run: Run, job: Job) -> Any:
    return run.workdir / job.model / "steps"


def _fit(
    run: Run, job: Job, state: trainer.TrainState, update: trainer.Update, progress: Progress
) -> trainer.TrainState:
    """Runs the optimizer steps. Metrics go to the log, to the metric writers and to the progress line."""
    settings, early = run.cfg[job.stage], job.early_stopping
    lr_schedule = trainer.make_schedule(job.steps, settings.lr, settings.lr_end, settings.warmup_steps)

    def on_step(write: metric_writers.WriteMetrics, step: int, metrics: dict[str, float]) -> None:
        metrics = {"lr": lr_schedule(step), **metrics}
        run.log.event(model=job.model, stage=job.stage, step=step, **metrics)
        write(step, metrics)
        run.log.note_time()
        progress.add(1, job.tokens_per_step, note=f"loss {three_digits(metrics['loss'])}")
        for warning in job.monitor.warnings(step, metrics):
            storage.warn(f"{job.label} {warning}")
        if metrics.get("skipped"):
            storage.warn(f"{job.label} step {step} is skipped: its gradient is not finite (max_nonfinite_steps)")

    frozen = run.models.frozen_base() if job.model != "m0" else None
    key = run.files.stage_key(job.model, job.stage)
    try:
        with metric_writers.metric_writer(run.cfg, run.workdir, f"{job.model}-{job.stage}", int(state.step)) as write:
            options = trainer.FitOptions(
                path=_steps_dir(run, job),
                checkpoint_every=run.cfg.checkpoint_every,
                on_step=partial(on_step, write),
                eval_fn=early,
                eval_every=settings.eval_every if early else 0,
                should_stop=preemption.stop_requested,
                max_nonfinite_steps=run.cfg.max_nonfinite_steps,
                owner=run.files.owner,
            )
            return trainer.fit(state, update, job.batch_at, job.steps, lr_schedule, key, options, frozen)
    except trainer.DivergenceError as error:
        raise _diverged_error(run, job, error) from None


def _finish(run: Run, job: Job, steps: int, params: Params) -> None:
    """Writes the checkpoint and then the manifest, which makes the model complete."""
    folder, early = run.workdir / job.model, job.early_stopping
    manifest = {**run.files.made_by(), "stage": job.stage, "steps": steps}
    manifest |= {"tokens": steps * job.tokens_per_step, **job.metadata}
    if early:
        params = early.best_params()
        manifest["best_step"] = early.best
    manifest["weights"] = checkpoints.save(folder / "checkpoint", params, run.files.owner)
    if early:
        early.finish()
    storage.write_checksummed(folder / "manifest.json", manifest)
    _remove_steps(run, job.model)


def _diverged_error(run: Run, job: Job, error: trainer.DivergenceError) -> StageError:
    """The error of a diverged run. The batch of that step is stored in MODEL/diverged.json."""
    path = run.workdir / job.model / "diverged.json"
    arrays = {n: x.reshape(-1, *x.shape[2:]) for n, x in fetch(job.batch_at(error.step)["arrays"]).items()}
    decode = run.models.chat.tokenizer.decode
    texts = {n: [decode(row.tolist()) for row in x] for n, x in arrays.items() if "tokens" in n}
    storage.write_json(path, {"stage": job.stage, "step": error.step, "error": str(error), **texts})
    saved = checkpoints.latest_step(_steps_dir(run, job))
    last = "its start" if saved is None else f"step {saved} (steps/{saved})"
    return StageError(
        f"{job.label}: {error}. The batch of that step is in {path}; the last good state is {last}: in a new --workdir "
        f"lower {job.stage}.lr, or skip such steps with max_nonfinite_steps"
    )
