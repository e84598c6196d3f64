"""How far a judge agrees with the true ranking: the paper's reward-model table (arXiv 2401.10020, section 2.4).

Each instruction has several answers with a true score and the judge's score, the mean of its readable votes
(None without any: such an answer is left out, and counted).
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

Scores = Sequence[float]


def agreement(instructions: Sequence[tuple[Scores, Sequence[float | None]]]) -> dict[str, Any]:
    """The judge's agreement with the truth.

    Args:
      instructions: for each, the true scores and the judge's scores of its answers.

    Returns:
      pairwise_accuracy: share of pairs, among those the truth orders, that the judge orders the same way; a
        judge's tie is half a pair. `pairwise_without_ties` leaves such ties out, `pairwise_ties_wrong` counts
        them as wrong, `tie_rate` is their share.
      exact_match: share of instructions where every pair that the truth orders is ordered the same way; a
        judge's tie on one is a mismatch.
      five_best: among answers the judge gives a 5, the share that is (or shares) the truth's best; None if it
        gives none. `fives` counts them.
      spearman, kendall: rank correlation (kendall is tau-b), the mean over instructions; those where either
        side is constant have none and are counted in `constant`.
      missing: answers without a score.
    """
    right = wrong = tied = exact = fives = best_fives = missing = constant = counted = 0
    spearmans, kendalls = [], []
    for truth, judged in instructions:
        kept = [(t, j) for t, j in zip(truth, judged, strict=True) if j is not None]
        missing += len(truth) - len(kept)
        fives += sum(j == 5 for _, j in kept)
        best_fives += sum(j == 5 and t == max(truth) for t, j in kept)
        ordered = [(a, b) for a, b in combinations(kept, 2) if a[0] != b[0]]
        signs = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in ordered]
        right += (good := sum(s > 0 for s in signs))
        tied += sum(s == 0 for s in signs)
        wrong += sum(s < 0 for s in signs)
        if ordered:
            counted += 1
            exact += good == len(ordered)
        x, y = [t for t, _ in kept], [j for _, j in kept]
        if len(set(x)) > 1 and len(set(y)) > 1:
            spearmans.append(spearman(x, y))
            kendalls.append(kendall(x, y))
        else:
            constant += 1
    pairs = right + wrong + tied
    return {
        "pairwise_accuracy": _share(right + tied / 2, pairs),
        "pairwise_without_ties": _share(right, right + wrong),
        "pairwise_ties_wrong": _share(right, pairs),
        "tie_rate": _share(tied, pairs),
        "exact_match": _share(exact, counted),
        "five_best": _share(best_fives, fives),
        "fives": fives,
        "spearman": _share(sum(spearmans), len(spearmans)),
        "kendall": _share(sum(kendalls), len(kendalls)),
        "constant": constant,
        "missing": missing,
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def ranks(x: Scores) -> list[float]:
    """Ranks from 1; equal values share the mean of their ranks."""
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def spearman(x: Scores, y: Scores) -> float:
    """Pearson's correlation of the ranks; neither side may be constant."""
    a, b = ranks(x), ranks(y)
    mean = (len(x) + 1) / 2
    covariance = sum((p - mean) * (q - mean) for p, q in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((p - mean) ** 2 for p in a) * sum((q - mean) ** 2 for q in b))


def kendall(x: Scores, y: Scores) -> float:
    """Kendall's tau-b; neither side may be constant."""
    agree = untied_x = untied_y = 0
    for (a, b), (c, d) in combinations(list(zip(x, y, strict=True)), 2):
        agree += ((a > c) - (a < c)) * ((b > d) - (b < d))
        untied_x += a != c
        untied_y += b != d
    return agree / math.sqrt(untied_x * untied_y)
