"""The toy world's oracle on responses to held-out prompts: metrics of one model, verdicts between two models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfreward_jax.evaluate import bootstrap
from selfreward_jax.evaluate.head_to_head import sign
from selfreward_jax.method.rows import ResponsesRow
from selfreward_jax.worlds.toy import oracle

CRITERIA = oracle.CRITERIA


def points(rows: Sequence[Mapping[str, Any]]) -> list[list[dict[str, bool]]]:
    """Which criteria each response of each row {prompt, responses: [{text}]} meets; each is worth one point."""
    return [[oracle.points(row["prompt"], r["text"]) for r in row["responses"]] for row in rows]


def metrics(rows: Sequence[ResponsesRow]) -> dict[str, Any]:
    """Metrics of one model's responses.

    Returns:
      `mean`, the mean points (0 to 5); `perfect`, the fraction of perfect responses; `repeats`, the fraction that name
      something twice (no criterion depends on it); `criteria`, the fraction of responses that meet each criterion.
    """
    flat = [p for row in points(rows) for p in row]
    totals = [sum(p.values()) for p in flat]
    return {
        "mean": sum(totals) / len(totals),
        "perfect": sum(t == len(oracle.CRITERIA) for t in totals) / len(totals),
        "repeats": sum(oracle.repeats(r["text"]) for row in rows for r in row["responses"]) / len(flat),
        "criteria": {name: sum(p[name] for p in flat) / len(flat) for name in oracle.CRITERIA},
    }


def mean_interval(rows: Sequence[ResponsesRow]) -> list[float] | None:
    """The 95 % confidence interval [low, high] of `mean`, by the bootstrap over prompts; None without rows."""
    totals = [[sum(p.values()) for p in row] for row in points(rows)]
    sums = np.array([[sum(row), len(row)] for row in totals], float).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        return bootstrap.confidence_intervals(sums, lambda s: {"mean": s[..., 0] / s[..., 1]})["mean"]


def verdicts(ours: Sequence[ResponsesRow], theirs: Sequence[ResponsesRow]) -> list[list[int]]:
    """Verdicts on the same prompts, sample by sample: the response with more points wins. 1 ours, 0 tie, -1 theirs.

    Raises:
      ValueError: the two lists have different prompts.
    """
    if [r["prompt"] for r in ours] != [r["prompt"] for r in theirs]:
        raise ValueError("the two models did not answer the same prompts")
    return [
        [sign(sum(p.values()) - sum(q.values())) for p, q in zip(a, b, strict=True)]
        for a, b in zip(points(ours), points(theirs), strict=True)
    ]
