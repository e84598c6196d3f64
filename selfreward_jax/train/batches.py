"""Batches: order, packing and padding of rows. The rows of a step are a pure function of (seed, step).

So there is no iterator state to save.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.self_attention import takes_texts
from selfreward_jax.parallel.sharding import round_up

Batch = dict[str, Any]  # arrays, and tuples of arrays

SLOT_STEP = 64  # numbers of slots are multiples of it, so that few programs are compiled
MIN_SELECTED = 1 << 24  # logits of a batch; of fewer, all are computed


def epoch_permutation(num_rows: int, seed: int, epochs: float) -> np.ndarray:
    """Row numbers for `epochs` epochs, each with its own shuffle; a fraction takes the start of an epoch."""
    permutations = [
        np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_rows)
        for epoch in range(int(np.ceil(epochs)))
    ]
    return np.concatenate(permutations)[: round(num_rows * epochs)]


def pack(lengths: Sequence[int], order: Sequence[int], seq_len: int) -> list[list[int]]:
    """Packs texts into rows of `seq_len` tokens.

    First fit over the last 64 rows: rows are nearly full, and texts that are close in `order` stay close.

    Args:
      lengths: number of tokens of each text, at most `seq_len`.
      order: text numbers in training order.
      seq_len: tokens of a row.

    Returns:
      For each row, the numbers of its texts.
    """
    rows: list[list[int]] = []
    free: list[int] = []  # tokens
    for i in order:
        for r in range(max(0, len(rows) - 64), len(rows)):
            if free[r] >= lengths[i]:
                break
        else:
            r = len(rows)
            rows.append([])
            free.append(seq_len)
        rows[r].append(int(i))
        free[r] -= lengths[i]
    return rows


def target_slots(examples: Sequence[Example], rows: Sequence[Sequence[int]], seq_len: int, logits_per_slot: int) -> int:
    """How many slots of a packed row need logits, at most: those of targets; 0 where it saves little to select them.

    Args:
      examples, rows, seq_len: as in `pack`.
      logits_per_slot: of a batch.
    """
    most = max((sum(sum(examples[i].target) for i in row) for row in rows), default=0)
    slots = -(-most // SLOT_STEP) * SLOT_STEP
    return slots if seq_len * logits_per_slot > MIN_SELECTED and slots < 0.9 * seq_len else 0


TEXT_STEP = 16  # lengths of rows for single texts are multiples of it
MAX_TEXT_LENGTHS = 4  # each is a call of the attention kernel in every layer
MAX_TEXT_SLOTS = 6  # in place of one slot of a packed row
SPARE_TEXTS = 1.25  # times the most texts of a row in one packing, for other ones
TextRows = tuple[tuple[int, int], ...]  # (length, count), the shortest first


def text_rows(
    lengths: Sequence[int], rows: Sequence[Sequence[int]], seq_len: int, sample: Sequence[Sequence[int]] = ()
) -> TextRows:
    """The rows that the texts of a packed row get for themselves in attention (llm/packed_texts.py).

    Of all lengths that are the longest text's times 1, 1/2, 1/4, ... and between, those with the fewest slots in all.

    Args:
      lengths: number of tokens of each text.
      rows, seq_len: as in `pack`.
      sample: another packing of all texts. The choice is made for it, with room for more texts, so that it is the same
        for nearly every shuffle and no program is compiled again.

    Returns:
      (length, count), the shortest first. The texts of each row fit, where a short one may have a longer row. Nothing
      if that takes more than MAX_TEXT_SLOTS times the slots of packed rows.
    """
    longest = max((lengths[i] for row in (*rows, *sample) for i in row), default=1)
    parts = {round_up(round(longest * 2 ** (-i / 2)), TEXT_STEP) for i in range(16)}
    candidates = [0, *sorted(parts)]
    most = _most_longer(lengths, sample or rows, candidates)

    def layout(chosen: Sequence[int]) -> TextRows:
        ends = [0, *chosen, len(candidates) - 1]
        counts = -np.diff(most[ends])
        return tuple((candidates[end], int(count)) for end, count in zip(ends[1:], counts, strict=True) if count)

    choices = (c for n in range(MAX_TEXT_LENGTHS) for c in combinations(range(1, len(candidates) - 1), n))
    best = min(map(layout, choices), key=_num_slots)
    if sample:
        limits = np.array([0, *(length for length, _ in best)])
        of_sample, needed = (_most_longer(lengths, some, limits) for some in (sample, rows))
        room = np.minimum(np.round(of_sample * SPARE_TEXTS), np.maximum(seq_len // (limits + 1), of_sample))
        counts = -np.diff(np.maximum(room, needed)).astype(int)
        best = tuple((length, int(count)) for (length, _), count in zip(best, counts, strict=True) if count)
    return best if _num_slots(best) <= MAX_TEXT_SLOTS * seq_len else ()


def _most_longer(lengths: Sequence[int], rows: Sequence[Sequence[int]], limits: Sequence[int]) -> np.ndarray:
    """For each limit, how many texts of a row are longer, at most."""
    sizes = (sorted(lengths[i] for i in row) for row in rows)
    return np.max([len(row) - np.searchsorted(row, limits, "right") for row in sizes], axis=0)


def _num_slots(rows: TextRows) -> int:
    return sum(length * count for length, count in rows)


class PackedLayout(NamedTuple):
    """The arrays of packed rows.

    seq_len: slots of a row.
    num_targets: slots of a row that logits are computed for; 0: all.
    text_rows: as the function returns them; empty if attention takes packed rows as they are.
    """

    seq_len: int
    num_targets: int = 0
    text_rows: TextRows = ()


def packed_layout(
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    seq_len: int,
    batch_size: int,
    cfg: DecoderConfig,
    sample: Sequence[Sequence[int]] = (),
) -> PackedLayout:
    """The layout for all of `rows`, in batches of `batch_size`, of texts for a model; `sample` as in `text_rows`."""
    num_targets = target_slots(examples, rows, seq_len, batch_size * cfg.vocab_size)
    if not rows or not takes_texts(cfg.attention, cfg.attention_softcap):
        return PackedLayout(seq_len, num_targets)
    return PackedLayout(seq_len, num_targets, text_rows([len(e.ids) for e in examples], rows, seq_len, sample))


def packed_batch(examples: Sequence[Example], rows: Sequence[Sequence[int]], layout: PackedLayout) -> Batch:
    """Arrays [B, T] of packed rows: tokens, target, positions and segments.

    Positions start from 0 in each text. Segments are numbered from 1; 0 is padding. With `layout.num_targets` there is
    also `slots` [B, num_targets], the slots of the targets, padded with 0. With `layout.text_rows` there are
    `text_slots` and `text_places`, as in `PackedTexts`.
    """
    shape = (len(rows), layout.seq_len)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    batch["target"] = np.zeros(shape, np.float32)
    for r, texts in enumerate(rows):
        start = 0
        for number, i in enumerate(texts, 1):
            n = len(examples[i].ids)
            batch["tokens"][r, start : start + n] = examples[i].ids
            batch["target"][r, start : start + n] = examples[i].target
            batch["positions"][r, start : start + n] = np.arange(n)
            batch["segments"][r, start : start + n] = number
            start += n
    if layout.num_targets:
        batch["slots"] = np.zeros((len(rows), layout.num_targets), np.int32)
        for r, row in enumerate(batch["target"]):
            (targets,) = np.nonzero(row)
            batch["slots"][r, : len(targets)] = targets
    if layout.text_rows:
        batch["text_slots"], batch["text_places"] = _text_slots(batch["segments"], layout.text_rows)
    return batch


def _text_slots(segment_ids_BT: np.ndarray, rows_of_texts: TextRows) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """`slots` and `places_BT` of `PackedTexts`."""
    B = len(segment_ids_BT)
    slots = tuple(np.full((B, count, length), -1, np.int32) for length, count in rows_of_texts)
    places_BT = np.full_like(segment_ids_BT, -1)
    first = np.cumsum([0, *(length * count for length, count in rows_of_texts)])
    for r, segments in enumerate(segment_ids_BT):
        used = [0] * len(slots)
        texts = [np.nonzero(segments == text)[0] for text in range(1, segments.max() + 1)]
        for of_text in sorted(texts, key=len, reverse=True):  # so that a text never lacks a row that a shorter one took
            part = next(
                p for p, (length, count) in enumerate(rows_of_texts) if len(of_text) <= length and used[p] < count
            )
            slots[part][r, used[part], : len(of_text)] = of_text
            start = first[part] + used[part] * rows_of_texts[part][0]
            places_BT[r, of_text] = start + np.arange(len(of_text))
            used[part] += 1
    return slots, places_BT


def padded_batch(examples: Sequence[Example], seq_len: int) -> Batch:
    """Arrays [B, T] with one text a row, padded on the right: tokens and target."""
    batch = {
        "tokens": np.zeros((len(examples), seq_len), np.int32),
        "target": np.zeros((len(examples), seq_len), np.float32),
    }
    for r, e in enumerate(examples):
        batch["tokens"][r, : len(e.ids)] = e.ids
        batch["target"][r, : len(e.ids)] = e.target
    return batch
