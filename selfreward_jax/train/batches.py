"""Batches: order, packing and padding of rows. The rows of a step are a pure function of (seed, step).

So there is no iterator state to save.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.self_attention import takes_texts
from selfreward_jax.train.text_rows import TextRows, text_rows, text_slots

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


class PackedLayout(NamedTuple):
    """The arrays of packed rows.

    seq_len: slots of a row.
    num_targets: slots of a row that logits are computed for; 0: all.
    text_rows: as the function of this name returns them; empty if attention takes packed rows as they are.
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
        batch["text_slots"], batch["text_places"] = text_slots(batch["segments"], layout.text_rows)
    return batch


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
