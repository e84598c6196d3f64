"""How far a judge agrees with the true ranking: the paper's reward-model table (arXiv 2401.10020, section 2.4).

Each instruction has several answers with a true score and the judge's score, the mean of its readable votes
(None without any: such an answer is left out, and counted). What an instruction adds to each figure is a row of
counts, so that a figure is a ratio of two columns' sums, of all instructions or of any draw of them.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from selfreward_jax.evaluate import bootstrap

Scores = Sequence[float]

# What one instruction adds, in this order.
COLUMNS = tuple("right wrong tied exact orderable fives best_fives spearman kendall correlated missing".split())


def per_prompt_stats(instructions: Sequence[tuple[Scores, Sequence[float | None]]]) -> np.ndarray:
    """What each instruction adds to the figures, [instructions, COLUMNS], float64.

    Args:
      instructions: for each, the true scores and the judge's scores of its answers.
    """
    return np.array([_prompt_stats(truth, judged) for truth, judged in instructions], float).reshape(-1, len(COLUMNS))


def _prompt_stats(truth: Scores, judged: Sequence[float | None]) -> list[float]:
    kept = [(t, j) for t, j in zip(truth, judged, strict=True) if j is not None]
    signs = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in combinations(kept, 2) if a[0] != b[0]]
    right, wrong, tied = (sum(map(test, signs)) for test in (lambda s: s > 0, lambda s: s < 0, lambda s: s == 0))
    fives = [t for t, j in kept if j == 5]
    x, y = [t for t, _ in kept], [j for _, j in kept]
    correlated = len(set(x)) > 1 and len(set(y)) > 1
    return [
        right,
        wrong,
        tied,
        bool(signs) and right == len(signs),
        bool(signs),
        len(fives),
        sum(t == max(truth) for t in fives),
        spearman(x, y) if correlated else 0.0,
        kendall(x, y) if correlated else 0.0,
        correlated,
        len(truth) - len(kept),
    ]


def metrics_from_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of sums of COLUMNS [..., COLUMNS]; nan where there is nothing to divide by.

    pairwise_accuracy: share of pairs, among those the truth orders, that the judge orders the same way; a
      judge's tie is half a pair. `pairwise_without_ties` leaves such ties out, `pairwise_ties_wrong` counts
      them as wrong, `tie_rate` is their share.
    exact_match: share of instructions where every pair that the truth orders is ordered the same way; a
      judge's tie on one is a mismatch.
    five_best: among answers the judge gives a 5, the share that is (or shares) the truth's best.
    spearman, kendall: rank correlation (kendall is tau-b), the mean over instructions where neither side is
      constant.
    """
    c = dict(zip(COLUMNS, np.moveaxis(np.asarray(sums, float), -1, 0), strict=True))
    pairs = c["right"] + c["wrong"] + c["tied"]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "pairwise_accuracy": (c["right"] + c["tied"] / 2) / pairs,
            "pairwise_without_ties": c["right"] / (c["right"] + c["wrong"]),
            "pairwise_ties_wrong": c["right"] / pairs,
            "tie_rate": c["tied"] / pairs,
            "exact_match": c["exact"] / c["orderable"],
            "five_best": c["best_fives"] / c["fives"],
            "spearman": c["spearman"] / c["correlated"],
            "kendall": c["kendall"] / c["correlated"],
        }


def agreement(instructions: Sequence[tuple[Scores, Sequence[float | None]]]) -> dict[str, Any]:
    """The judge's agreement with the truth: the figures of `ratios` (None where there is nothing to divide by) and
    three counts: `fives`, answers the judge gives a 5; `constant`, instructions without a rank correlation;
    `missing`, answers without a score."""
    table = per_prompt_stats(instructions)
    sums = table.sum(0)
    fives, correlated, missing = (int(sums[COLUMNS.index(name)]) for name in ("fives", "correlated", "missing"))
    found = {name: None if math.isnan(value) else float(value) for name, value in metrics_from_sums(sums).items()}
    return found | {"fives": fives, "constant": len(table) - correlated, "missing": missing}


def intervals(
    instructions: Sequence[tuple[Scores, Sequence[float | None]]],
) -> dict[str, list[float] | None]:
    """95 % intervals of the figures of `ratios`, by the bootstrap over instructions."""
    return bootstrap.intervals(per_prompt_stats(instructions), metrics_from_sums)


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
