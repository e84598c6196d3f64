"""DPO: M_t from M_(t-1) and the preference pairs of round t."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from selfreward_jax import storage
from selfreward_jax.llm import lora
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.method.rows import PairRow
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import previous_model, seed_examples
from selfreward_jax.stages.early_stopping import EarlyStopping
from selfreward_jax.stages.training import Job, drop_overlong, is_trained, train
from selfreward_jax.telemetry.numbers import counted
from selfreward_jax.telemetry.terminal import log_line
from selfreward_jax.train.dpo import loss_fn, make_batch_fn, reference_logprobs
from selfreward_jax.train.monitor import TrainingMonitor
from selfreward_jax.train.pair_layout import Pair, PairLayout, judge_pairs_per_batch, make_schedule


def dpo(run: Run, model: str) -> None:
    """m_t: DPO on the pairs of round t, from m_(t-1), which is also the reference, if dpo.reference is not m1."""
    if is_trained(run, model):
        return
    settings, previous = run.cfg.dpo, previous_model(model)
    example = run.models.chat.example
    rows, of_judge = run.files.jsonl(model, "pairs").rows(), run.files.jsonl(model, "judge_pairs")
    judge_rows = of_judge.rows() if settings.judge_pairs != "none" and of_judge.manifest else []
    pairs = [
        Pair(*(example(row["prompt"], row[side]) for side in ("chosen", "rejected")), _label_smoothing(row))
        for row in (*rows, *judge_rows)
    ]
    decoder = Decoder(run.models.model_config(settings.dropout, adapters=True))
    # The layouts of the round before, so that slightly other lengths need no new compilation.
    known = (storage.read_checksummed(run.workdir / previous / "manifest.json") or {}).get("layouts", [])
    seed = run.files.stage_seed(model, "dpo")
    schedule = make_schedule(
        pairs, len(judge_rows), settings, seed, decoder.cfg, [PairLayout(*layout) for layout in known]
    )
    reference = _reference_logprobs(run, model, pairs, schedule.layouts)
    replay = [e for of_set in seed_examples(run, settings.replay_sets).values() for e in of_set]
    if settings.replay_weight and replay:
        replay = drop_overlong(replay, settings.replay_seq_len, f"{model} replay", "dpo.replay_seq_len")
    else:
        replay = []
    steps, batch_at = make_batch_fn(pairs, reference, replay, settings, seed, run.models.mesh, decoder.cfg, schedule)
    tokens = (
        round(settings.batch_size * schedule.tokens)
        + bool(replay) * settings.replay_batch_size * settings.replay_seq_len
    )
    of_judge = judge_pairs_per_batch(len(rows), len(judge_rows), settings)
    weights = np.full(len(pairs), 1 - of_judge / settings.batch_size)  # as the batches have them
    weights[: len(rows)] /= len(rows)
    weights[len(rows) :] = of_judge / settings.batch_size / max(1, len(judge_rows))
    monitor = TrainingMonitor(float(reference[:, 0] @ weights), run.cfg.checks.max_fall)
    early = EarlyStopping(run, model, previous) if settings.eval_every else None
    start = partial(run.models.load_trainable, previous)
    metadata = {
        "rows": len(rows),
        "judge_pairs": len(judge_rows),
        "layouts": [list(layout) for layout in schedule.layouts],
    }
    train(run, Job(model, "dpo", loss_fn(decoder, settings), steps, batch_at, start, tokens, monitor, metadata, early))


def _label_smoothing(row: PairRow) -> float | None:
    """(1 - tau-b) / 2, of a pair whose label is not taken as sure."""
    return (1 - row["agreement"]) / 2 if "agreement" in row else None


def _reference_logprobs(run: Run, model: str, pairs: Sequence[Pair], layouts: Sequence[PairLayout]) -> np.ndarray:
    """Log-probs [pairs, 2] of the responses under the reference, float32. They are stored in MODEL/ref_logprobs.json:
    the reference is not in memory during training, and a restart on other machines reads the same numbers."""
    path = run.workdir / model / "ref_logprobs.json"
    manifests = (run.files.jsonl(model, name).manifest for name in ("pairs", "judge_pairs"))
    stored, of_pairs = run.files.own(path), [manifest["sha256"] for manifest in manifests if manifest]
    if stored is None or stored["pairs"] != of_pairs:
        models = run.models
        reference = "m1" if run.cfg.dpo.reference == "m1" else previous_model(model)
        log_line(f"  {model} dpo: log-probs of {counted(len(pairs), 'pair')} under {reference}")
        models.drop_engine()  # of an earlier stage
        decoder = Decoder(models.model_config(adapters=True))
        params = lora.combine(models.frozen_base(), models.load_trainable(reference))
        logprobs = reference_logprobs(decoder, params, pairs, run.cfg.dpo.batch_size, models.mesh, layouts)
        stored = {"owner": run.files.owner, "pairs": of_pairs}
        stored |= {"chosen": logprobs[:, 0].tolist(), "rejected": logprobs[:, 1].tolist()}
        storage.write_checksummed(path, stored)
    return np.array([stored["chosen"], stored["rejected"]], np.float32).T
