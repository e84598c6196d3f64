"""Supervised steps: packed rows of texts, loss on their target tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.llama import Llama, Params
from selfreward_jax.train import batches, logprobs
from selfreward_jax.train.trainer import LossFn, Metrics, shard_batch


def packed_loss(model: Llama, params: Params, batch: dict[str, Any], key: jax.Array) -> jax.Array:
    """The SFT loss of a packed batch (see `batches.packed_batch`), divided by `batch["target_total"]`."""
    return logprobs.sft_loss(
        model,
        params,
        batch["tokens"],
        batch["target"],
        batch["target_total"],
        positions_BT=batch["positions"],
        segments_BT=batch["segments"],
        key=key,
    )


def loss_fn(model: Llama) -> LossFn:
    """The training loss of a supervised run."""

    def loss(params: Params, batch: dict[str, Any], key: jax.Array) -> tuple[jax.Array, Metrics]:
        return packed_loss(model, params, batch, key if model.cfg.dropout else None), {}

    return loss


def make_batch_fn(
    examples: Sequence[Example], settings: Any, seed: int, mesh: Mesh
) -> tuple[int, Callable[[int], dict[str, Any]]]:
    """How many steps `settings.epochs` take, and the batch of each step."""
    rows = batches.pack(
        [len(e.ids) for e in examples],
        batches.epoch_permutation(len(examples), seed, settings.epochs),
        settings.width,
    )
    steps = -(-len(rows) // settings.batch)

    def batch_at(step: int) -> dict[str, Any]:
        # The last batch is filled up with empty rows.
        chosen = rows[step * settings.batch : (step + 1) * settings.batch]
        chosen = chosen + [[]] * (settings.batch - len(chosen))
        arrays = batches.packed_batch(examples, chosen, settings.width)
        totals = {"target_total": max(1.0, arrays["target"].sum())}
        return shard_batch({"arrays": arrays, "totals": totals}, mesh, settings.accumulate)

    return steps, batch_at
