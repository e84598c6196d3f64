"""The trained models: SFT to M1, DPO to M2, M3, ..."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax import storage
from selfreward_jax.llm import chat, llama, lora
from selfreward_jax.llm.llama import Llama, Params
from selfreward_jax.parallel import preemption
from selfreward_jax.parallel.arrays import fetch
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import StageError, seed_examples
from selfreward_jax.stages.early_stopping import EarlyStopping
from selfreward_jax.telemetry.progress import Progress, log_line
from selfreward_jax.train import checkpoints, metric_writers, trainer
from selfreward_jax.train import dpo as dpo_lib
from selfreward_jax.train import sft as sft_lib
from selfreward_jax.train.monitor import TrainingMonitor


def sft_baseline(run: Run) -> None:
    """sft: the base model trained on IFT alone, the paper's SFT baseline."""
    if not is_trained(run, "sft"):
        train_packed(run, "sft", "sft", seed_examples(run, ("ift",))["ift"], partial(_from_base, run, "sft"))


def sft(run: Run) -> None:
    """m1: the base model trained on the sets that sft.sets names: IFT, EFT and few-shot prompt rows."""
    if not is_trained(run, "m1"):
        examples = [e for rows in seed_examples(run, run.cfg.sft.sets).values() for e in rows]
        train_packed(run, "m1", "sft", examples, partial(_from_base, run, "m1"))


def _from_base(run: Run, name: str) -> Params:
    """Where supervised training starts: M0, or fresh adapters for it."""
    if not run.cfg.lora.rank:
        return run.load_trainable("m0")
    declared = lora.trainable_specs(run.model_config(adapters=True))
    log_line(f"{name} adapters: {llama.parameter_count(declared):,} parameters are trained")
    return run.init_params(lambda key: llama.init_params(key, declared, "float32"), declared, name)


def dpo(run: Run, t: int) -> None:
    """m_t: DPO on the pairs of round t, started from m_(t-1), which is the reference."""
    name, previous = f"m{t}", f"m{t - 1}"
    if is_trained(run, name):
        return
    settings = run.cfg.dpo
    pairs = [
        dpo_lib.Pair(run.chat.example(r["prompt"], r["chosen"]), run.chat.example(r["prompt"], r["rejected"]))
        for r in run.jsonl(name, "pairs").rows()
    ]
    model = Llama(run.model_config(settings.dropout, adapters=True))
    # Of the round before, so that the programs need not be compiled anew for slightly other lengths.
    known = (storage.read_checksummed(run.workdir / previous / "manifest.json") or {}).get("layout")
    layout = dpo_lib.choose_layout(pairs, model.cfg, known and dpo_lib.PairLayout(*known))
    reference = _reference_logprobs(run, name, previous, pairs, layout)
    replay = [e for rows in seed_examples(run, settings.replay_sets).values() for e in rows]
    replay = (
        drop_overlong(replay, settings.replay_seq_len, f"{name} replay") if settings.replay_weight and replay else []
    )
    seed = run.stage_seed(name, "dpo")
    steps, batch_at = dpo_lib.make_batch_fn(pairs, reference, replay, settings, seed, run.mesh, model.cfg, layout)
    tokens = settings.batch_size * layout.tokens + bool(replay) * settings.replay_batch_size * settings.replay_seq_len
    early = EarlyStopping(run, name, previous) if settings.eval_every else None
    loss_fn = dpo_lib.loss_fn(model, settings)
    start = partial(run.load_trainable, previous)
    curve = TrainingMonitor(float(reference[:, 0].mean()), run.cfg.checks.max_fall)
    facts = {"rows": len(pairs), "layout": list(layout)}
    _train(run, name, "dpo", loss_fn, steps, batch_at, start, tokens, curve, early, **facts)


def _diverged_error(run: Run, name: str, stage: str, error: trainer.DivergenceError, batch_at: Any) -> StageError:
    """The error for a run that has diverged; what the step read lies in NAME/diverged.json."""
    arrays = {n: x.reshape(-1, *x.shape[2:]) for n, x in fetch(batch_at(error.step)["arrays"]).items()}
    texts = {n: [run.chat.tokenizer.decode(row.tolist()) for row in x] for n, x in arrays.items() if "tokens" in n}
    storage.write_json(
        run.workdir / name / "diverged.json", {"stage": stage, "step": error.step, "said": str(error), **texts}
    )
    good = checkpoints.latest_step(run.workdir / name / "steps")
    return StageError(
        f"{name} {stage}: {error}. What it read is in {run.workdir / name / 'diverged.json'}; the last good state is "
        + ("the start" if good is None else f"step {good} (steps/{good})")
        + f": in a new --workdir lower {stage}.lr, or leave such steps out with max_nonfinite_steps"
    )


def _reference_logprobs(
    run: Run, name: str, previous: str, pairs: list[dpo_lib.Pair], layout: dpo_lib.PairLayout
) -> np.ndarray:
    """Log-probs [pairs, 2] under the reference, kept in NAME/ref_logprobs.json: it is not in memory while NAME is trained,
    and a restart, on whatever machines, goes on with the same numbers."""
    path = run.workdir / name / "ref_logprobs.json"
    kept, of = storage.read_checksummed(path), run.jsonl(name, "pairs").manifest["sha256"]
    if kept is None or kept["pairs"] != of:
        run.drop_engine()  # the engine of an earlier stage
        model, params = (
            Llama(run.model_config(adapters=True)),
            lora.combine(run.frozen_base(), run.load_trainable(previous)),
        )
        found = dpo_lib.reference_logprobs(model, params, pairs, run.cfg.dpo.batch_size, run.mesh, layout)
        kept = {"pairs": of, "chosen": found[:, 0].tolist(), "rejected": found[:, 1].tolist()}
        storage.write_checksummed(path, kept)
    return np.array([kept["chosen"], kept["rejected"]], np.float32).T


