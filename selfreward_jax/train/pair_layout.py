"""Preference pairs as arrays: which pairs share a batch, how long its arrays are, and what is in them.

The prompt of a pair is processed once for both responses, if that saves enough:

    prompt_tokens   a b c . .        positions 0 1 2       a response attends to the prompt and to its own past,
    chosen_tokens   d e f .          positions 3 4 5       never to the other response; c predicts d and g
    rejected_tokens g h . .          positions 3 4
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.self_attention import supports_prefix
from selfreward_jax.parallel.sharding import round_up
from selfreward_jax.train import batches

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
    shared = np.array([shared_prefix_len(pair) for pair in pairs])
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


def shared_prefix_len(pair: Pair) -> int:
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
    shared = [min(shared_prefix_len(pair), layout.max_shared) for pair in pairs]
    arrays = {}
    for number, side in enumerate(("chosen", "rejected")):
        suffixes = [Example(p[number].ids[n:], p[number].target[n:]) for p, n in zip(pairs, shared, strict=True)]
        arrays |= {f"{side}_{name}": x for name, x in batches.padded_batch(suffixes, layout.suffix_len).items()}
    if layout.max_shared:
        prompts = [Example(p.chosen.ids[:n], p.chosen.target[:n]) for p, n in zip(pairs, shared, strict=True)]
        arrays["prompt_tokens"] = batches.padded_batch(prompts, layout.prompt_len)["tokens"]
        arrays["prompt_lengths"] = np.array(shared, np.int32)
    return arrays


def judge_pairs_per_batch(num_pairs: int, judge_pairs: int, settings: Any) -> int:
    """How many places of a batch are for judge pairs: the share that is set, but not so many that one comes more than
    MAX_JUDGE_PAIR_REPEATS times as often as another pair."""
    if not judge_pairs:
        return 0
    wanted = round(settings.batch_size * settings.judge_pair_share)
    most = settings.batch_size * judge_pairs * MAX_JUDGE_PAIR_REPEATS
    most //= num_pairs + judge_pairs * MAX_JUDGE_PAIR_REPEATS
    return max(1, min(wanted, most))


def batch_order(num_pairs: int, judge_pairs: int, settings: Any, seed: int) -> np.ndarray:
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
