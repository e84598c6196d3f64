"""From row numbers to arrays. Which rows make step s is a pure function of (seed, step): no iterator state."""

from collections.abc import Sequence

import numpy as np

from selfreward_jax.llm.chat import Example

Batch = dict[str, np.ndarray]


def epoch_permutation(rows: int, seed: int, epochs: float) -> np.ndarray:
    """Row numbers for `epochs` passes, each pass a fresh shuffle; a fraction takes the start of a pass."""
    whole = [
        np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)
        for epoch in range(int(np.ceil(epochs)))
    ]
    return np.concatenate(whole)[: round(rows * epochs)]


def pack(lengths: Sequence[int], sequence: Sequence[int], seq_len: int) -> list[list[int]]:
    """Puts texts side by side into rows of `width` tokens, in the order of `sequence`.

    First fit over the last 64 open rows: close to full rows, and nearby texts stay nearby.

    Args:
      lengths: tokens of each text, none above `width`.
      sequence: text numbers in the order they are to be seen.
      width: tokens of a row.

    Returns:
      For each row, the numbers of its texts.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sequence:
        for r in range(max(0, len(rows) - 64), len(rows)):
            if room[r] >= lengths[i]:
                break
        else:
            r = len(rows)
            rows.append([])
            room.append(seq_len)
        rows[r].append(int(i))
        room[r] -= lengths[i]
    return rows


def packed_batch(examples: Sequence[Example], rows: Sequence[Sequence[int]], seq_len: int) -> Batch:
    """Arrays [B, T] of packed rows: tokens, target, positions (restarting with each text), segments (from 1;
    0 is padding)."""
    shape = (len(rows), seq_len)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    batch["target"] = np.zeros(shape, np.float32)
    for r, texts in enumerate(rows):
        at = 0
        for number, i in enumerate(texts, 1):
            n = len(examples[i].ids)
            batch["tokens"][r, at : at + n] = examples[i].ids
            batch["target"][r, at : at + n] = examples[i].target
            batch["positions"][r, at : at + n] = np.arange(n)
            batch["segments"][r, at : at + n] = number
            at += n
    return batch


def padded_batch(examples: Sequence[Example], seq_len: int) -> Batch:
    """Arrays [B, T] of one text a row, padded on the right: tokens and target."""
    batch = {
        "tokens": np.zeros((len(examples), seq_len), np.int32),
        "target": np.zeros((len(examples), seq_len), np.float32),
    }
    for r, e in enumerate(examples):
        batch["tokens"][r, : len(e.ids)] = e.ids
        batch["target"][r, : len(e.ids)] = e.target
    return batch
