"""DPO steps: pairs against a fixed reference, with optional NLL on the chosen answer and replay of seed rows."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.llama import Llama, Params
from selfreward_jax.parallel.arrays import put
from selfreward_jax.parallel.sharding import by_row, replicated, round_up
from selfreward_jax.train import batches, losses, preference
from selfreward_jax.train.sft import packed_loss
from selfreward_jax.train.trainer import LossFn, Metrics, place


class Pair(NamedTuple):
    """A prompt with the chosen and with the rejected response."""

    chosen: Example
    rejected: Example


def pair_width(pairs: Sequence[Pair]) -> int:
    """Tokens of a row that holds any of these texts."""
    return round_up(max(len(e.ids) for pair in pairs for e in pair), 16)


def reference_logprobs(model: Llama, params: Params, pairs: Sequence[Pair], batch: int, mesh: Mesh) -> np.ndarray:
    """Sequence log-probs [pairs, 2] (chosen, rejected) under the reference, computed once for the round."""
    width = pair_width(pairs)
    logprobs = jax.jit(partial(losses.sequence_logprobs, model), out_shardings=replicated(mesh))
    out = np.zeros((round_up(len(pairs), batch), 2), np.float32)
    for start in range(0, len(pairs), batch):
        rows = pairs[start : start + batch]
        rows = [*rows, *[rows[-1]] * (batch - len(rows))]
        for side in (0, 1):
            arrays = batches.padded_batch([pair[side] for pair in rows], width)
            tokens, target = (put(arrays[n], by_row(mesh, 2)) for n in ("tokens", "target"))
            with jax.set_mesh(mesh):
                out[start : start + batch, side] = logprobs(params, tokens, target)
    return out[: len(pairs)]


def loss_fn(model: Llama, settings: Any) -> LossFn:
    """weight * a loss of preference.py + nll * NLL of the chosen + replay * SFT loss on seed rows.

    The NLL is that of Iterative RPO (arXiv 2404.19733, eq. 1): each chosen response's own mean over its |y| tokens,
    then the mean over pairs. TRL's `sft` beside `sigmoid` is the mean over all chosen tokens of the microbatch, in
    which long responses weigh more; of one pair at a time both are the same. With weight 0 it is supervised training
    on the chosen answers.
    """

    def loss(params: Params, batch: dict[str, Any], key: jax.Array) -> tuple[jax.Array, Metrics]:
        key = key if model.cfg.dropout else None
        pair_key, replay_key = (None, None) if key is None else jax.random.split(key)
        # Both sides in one forward pass: [2B, T].
        tokens = jnp.concatenate([batch["chosen_tokens"], batch["rejected_tokens"]])
        target = jnp.concatenate([batch["chosen_target"], batch["rejected_target"]])
        chosen, rejected = jnp.split(losses.sequence_logprobs(model, params, tokens, target, key=pair_key), 2)
        lengths = jnp.split(jnp.sum(target, axis=-1), 2)
        pairs = preference.PairLogProbs(chosen, rejected, batch["reference"][:, 0], batch["reference"][:, 1], *lengths)
        each, margin = preference.pair_loss(
            settings.loss, pairs, settings.beta, settings.label_smoothing, settings.gamma
        )
        share = 1 / batch["pair_total"]
        dpo = jnp.sum(each) * share
        nll = -jnp.sum(chosen / pairs.chosen_length) * share
        total = settings.weight * dpo + settings.nll * nll
        metrics = {
            "dpo": dpo,
            "nll": nll,
            "accuracy": jnp.sum(margin > 0) * share,
            "margin": jnp.sum(margin) * share,
            "chosen_logprob": jnp.sum(chosen) * share,
            "rejected_logprob": jnp.sum(rejected) * share,
        }
        if "replay_tokens" in batch:
            replay = {n.removeprefix("replay_"): x for n, x in batch.items() if n.startswith("replay_")}
            metrics["replay"] = packed_loss(model, params, replay, replay_key)
            total = total + settings.replay * metrics["replay"]
        return total, metrics

    return loss


def batches_of(
    pairs: Sequence[Pair],
    reference: np.ndarray,
    replay: Sequence[Example],
    settings: Any,
    seed: int,
    mesh: Mesh,
) -> tuple[int, Callable[[int], dict[str, Any]]]:
    """How many steps `settings.epochs` over the pairs take, and the batch of each step.

    Every batch is full: the last one is completed with the first pairs of the order.
    """
    order = batches.order(len(pairs), seed, settings.epochs)
    steps = max(1, -(-len(order) // settings.batch))
    order = np.resize(order, steps * settings.batch)
    width = pair_width(pairs)
    rows: list[list[int]] = []
    if settings.replay and replay:
        lengths = [len(e.ids) for e in replay]
        epoch = 0
        while len(rows) < steps * settings.replay_batch:
            # Its own stream of shuffles, so that it does not move in step with the pairs.
            shuffle = np.random.Generator(np.random.Philox(key=[seed, (1 << 32) + epoch]))
            rows += batches.pack(lengths, shuffle.permutation(len(replay)), settings.replay_width)
            epoch += 1

    def batch_at(step: int) -> dict[str, Any]:
        chosen = order[step * settings.batch : (step + 1) * settings.batch]
        arrays: dict[str, np.ndarray] = {"reference": reference[chosen]}
        for number, side in enumerate(("chosen", "rejected")):
            padded = batches.padded_batch([pairs[i][number] for i in chosen], width)
            arrays |= {f"{side}_{name}": x for name, x in padded.items()}
        totals = {"pair_total": np.float32(settings.batch)}
        if rows:
            taken = rows[step * settings.replay_batch : (step + 1) * settings.replay_batch]
            packed = batches.packed_batch(replay, taken, settings.replay_width)
            arrays |= {f"replay_{name}": x for name, x in packed.items()}
            totals["replay_target_total"] = max(1.0, packed["target"].sum())
        return place({"arrays": arrays, "totals": totals}, mesh, settings.accumulate)

    return steps, batch_at
