"""Supervised fine-tuning: packed rows of texts, loss on their target tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.packed_texts import PackedTexts
from selfreward_jax.llm.parameters import Params
from selfreward_jax.train import batches, logprobs
from selfreward_jax.train.trainer import LossFn, Metrics, shard_batch


def packed_loss(model: Decoder, params: Params, batch: dict[str, Any], key: jax.Array) -> jax.Array:
    """The SFT loss of a packed batch (see `batches.packed_batch`), divided by `batch["target_total"]`."""
    segments = batch["segments"]
    if "text_slots" in batch:
        segments = PackedTexts(segments, batch["text_slots"], batch["text_places"])
    return logprobs.sft_loss(
        model,
        params,
        batch["tokens"],
        batch["target"],
        batch["target_total"],
        slots_BS=batch.get("slots"),
        positions_BT=batch["positions"],
        segment_ids_BT=segments,
        key=key,
    )


def loss_fn(model: Decoder) -> LossFn:
    """The training loss of a supervised run."""

    def loss(params: Params, batch: dict[str, Any], key: jax.Array) -> tuple[jax.Array, Metrics]:
        return packed_loss(model, params, batch, key if model.cfg.dropout else None), {}

    return loss


def make_batch_fn(
    examples: Sequence[Example], settings: Any, seed: int, mesh: Mesh, cfg: DecoderConfig
) -> tuple[int, Callable[[int], dict[str, Any]]]:
    """Returns the number of steps of `settings.epochs` epochs, and a function from a step to its sharded batch, for the
    model of `cfg`. Where the vocabulary is large, logits are computed for targets alone."""
    rows = batches.pack(
        [len(e.ids) for e in examples],
        batches.epoch_permutation(len(examples), seed, settings.epochs),
        settings.seq_len,
    )
    steps = -(-len(rows) // settings.batch_size)
    layout = batches.packed_layout(examples, rows, settings.seq_len, settings.batch_size, cfg)

    def batch_at(step: int) -> dict[str, Any]:
        # The last batch is padded with empty rows.
        batch_rows = rows[step * settings.batch_size : (step + 1) * settings.batch_size]
        batch_rows = batch_rows + [[]] * (settings.batch_size - len(batch_rows))
        arrays = batches.packed_batch(examples, batch_rows, layout)
        totals = {"target_total": max(1.0, arrays["target"].sum())}
        return shard_batch({"arrays": arrays, "totals": totals}, mesh, settings.grad_accum_steps)

    return steps, batch_at