def drop_overlong(examples: list[chat.Example], seq_len: int, what: str) -> list[chat.Example]:
    """The texts of at most `width` tokens; says how many are left out."""
    kept = [e for e in examples if len(e.ids) <= seq_len]
    if len(kept) < len(examples):
        log_line(
            f"{what}: {len(examples) - len(kept)} of {len(examples)} texts are longer than {seq_len} tokens, left out"
        )
    if not kept:
        raise StageError(f"{what}: no text fits into {seq_len} tokens; raise the width")
    return kept


def is_trained(run: Run, model: str) -> bool:
    """Whether the model is whole on disk."""
    trained = storage.read_checksummed(run.workdir / model / "manifest.json") is not None
    trained = trained and storage.exists(run.workdir / model / "checkpoint.json")  # not set aside
    if trained:
        _clear(run, model)  # a kill may have come between the manifest and this
    return trained


def _clear(run: Run, model: str) -> None:
    """Removes what only serves a model in the making."""
    for name in ("steps", "best"):
        storage.remove(run.workdir / model / name)


def train_packed(run: Run, name: str, stage: str, examples: list[chat.Example], start: Callable[[], Params]) -> None:
    """NAME/checkpoint: trained from `start()` on the texts, packed, by the settings of `stage`."""
    settings = run.cfg[stage]
    examples = drop_overlong(examples, settings.seq_len, f"{name} {stage}")
    model = Llama(run.model_config(settings.dropout, adapters=name != "m0"))
    steps, batch_at = sft_lib.make_batch_fn(examples, settings, run.stage_seed(name, stage), run.mesh)
    tokens = settings.batch_size * settings.seq_len
    _train(
        run, name, stage, sft_lib.loss_fn(model), steps, batch_at, start, tokens, TrainingMonitor(), rows=len(examples)
    )


def _train(
    run: Run,
    name: str,
    stage: str,
    loss_fn: trainer.LossFn,
    steps: int,
    batch_at: Any,
    start: Callable[[], Params],
    tokens_a_step: int,
    curve: TrainingMonitor,
    early: EarlyStopping | None = None,
    **facts: Any,
) -> None:
    """Trains from `start()` (or from the latest saved step) and leaves NAME/checkpoint and, with `facts`,
    NAME/manifest.json."""
    run.drop_engine()  # the engine of an earlier stage
    settings = run.cfg[stage]
    optimizer = trainer.make_optimizer(run.cfg.optimizer, run.cfg.max_nonfinite_steps)
    declared = lora.trainable_specs(run.model_config(adapters=name != "m0"))
    abstract = llama.abstract_params(declared, "float32")
    lying = run.shardings(declared)
    shardings = trainer.state_shardings(optimizer, abstract, lying, run.mesh, run.cfg.optimizer.offload)

    def fresh(params: Any) -> trainer.TrainState:
        return trainer.TrainState(jnp.int32(0), params, optimizer.init(params))

    path = run.workdir / name / "steps"
    state = checkpoints.restore_latest(path, jax.eval_shape(fresh, abstract), shardings)
    if state is None:
        state = jax.jit(fresh, out_shardings=shardings, donate_argnums=0)(start())
    else:
        log_line(f"{name} {stage}: going on from step {int(state.step)}")
    frozen = run.frozen_base() if name != "m0" else None
    progress = Progress(f"{name} {stage}", steps, int(state.step), unit="steps")
    rate = trainer.make_schedule(steps, settings.lr, settings.lr_end, settings.warmup_steps)

    def report(record: metric_writers.Add, step: int, metrics: dict[str, float]) -> None:
        run.log(model=name, stage=stage, step=step, lr=rate(step), **metrics)
        record(step, {"lr": rate(step), **metrics})
        run.note_time()
        progress.add(1, tokens_a_step, note=f"loss {metrics['loss']:.3f}")
        for line in curve.warnings(step, metrics):
            storage.warn(f"{name} {stage} {line}")
        if metrics.get("skipped"):
            storage.warn(f"{name} {stage} step {step} is left out, its gradient is not finite (max_nonfinite_steps)")

    try:
        with metric_writers.metric_writer(run.cfg, run.workdir, f"{name}-{stage}", int(state.step)) as record:
            state = trainer.fit(
                state,
                trainer.make_update(loss_fn, optimizer, shardings, run.mesh),
                batch_at,
                steps,
                rate,
                run.stage_key(name, stage),
                checkpoint_every=run.cfg.checkpoint_every,
                path=path,
                on_step=partial(report, record),
                frozen=frozen,
                eval_fn=early,
                eval_every=settings.eval_every if early else 0,
                should_stop=preemption.stop_requested,
                max_nonfinite_steps=run.cfg.max_nonfinite_steps,
            )
    except trainer.DivergenceError as error:
        raise _diverged_error(run, name, stage, error, batch_at) from None
    done = int(state.step)
    facts = {"stage": stage, "steps": done, "tokens": done * tokens_a_step, **facts}
    params = state.params
    del state
    if early:
        params = early.best_params()
        facts["best_step"] = early.best
    facts["weights"] = checkpoints.save(run.workdir / name / "checkpoint", params)
    if early:
        early.finish()
    storage.write_checksummed(run.workdir / name / "manifest.json", facts)
    _clear(run, name)
    progress.close()
    run.flush_usage()
