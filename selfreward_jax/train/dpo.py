"""DPO: preference pairs against a fixed reference, with optional NLL of the chosen response and replay of seed rows.

The prompt of a pair is processed once for both responses, if that saves enough:

    prompt_tokens   a b c . .        positions 0 1 2       a response attends to the prompt and to its own past,
    chosen_tokens   d e f .          positions 3 4 5       never to the other response; c predicts d and g
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
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params
from selfreward_jax.llm.self_attention import supports_prefix
from selfreward_jax.parallel.arrays import put
from selfreward_jax.parallel.sharding import batch_sharding, replicated, round_up
from selfreward_jax.train import batches, preference_losses
from selfreward_jax.train.logprobs import prefix_shared_logprobs, token_logprobs
from selfreward_jax.train.sft import packed_loss
from selfreward_jax.train.trainer import LossFn, Metrics, shard_batch

MAX_JUDGE_PAIR_REPEATS = 4  # a few pairs of judgments that come again and again would be learned by heart


class Pair(NamedTuple):
    """A prompt with the chosen response, and with the rejected one.

    label_smoothing: the probability that they are swapped, instead of dpo.label_smoothing; all pairs of a training have
      it, or none.
    """

    chosen: Example
    rejected: Example
    label_smoothing: float | None = None

    @property
    def sides(self) -> tuple[Example, Example]:
        """Both examples."""
        return self.chosen, self.rejected


class PairLayout(NamedTuple):
    """Lengths of the arrays of pairs.

    max_shared: at most this many tokens of the common prefix are shared; 0: each side is a full sequence.
    prompt_len: slots of the shared prefix.
    suffix_len: slots of the rest of each side.
    """

    max_shared: int
    prompt_len: int
    suffix_len: int

    @property
    def tokens(self) -> int:
        """Slots of a pair, in all."""
        return self.prompt_len + 2 * self.suffix_len


def choose_layout(pairs: Sequence[Pair], cfg: DecoderConfig, previous: PairLayout | None = None) -> PairLayout:
    """The layout with the fewest slots.

    The prefix is not shared if that saves less than 10 %, or if the model's attention kernel does not support it.

    Args:
      pairs: the pairs.
      cfg: of the model.
      previous: a layout for which programs are compiled. It is used again if it fits these pairs and needs at most
        10 % more slots.
    """
    shared = np.array([_shared_prefix_len(pair) for pair in pairs])
    length = np.array([max(len(e.ids) for e in pair.sides) for pair in pairs])

    def layout(max_shared: int) -> PairLayout:
        prefix = np.minimum(shared, max_shared)
        return PairLayout(int(max_shared), round_up(int(prefix.max()), 16), round_up(int((length - prefix).max()), 16))

    unshared = layout(0)
    best = min(map(layout, np.unique(shared)), key=lambda candidate: candidate.tokens)
    saves = best.tokens < 0.9 * unshared.tokens and shared.min() > 0
    best = best if saves and all(supports_prefix(cfg.attention, kind.window) for kind in cfg.kinds) else unshared
    if previous and bool(previous.max_shared) == bool(best.max_shared) and previous.tokens <= 1.1 * best.tokens:
        fits = (length - np.minimum(shared, previous.max_shared)).max() <= previous.suffix_len
        return previous if fits else best
    return best


def _shared_prefix_len(pair: Pair) -> int:
    """Length of the common prefix that carries no loss on either side."""
    chosen, rejected = pair.sides
    starts = (e.target.index(True) if any(e.target) else len(e.ids) for e in pair.sides)
    limit = min(*starts, *(len(e.ids) - 1 for e in pair.sides))
    return next((i for i in range(limit) if chosen.ids[i] != rejected.ids[i]), limit)


def pair_arrays(pairs: Sequence[Pair], layout: PairLayout) -> dict[str, np.ndarray]:
    """Arrays of B pairs.

    Returns:
      chosen_tokens, chosen_target, rejected_tokens and rejected_target, each [B, suffix_len]. If the layout shares the
      prefix, also prompt_tokens [B, prompt_len] and prompt_lengths [B].
    """
    shared = [min(_shared_prefix_len(pair), layout.max_shared) for pair in pairs]
    arrays = {}
    for number, side in enumerate(("chosen", "rejected")):
        suffixes = [Example(p[number].ids[n:], p[number].target[n:]) for p, n in zip(pairs, shared, strict=True)]
        arrays |= {f"{side}_{name}": x for name, x in batches.padded_batch(suffixes, layout.suffix_len).items()}
    if layout.max_shared:
        prompts = [Example(p.chosen.ids[:n], p.chosen.target[:n]) for p, n in zip(pairs, shared, strict=True)]
        arrays["prompt_tokens"] = batches.padded_batch(prompts, layout.prompt_len)["tokens"]
        arrays["prompt_lengths"] = np.array(shared, np.int32)
    return arrays


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


def reference_logprobs(
    model: Decoder, params: Params, pairs: Sequence[Pair], batch_size: int, mesh: Mesh, layout: PairLayout | None = None
) -> np.ndarray:
    """Sequence log-probs [pairs, 2] (chosen, rejected) under the reference, computed once for the round."""
    layout = layout or choose_layout(pairs, model.cfg)
    logprobs = jax.jit(partial(pair_logprobs, model), out_shardings=replicated(mesh))
    out = np.zeros((round_up(len(pairs), batch_size), 2), np.float32)
    for start in range(0, len(pairs), batch_size):
        rows = pairs[start : start + batch_size]
        arrays = pair_arrays([*rows, *[rows[-1]] * (batch_size - len(rows))], layout)
        sharded = {name: put(x, batch_sharding(mesh, x.ndim)) for name, x in arrays.items()}
        with jax.set_mesh(mesh):
            out[start : start + batch_size] = logprobs(params, sharded)
    return out[: len(pairs)]


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


def judge_pairs_per_batch(num_pairs: int, judge_pairs: int, settings: Any) -> int:
    """How many places of a batch are for judge pairs: the share that is set, but not so many that one comes more than
    MAX_JUDGE_PAIR_REPEATS times as often as another pair."""
    if not judge_pairs:
        return 0
    wanted = round(settings.batch_size * settings.judge_pair_share)
    most = settings.batch_size * judge_pairs * MAX_JUDGE_PAIR_REPEATS
    most //= num_pairs + judge_pairs * MAX_JUDGE_PAIR_REPEATS
    return max(1, min(wanted, most))


def _order(num_pairs: int, judge_pairs: int, settings: Any, seed: int) -> np.ndarray:
    """The pair numbers of all steps, batch after batch."""
    of_judge = judge_pairs_per_batch(num_pairs, judge_pairs, settings)
    others = settings.batch_size - of_judge
    order = batches.epoch_permutation(num_pairs, seed, settings.epochs)
    steps = max(1, -(-len(order) // others))
    order = np.resize(order, steps * others).reshape(steps, others)
    if of_judge:
        epochs = -(-steps * of_judge // judge_pairs)
        # A random stream of its own, as replay has.
        second = batches.epoch_permutation(judge_pairs, seed + (1 << 33), epochs)[: steps * of_judge]
        order = np.concatenate([order, num_pairs + second.reshape(steps, of_judge)], axis=1)
    return order.reshape(-1)


def make_batch_fn(
    pairs: Sequence[Pair],
    reference: np.ndarray,
    replay: Sequence[Example],
    settings: Any,
    seed: int,
    mesh: Mesh,
    cfg: DecoderConfig,
    layout: PairLayout | None = None,
    judge_pairs: int = 0,
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
      layout: of the pairs; by default `choose_layout`.
      judge_pairs: so many of `pairs`, the last ones, are pairs of judgments. They are settings.judge_pair_share of each
        batch, and at least one of it.
    """
    order = _order(len(pairs) - judge_pairs, judge_pairs, settings, seed)
    steps = len(order) // settings.batch_size
    layout = layout or choose_layout(pairs, cfg)
    rows: list[list[int]] = []
    num_slots = 0
    if settings.replay_weight and replay:
        lengths = [len(e.ids) for e in replay]
        epoch = 0
        while len(rows) < steps * settings.replay_batch_size:
            # A separate random stream, so that replay and pairs are shuffled independently.
            shuffle = np.random.Generator(np.random.Philox(key=[seed, (1 << 32) + epoch]))
            rows += batches.pack(lengths, shuffle.permutation(len(replay)), settings.replay_seq_len)
            epoch += 1
        logits_per_slot = settings.replay_batch_size * cfg.vocab_size
        num_slots = batches.target_slots(replay, rows, settings.replay_seq_len, logits_per_slot)

    def batch_at(step: int) -> dict[str, Any]:
        indices = order[step * settings.batch_size : (step + 1) * settings.batch_size]
        arrays = {"reference": reference[indices], **pair_arrays([pairs[i] for i in indices], layout)}
        if pairs[0].label_smoothing is not None:
            arrays["label_smoothing"] = np.array([pairs[i].label_smoothing for i in indices], np.float32)
        totals = {"pair_total": np.float32(settings.batch_size)}
        if rows:
            batch_rows = rows[step * settings.replay_batch_size : (step + 1) * settings.replay_batch_size]
            packed = batches.packed_batch(replay, batch_rows, settings.replay_seq_len, num_slots)
            arrays |= {f"replay_{name}": x for name, x in packed.items()}
            totals["replay_target_total"] = max(1.0, packed["target"].sum())
        return shard_batch({"arrays": arrays, "totals": totals}, mesh, settings.grad_accum_steps)

    return steps, batch_at
