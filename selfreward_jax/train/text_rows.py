"""Rows of their own for the texts of packed rows, which attention needs on NVIDIA GPUs (llm/packed_texts.py).

How many of which length is chosen once for a data set, so that all batches are one program.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from selfreward_jax.parallel.sharding import round_up

TEXT_STEP = 16  # lengths of rows for single texts are multiples of it
MAX_TEXT_LENGTHS = 4  # each is a call of the attention kernel in every layer
MAX_TEXT_SLOTS = 6  # in place of one slot of a packed row
SPARE_TEXTS = 1.25  # times the most texts of a row in one packing, for other ones
TextRows = tuple[tuple[int, int], ...]  # (length, count), the shortest first


def text_rows(
    lengths: Sequence[int], rows: Sequence[Sequence[int]], seq_len: int, sample: Sequence[Sequence[int]] = ()
) -> TextRows:
    """The rows that the texts of a packed row get for themselves.

    Of all lengths that are the longest text's times 1, 1/2, 1/4, ... and between, those with the fewest slots in all.

    Args:
      lengths: number of tokens of each text.
      rows, seq_len: as in `batches.pack`.
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


def text_slots(segment_ids_BT: np.ndarray, rows_of_texts: TextRows) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
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
