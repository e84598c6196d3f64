"""DPO steps: pairs against a fixed reference, with optional NLL on the chosen answer and replay of seed rows.

A pair's prompt is read once for both sides, where that saves enough:

    prompt_tokens   a b c . .        positions 0 1 2       what follows looks at the prompt and at its own past,
    chosen_tokens   d e f .          positions 3 4 5       never at the other side; d and g are predicted from c
    rejected_tokens g h . .          positions 3 4
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.llama import Llama, LlamaConfig, Params
from selfreward_jax.llm.self_attention import supports_prefix
from selfreward_jax.parallel.arrays import put
from selfreward_jax.parallel.sharding import batch_sharding, replicated, round_up
from selfreward_jax.train import batches, preference_losses
from selfreward_jax.train.logprobs import prefix_shared_logprobs, token_logprobs
from selfreward_jax.train.sft import packed_loss
from selfreward_jax.train.trainer import LossFn, Metrics, shard_batch


class Pair(NamedTuple):
    """A prompt with the chosen and with the rejected response."""

    chosen: Example
    rejected: Example


class PairLayout(NamedTuple):
    """How pairs lie in arrays. Of what both sides begin with, `most` tokens at most are read once, in `prompt` slots;
    what follows on each side has `rest` slots. With most 0 each side is read whole."""

    max_shared: int
    prompt_len: int
    suffix_len: int

    @property
    def tokens(self) -> int:
        """Slots of a pair."""
        return self.prompt_len + 2 * self.suffix_len


def choose_layout(pairs: Sequence[Pair], cfg: LlamaConfig, known: PairLayout | None = None) -> PairLayout:
    """The layout that takes the fewest slots; each side whole if sharing saves less than a tenth, or if the model's
    kind of attention would have to be given up for it. `known`, for which there are programs, if it does for these
    pairs too and takes a tenth more at most."""
    shared = np.array([_shared_prefix_len(pair) for pair in pairs])
    length = np.array([max(len(e.ids) for e in pair) for pair in pairs])

    def layout(most: int) -> PairLayout:
        read_once = np.minimum(shared, most)
        return PairLayout(int(most), round_up(int(read_once.max()), 16), round_up(int((length - read_once).max()), 16))

    whole = layout(0)
    best = min(map(layout, np.unique(shared)), key=lambda found: found.tokens)
    saves = best.tokens < 0.9 * whole.tokens and shared.min() > 0
    best = best if saves and supports_prefix(cfg.attention, cfg.sliding_window) else whole
    if known and bool(known.max_shared) == bool(best.max_shared) and known.tokens <= 1.1 * best.tokens:
        fits = (length - np.minimum(shared, known.max_shared)).max() <= known.suffix_len
        return known if fits else best
    return best


def _shared_prefix_len(pair: Pair) -> int:
    """Tokens that both sides begin with and that neither is to learn."""
    chosen, rejected = pair
    most = min(*(e.target.index(True) if any(e.target) else len(e.ids) for e in pair), *(len(e.ids) - 1 for e in pair))
    return next((i for i in range(most) if chosen.ids[i] != rejected.ids[i]), most)


def pair_arrays(pairs: Sequence[Pair], layout: PairLayout) -> dict[str, np.ndarray]:
    """Arrays of B pairs: SIDE_tokens and SIDE_target [B, rest]; of what they share prompt_tokens [B, prompt] and
    prompt_lengths [B], if it is read once."""
    taken = [min(_shared_prefix_len(pair), layout.max_shared) for pair in pairs]
    arrays = {}
    for number, side in enumerate(("chosen", "rejected")):
        rests = [Example(p[number].ids[n:], p[number].target[n:]) for p, n in zip(pairs, taken, strict=True)]
        arrays |= {f"{side}_{name}": x for name, x in batches.padded_batch(rests, layout.suffix_len).items()}
    if layout.max_shared:
        prompts = [Example(p.chosen.ids[:n], p.chosen.target[:n]) for p, n in zip(pairs, taken, strict=True)]
        arrays["prompt_tokens"] = batches.padded_batch(prompts, layout.prompt_len)["tokens"]
        arrays["prompt_lengths"] = np.array(taken, np.int32)
    return arrays


def pair_logprobs(model: Llama, params: Params, batch: dict[str, Any], key: jax.Array | None = None) -> jax.Array:
    """Log-probs [B, 2] of the chosen and the rejected response of pairs in the arrays of `pair_arrays`."""

    def both(name: str) -> jax.Array:  # [2B, T], the sides of a pair after each other
        sides = jnp.stack([batch[f"chosen_{name}"], batch[f"rejected_{name}"]], axis=1)
        return sides.reshape(-1, sides.shape[-1])

    if "prompt_tokens" in batch:
        prompt = batch["prompt_tokens"], batch["prompt_lengths"]
        logprobs = prefix_shared_logprobs(model, params, *prompt, both("tokens"), key=key)
    else:
        logprobs = token_logprobs(model, params, both("tokens"), key=key)
    return jnp.sum(logprobs * both("target"), axis=-1).reshape(-1, 2)


def reference_logprobs(
    model: Llama, params: Params, pairs: Sequence[Pair], batch: int, mesh: Mesh, layout: PairLayout | None = None
) -> np.ndarray:
    """Sequence log-probs [pairs, 2] (chosen, rejected) under the reference, computed once for the round."""
    layout = layout or choose_layout(pairs, model.cfg)
    logprobs = jax.jit(partial(pair_logprobs, model), out_shardings=replicated(mesh))
    out = np.zeros((round_up(len(pairs), batch), 2), np.float32)
    for start in range(0, len(pairs), batch):
        rows = pairs[start : start + batch]
        arrays = pair_arrays([*rows, *[rows[-1]] * (batch - len(rows))], layout)
        placed = {name: put(x, batch_sharding(mesh, x.ndim)) for name, x in arrays.items()}
        with jax.set_mesh(mesh):
            out[start : start + batch] = logprobs(params, placed)
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
        chosen, rejected = pair_logprobs(model, params, batch, pair_key).T
        lengths = (jnp.sum(batch[f"{side}_target"], axis=-1) for side in ("chosen", "rejected"))
        pairs = preference_losses.PairLogProbs(
            chosen, rejected, batch["reference"][:, 0], batch["reference"][:, 1], *lengths
        )
        each, margin = preference_losses.pair_loss(
            settings.loss, pairs, settings.beta, settings.label_smoothing, settings.gamma
        )
        share = 1 / batch["pair_total"]
        dpo = jnp.sum(each) * share
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
    cfg: LlamaConfig,
    layout: PairLayout | None = None,
) -> tuple[int, Callable[[int], dict[str, Any]]]:
    """How many steps `settings.epochs` over the pairs take, and the batch of each step.

    Every batch is full: the last one is completed with the first pairs of the order.
    """
    order = batches.epoch_permutation(len(pairs), seed, settings.epochs)
    steps = max(1, -(-len(order) // settings.batch_size))
    order = np.resize(order, steps * settings.batch_size)
    layout = layout or choose_layout(pairs, cfg)
    rows: list[list[int]] = []
    if settings.replay_weight and replay:
        lengths = [len(e.ids) for e in replay]
        epoch = 0
        while len(rows) < steps * settings.replay_batch_size:
            # Its own stream of shuffles, so that it does not move in step with the pairs.
            shuffle = np.random.Generator(np.random.Philox(key=[seed, (1 << 32) + epoch]))
            rows += batches.pack(lengths, shuffle.permutation(len(replay)), settings.replay_seq_len)
            epoch += 1

    def batch_at(step: int) -> dict[str, Any]:
        chosen = order[step * settings.batch_size : (step + 1) * settings.batch_size]
        arrays = {"reference": reference[chosen], **pair_arrays([pairs[i] for i in chosen], layout)}
        totals = {"pair_total": np.float32(settings.batch_size)}
        if rows:
            taken = rows[step * settings.replay_batch_size : (step + 1) * settings.replay_batch_size]
            packed = batches.packed_batch(replay, taken, settings.replay_seq_len)
            arrays |= {f"replay_{name}": x for name, x in packed.items()}
            totals["replay_target_total"] = max(1.0, packed["target"].sum())
        return shard_batch({"arrays": arrays, "totals": totals}, mesh, settings.grad_accum_steps)

    return steps, batch_at
