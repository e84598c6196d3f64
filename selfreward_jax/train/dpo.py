"""DPO: preference pairs against a fixed reference, with optional NLL of the chosen response and replay of seed rows.

How pairs become arrays is in pair_layout.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params
from selfreward_jax.parallel.arrays import put
from selfreward_jax.parallel.sharding import batch_sharding, replicated
from selfreward_jax.train import batches, preference_losses
from selfreward_jax.train.logprobs import prefix_shared_logprobs, token_logprobs
from selfreward_jax.train.pair_layout import (
    Pair,
    PairLayout,
    Schedule,
    choose_layout,
    make_schedule,
    pair_arrays,
    smallest_layout,
)
from selfreward_jax.train.sft import packed_loss
from selfreward_jax.train.trainer import LossFn, Metrics, compiler_options, shard_batch


def pair_logprobs(model: Decoder, params: Params, batch: dict[str, Any], key: jax.Array | None = None) -> jax.Array:
    """Sequence log-probs [B, 2] of the chosen and the rejected responses; `batch` is from `pair_arrays`."""

    def interleaved(name: str) -> jax.Array:  # [2B, T]: chosen, rejected, chosen, rejected, ...
        sides = jnp.stack([batch[f"chosen_{name}"], batch[f"rejected_{name}"]], axis=1)
        return sides.reshape(-1, sides.shape[-1])

    if "prompt_tokens" in batch:
        prompt = batch["prompt_tokens"], batch["prompt_lengths"]
        logprobs = prefix_shared_logprobs(model, params, *prompt, interleaved("tokens"), key=key)
    else:
        logprobs = token_logprobs(model, params, interleaved("tokens"), key=key)
    return jnp.sum(logprobs * interleaved("target"), axis=-1).reshape(-1, 2)


def reference_fn(model: Decoder, mesh: Mesh) -> Callable[[Params, dict[str, Any]], jax.Array]:
    """`pair_logprobs`, jitted for parameters as they are sharded in training; every device gets the results."""
    return jax.jit(
        partial(pair_logprobs, model), out_shardings=replicated(mesh), compiler_options=compiler_options(mesh)
    )


def reference_logprobs(
    model: Decoder,
    params: Params,
    pairs: Sequence[Pair],
    batch_size: int,
    mesh: Mesh,
    layouts: Sequence[PairLayout] = (),
) -> np.ndarray:
    """Sequence log-probs [pairs, 2] (chosen, rejected) under the reference, computed once for the round.

    With several layouts, each pair is in the smallest one that it fits into; they are in the order of their size.
    """
    layouts = layouts or [choose_layout(pairs, model.cfg)]
    logprobs = reference_fn(model, mesh)
    out = np.zeros((len(pairs), 2), np.float32)
    smallest = np.array([smallest_layout(pair, layouts) for pair in pairs])
    for number, layout in enumerate(layouts):
        (members,) = np.nonzero(smallest == number)
        for start in range(0, len(members), batch_size):
            rows = members[start : start + batch_size]
            arrays = pair_arrays([pairs[i] for i in np.resize(rows, batch_size)], layout)
            sharded = {name: put(x, batch_sharding(mesh, x.ndim)) for name, x in arrays.items()}
            with jax.set_mesh(mesh):
                out[rows] = np.asarray(logprobs(params, sharded))[: len(rows)]
    return out


def loss_fn(model: Decoder, settings: Any) -> LossFn:
    """dpo_weight * preference loss + nll_weight * NLL of the chosen responses + replay_weight * SFT loss on seed rows.

    The NLL is that of Iterative RPO (arXiv 2404.19733, eq. 1): the mean over the |y| tokens of each chosen response,
    then the mean over pairs. TRL's `sft` loss with `sigmoid` is the mean over all chosen tokens of the microbatch, in
    which long responses weigh more; with one pair per microbatch both are equal. With dpo_weight 0 this is supervised
    training on the chosen responses.

    Args:
      model: the policy.
      settings: config.dpo.
    """

    def loss(params: Params, batch: dict[str, Any], key: jax.Array) -> tuple[jax.Array, Metrics]:
        key = key if model.cfg.dropout else None
        pair_key, replay_key = (None, None) if key is None else jax.random.split(key)
        chosen, rejected = pair_logprobs(model, params, batch, pair_key).T
        lengths = (jnp.sum(batch[f"{side}_target"], axis=-1) for side in ("chosen", "rejected"))
        pairs = preference_losses.PairLogProbs(
            chosen, rejected, batch["reference"][:, 0], batch["reference"][:, 1], *lengths
        )
        of_pairs = batch.get("label_smoothing")
        losses, margin = preference_losses.pair_loss(
            settings.loss if of_pairs is None else "cdpo",
            pairs,
            settings.beta,
            settings.label_smoothing if of_pairs is None else of_pairs,
            settings.gamma,
        )
        share = 1 / batch["pair_total"]
        dpo = jnp.sum(losses) * share
        nll = -jnp.sum(chosen / pairs.chosen_length) * share
        total = settings.dpo_weight * dpo + settings.nll_weight * nll
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
            total = total + settings.replay_weight * metrics["replay"]
        return total, metrics

    return loss


def make_batch_fn(
    pairs: Sequence[Pair],
    reference: np.ndarray,
    replay: Sequence[Example],
    settings: Any,
    seed: int,
    mesh: Mesh,
    cfg: DecoderConfig,
    schedule: Schedule | None = None,
) -> tuple[int, Callable[[int], dict[str, Any]]]:
    """Returns the number of steps of `settings.epochs` epochs, and a function from a step to its sharded batch.

    Every batch is full: the last one is completed with the first pairs of the order. An epoch is one of the pairs that
    are no judge pairs; those come again as often as needed.

    Args:
      pairs: the preference pairs.
      reference: log-probs [pairs, 2] under the reference model.
      replay: seed texts for the SFT loss.
      settings: config.dpo.
      seed: seed of the data order.
      mesh: the training mesh.
      cfg: of the model.
      schedule: which pairs each step has; by default `make_schedule` without judge pairs.
    """
    schedule = schedule or make_schedule(pairs, 0, settings, seed, cfg)
    steps = len(schedule.order)
    replay_at = _replay_fn(replay, settings, seed, cfg, steps) if settings.replay_weight and replay else None

    def batch_at(step: int) -> dict[str, Any]:
        indices, layout = schedule.order[step], schedule.layouts[schedule.of_step[step]]
        arrays = {"reference": reference[indices], **pair_arrays([pairs[i] for i in indices], layout)}
        if pairs[0].label_smoothing is not None:
            arrays["label_smoothing"] = np.array([pairs[i].label_smoothing for i in indices], np.float32)
        totals = {"pair_total": np.float32(settings.batch_size)}
        if replay_at:
            replayed = replay_at(step)
            arrays |= {f"replay_{name}": x for name, x in replayed.items()}
            totals["replay_target_total"] = max(1.0, replayed["target"].sum())
        return shard_batch({"arrays": arrays, "totals": totals}, mesh, settings.grad_accum_steps)

    return steps, batch_at


def _replay_fn(
    replay: Sequence[Example], settings: Any, seed: int, cfg: DecoderConfig, steps: int
) -> Callable[[int], batches.Batch]:
    """A function from a step to its packed rows of seed texts, for as many epochs as `steps` steps need."""
    lengths = [len(e.ids) for e in replay]
    rows: list[list[int]] = []
    epoch = 0
    while len(rows) < steps * settings.replay_batch_size:
        # A separate random stream, so that replay and pairs are shuffled independently.
        shuffle = np.random.Generator(np.random.Philox(key=[seed, (1 << 32) + epoch]))
        rows += batches.pack(lengths, shuffle.permutation(len(replay)), settings.replay_seq_len)
        epoch += 1
    # Rounds differ in their shuffles, but not in this one: so they have one layout, and one program.
    sample = batches.pack(lengths, batches.epoch_permutation(len(replay), 0, 1), settings.replay_seq_len)
    layout = batches.packed_layout(replay, rows, settings.replay_seq_len, settings.replay_batch_size, cfg, sample)

    def rows_at(step: int) -> batches.Batch:
        first = step * settings.replay_batch_size
        return batches.packed_batch(replay, rows[first : first + settings.replay_batch_size], layout)

    return rows_at
