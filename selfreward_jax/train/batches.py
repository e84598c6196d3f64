"""Batches: order, packing and padding of rows. The rows of a step are a pure function of (seed, step).

So there is no iterator state to save.
"""

from collections.abc import Sequence

import numpy as np

from selfreward_jax.llm.chat import Example

Batch = dict[str, np.ndarray]

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


def packed_batch(examples: Sequence[Example], rows: Sequence[Sequence[int]], seq_len: int, num_slots: int = 0) -> Batch:
    """Arrays [B, T] of packed rows: tokens, target, positions and segments.

    Positions start from 0 in each text. Segments are numbered from 1; 0 is padding. With `num_slots` there is also
    `slots` [B, num_slots], the slots of the targets, padded with 0.
    """
    shape = (len(rows), seq_len)
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
    if num_slots:
        batch["slots"] = np.zeros((len(rows), num_slots), np.int32)
        for r, row in enumerate(batch["target"]):
            (targets,) = np.nonzero(row)
            batch["slots"][r, : len(targets)] = targets
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
