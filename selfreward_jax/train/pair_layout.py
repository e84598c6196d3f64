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

WINDOW = 8  # batches within which pairs are sorted by length
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


class Schedule(NamedTuple):
    """The batches of all steps, and the layouts of their arrays.

    order: pair numbers, [steps, batch_size].
    layouts: from the smallest to the largest, which all pairs fit into.
    of_step: which of them each step has.
    """

    order: np.ndarray
    layouts: list[PairLayout]
    of_step: np.ndarray

    @property
    def tokens(self) -> float:
        """Slots of a pair, on average over the steps."""
        return float(np.mean([self.layouts[i].tokens for i in self.of_step]))


def make_schedule(
    pairs: Sequence[Pair],
    judge_pairs: int,
    settings: Any,
    seed: int,
    cfg: DecoderConfig,
    previous: Sequence[PairLayout] = (),
) -> Schedule:
    """Which pairs each step has, and how long its arrays are.

    With settings.length_buckets above 1, pairs are sorted by length within WINDOW batches, and these are shuffled. So
    batches have pairs of similar length. There are at most that many layouts, as each is a program to compile.

    Args:
      pairs: the pairs; the last `judge_pairs` are pairs of judgments.
      judge_pairs: how many these are.
      settings: config.dpo.
      seed: of the data order.
      cfg: of the model.
      previous: layouts for which programs are compiled, the largest last.
    """
    largest = choose_layout(pairs, cfg, previous[-1] if previous else None)
    needs = np.array([_needs(pair, largest) for pair in pairs])
    lengths = np.array([max(len(e.ids) for e in pair.sides) for pair in pairs])  # the order depends on nothing else
    order = batch_order(len(pairs) - judge_pairs, judge_pairs, settings, seed, lengths)
    if settings.length_buckets == 1:
        return Schedule(order, [largest], np.zeros(len(order), int))
    of_steps = needs[order].max(axis=1)  # [steps, 2]
    groups = np.array_split(of_steps[np.argsort(of_steps @ [1, 2], kind="stable")], settings.length_buckets)
    wanted = [_rounded(group.max(axis=0), largest) for group in groups if len(group)]
    layouts = sorted(
        {*(_known(layout, previous, largest) for layout in wanted[:-1]), largest}, key=lambda layout: layout.tokens
    )
    of_step = [next(i for i, layout in enumerate(layouts) if _fits(need, layout)) for need in of_steps]
    return Schedule(order, layouts, np.array(of_step))


def smallest_layout(pair: Pair, layouts: Sequence[PairLayout]) -> int:
    """The number of the smallest layout that a pair fits into, of those of a schedule."""
    return next(i for i, layout in enumerate(layouts) if _fits(_needs(pair, layout), layout))


def _needs(pair: Pair, layout: PairLayout) -> tuple[int, int]:
    """The slots that a pair needs: of the prefix, as the layout shares it, and of the longer side's rest."""
    prefix = min(shared_prefix_len(pair), layout.max_shared)
    return prefix, max(len(e.ids) for e in pair.sides) - prefix


def _rounded(need: np.ndarray, layout: PairLayout) -> PairLayout:
    prompt_len, suffix_len = (min(round_up(int(n), 16), most) for n, most in zip(need, layout[1:], strict=True))
    return layout._replace(prompt_len=prompt_len, suffix_len=suffix_len)


def _known(layout: PairLayout, previous: Sequence[PairLayout], largest: PairLayout) -> PairLayout:
    """A layout of before, within the largest, that this one fits into with few more slots; or this one."""
    same = [p for p in previous if p.max_shared == layout.max_shared]
    known = [p for p in same if _fits(layout[1:], p) and _fits(p[1:], largest)]
    best = min(known, key=lambda p: p.tokens, default=layout)
    return best if best.tokens <= 1.1 * layout.tokens else layout


def _fits(need: Sequence[int], layout: PairLayout) -> bool:
    return need[0] <= layout.prompt_len and need[1] <= layout.suffix_len


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


def batch_order(num_pairs: int, judge_pairs: int, settings: Any, seed: int, lengths: np.ndarray) -> np.ndarray:
    """The pair numbers of all steps, [steps, batch_size]; `lengths` are those of the pairs' longer sides."""
    of_judge = judge_pairs_per_batch(num_pairs, judge_pairs, settings)
    others = settings.batch_size - of_judge
    order = batches.epoch_permutation(num_pairs, seed, settings.epochs)
    steps = max(1, -(-len(order) // others))
    order = np.resize(order, steps * others)
    if settings.length_buckets > 1:
        order = _by_length(order, lengths, num_pairs, others, seed)
    order = order.reshape(steps, others)
    if of_judge:
        epochs = -(-steps * of_judge // judge_pairs)
        # A random stream of its own, as replay has.
        second = batches.epoch_permutation(judge_pairs, seed + (1 << 33), epochs)[: steps * of_judge]
        order = np.concatenate([order, num_pairs + second.reshape(steps, of_judge)], axis=1)
    return order


def _by_length(order: np.ndarray, lengths: np.ndarray, num_pairs: int, batch_size: int, seed: int) -> np.ndarray:
    """The same pairs, sorted by length within windows of WINDOW batches; the batches of a window are shuffled.

    Within a window epochs stay apart: else both places of a pair would be next to each other.
    """
    windows, epochs = [], np.arange(len(order)) // num_pairs
    for number, start in enumerate(range(0, len(order), WINDOW * batch_size)):
        places = slice(start, start + WINDOW * batch_size)
        window = order[places][np.lexsort((lengths[order[places]], epochs[places]))].reshape(-1, batch_size)
        shuffle = np.random.Generator(np.random.Philox(key=[seed, (1 << 34) + number]))
        windows.append(window[shuffle.permutation(len(window))].reshape(-1))
    return np.concatenate(windows)
