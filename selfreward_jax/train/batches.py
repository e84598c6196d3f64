"""Batches: order, packing and padding of rows. The rows of a step are a pure function of (seed, step).

So there is no iterator state to save.
"""

from collections.abc import Sequence

import numpy as np

from selfreward_jax.llm.chat import Example

Batch = dict[str, np.ndarray]


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


def packed_batch(examples: Sequence[Example], rows: Sequence[Sequence[int]], seq_len: int) -> Batch:
    """Arrays [B, T] of packed rows: tokens, target, positions and segments.

    Positions start from 0 in each text. Segments are numbered from 1; 0 is padding.
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
