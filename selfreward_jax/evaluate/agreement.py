"""How well a judge agrees with the true ranking: the paper's reward-model table (arXiv 2401.10020, section 2.4).

Each instruction has several responses with a true score and the judge's score. The judge's score is the mean of its
parseable votes. It is None where no vote could be parsed: such a response is excluded and counted. Each instruction
contributes a row of counts. A metric is a ratio of two column sums, over all instructions or over any resample of them.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from selfreward_jax.evaluate import bootstrap
from selfreward_jax.method.pairs import comparable

Scores = Sequence[float]
Instruction = tuple[Scores, Sequence[float | None]]  # true scores and judge scores of its responses

# The counts that one instruction contributes, in this order.
COLUMNS = tuple("right wrong tied exact orderable fives best_fives spearman kendall correlated missing".split())


def per_prompt_stats(instructions: Sequence[Instruction]) -> np.ndarray:
    """The counts of each instruction, [instructions, COLUMNS], float64.

    Args:
      instructions: for each, the true scores and the judge's scores of its responses.
    """
    return np.array([_prompt_stats(truth, judged) for truth, judged in instructions], float).reshape(-1, len(COLUMNS))


def _prompt_stats(truth: Scores, judged: Sequence[float | None]) -> list[float]:
    scored = [(comparable(t), comparable(j)) for t, j in zip(truth, judged, strict=True) if j is not None]
    right, wrong, tied = _pair_counts(scored)
    orderable = right + wrong + tied
    fives = [t for t, j in scored if j == 5]
    true_scores, judge_scores = [t for t, _ in scored], [j for _, j in scored]
    correlated = len(set(true_scores)) > 1 and len(set(judge_scores)) > 1  # a constant side has no correlation
    spearman, kendall = _rank_correlations(true_scores, judge_scores) if correlated else (0.0, 0.0)
    return [
        right,
        wrong,
        tied,
        bool(orderable) and right == orderable,
        bool(orderable),
        len(fives),
        sum(t == comparable(max(truth)) for t in fives),
        spearman,
        kendall,
        correlated,
        len(truth) - len(scored),
    ]


def _pair_counts(scored: Sequence[tuple[float, float]]) -> tuple[int, int, int]:
    """How many of the pairs that the truth orders the judge orders rightly, wrongly, and not at all; from (true score,
    judge's score) of each response."""
    signs = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in combinations(scored, 2) if a[0] != b[0]]
    return sum(s > 0 for s in signs), sum(s < 0 for s in signs), sum(s == 0 for s in signs)


def _rank_correlations(x: Scores, y: Scores) -> tuple[float, float]:
    """Spearman's rho (ties share the mean of their ranks) and Kendall's tau-b; neither side may be constant."""
    from scipy import stats  # slow to import, and needed only here

    return float(stats.spearmanr(x, y).statistic), float(stats.kendalltau(x, y).statistic)


def metrics_from_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics for column sums [..., COLUMNS]; nan where the denominator is zero.

    pairwise_accuracy: fraction of the pairs ordered by the truth that the judge orders the same way. A tie of the
      judge counts as half a pair. `pairwise_without_ties` excludes such ties, `pairwise_ties_wrong` counts them as
      wrong, and `tie_rate` is their fraction.
    exact_match: fraction of instructions where the judge orders every pair that the truth orders the same way. A tie
      of the judge on such a pair is a mismatch.
    five_best: fraction of the responses scored 5 by the judge that are the truth's best (or share that place).
    spearman, kendall: rank correlation (kendall is tau-b), averaged over the instructions where neither side is
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


def agreement(instructions: Sequence[Instruction]) -> dict[str, Any]:
    """The judge's agreement with the truth.

    Returns:
      The metrics of `metrics_from_sums` (None where the denominator is zero) and three counts: `fives`, responses that
      the judge scores 5; `constant`, instructions without a rank correlation; `missing`, responses without a score.
    """
    table = per_prompt_stats(instructions)
    sums = table.sum(0)
    fives, correlated, missing = (int(sums[COLUMNS.index(name)]) for name in ("fives", "correlated", "missing"))
    metrics = {name: None if math.isnan(value) else float(value) for name, value in metrics_from_sums(sums).items()}
    return metrics | {"fives": fives, "constant": len(table) - correlated, "missing": missing}


def confidence_intervals(instructions: Sequence[Instruction]) -> dict[str, list[float] | None]:
    """95 % confidence intervals of the metrics of `metrics_from_sums`, by the bootstrap over instructions."""
    return bootstrap.confidence_intervals(per_prompt_stats(instructions), metrics_from_sums)


def lead(instructions: Sequence[Instruction], baseline: Sequence[Instruction]) -> dict[str, Any]:
    """How much more often a judge orders pairs rightly than a baseline that scores the same responses.

    Args:
      instructions: as in `agreement`.
      baseline: the same, with the baseline's scores; None where the judge has no score.

    Returns:
      `accuracy` and `baseline`, the pairwise accuracies of both; `lead`, their difference, and `interval`, its 95 %
      confidence interval by the paired bootstrap over instructions. None where there is no pair.
    """
    counts = [
        [c for truth, judged in rows for c in _halves(truth, judged)]
        for rows in zip(instructions, baseline, strict=True)
    ]
    table = np.array(counts, float).reshape(-1, 4)
    values = {name: None if math.isnan(v) else float(v) for name, v in _leads(table.sum(0)).items()}
    return values | {"interval": bootstrap.confidence_intervals(table, _leads)["lead"]}


def _halves(truth: Scores, judged: Sequence[float | None]) -> tuple[float, int]:
    """Pairs in the right order, a tie as half a pair; pairs."""
    right, wrong, tied = _pair_counts([(t, j) for t, j in zip(truth, judged, strict=True) if j is not None])
    return right + tied / 2, right + wrong + tied


def _leads(sums: np.ndarray) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy, baseline = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
    return {"accuracy": accuracy, "baseline": baseline, "lead": accuracy - baseline}
