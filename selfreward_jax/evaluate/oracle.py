"""A world's oracle on responses to held-out prompts: metrics of one model, verdicts between two models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfreward_jax.evaluate import bootstrap
from selfreward_jax.evaluate.head_to_head import sign
from selfreward_jax.method.rows import ResponsesRow
from selfreward_jax.worlds.checkable import oracle as checkable
from selfreward_jax.worlds.toy import oracle as toy

ORACLES = {"toy": toy, "checkable": checkable}
MAX_POINTS = 5


def points(rows: Sequence[Mapping[str, Any]], world: str) -> list[list[dict[str, bool]]]:
    """Which criteria each response of each row {prompt, responses: [{text}]} meets."""
    return [[ORACLES[world].points(row["prompt"], r["text"]) for r in row["responses"]] for row in rows]


def score(met: Mapping[str, bool]) -> float:
    """The points of a response, 0 to 5: all criteria of its prompt weigh the same. 0 without criteria."""
    return MAX_POINTS * sum(met.values()) / len(met) if met else 0.0


def metrics(rows: Sequence[ResponsesRow], world: str) -> dict[str, Any]:
    """Metrics of one model's responses.

    Returns:
      `mean`, the mean points (0 to 5); `perfect`, the fraction of perfect responses; `repeats`, the fraction that name
      or say something twice (no criterion depends on it); `criteria`, for each criterion the fraction of the responses
      to prompts with it that meet it; and where some criteria are in held-out prompts alone, `taught` and `transfer`,
      the same fraction over the others, and over these.
    """
    oracle = ORACLES[world]
    flat = [p for row in points(rows, world) for p in row]
    totals = [score(p) for p in flat]
    untaught = set(getattr(oracle, "UNTAUGHT", ()))
    groups = {"taught": set(oracle.CRITERIA) - untaught, "transfer": untaught} if untaught else {}
    by_criterion = {name: _share_met(flat, {name}) for name in oracle.CRITERIA}
    return {
        "mean": sum(totals) / len(totals),
        "perfect": sum(t == MAX_POINTS for t in totals) / len(totals),
        "repeats": sum(oracle.repeats(r["text"]) for row in rows for r in row["responses"]) / len(flat),
        "criteria": {name: share for name, share in by_criterion.items() if share is not None},
        **{name: _share_met(flat, names) for name, names in groups.items()},
    }


def _share_met(flat: Sequence[Mapping[str, bool]], names: set[str]) -> float | None:
    met = [is_met for p in flat for name, is_met in p.items() if name in names]
    return sum(met) / len(met) if met else None


def mean_interval(rows: Sequence[ResponsesRow], world: str) -> list[float] | None:
    """The 95 % confidence interval [low, high] of `mean`, by the bootstrap over prompts; None without rows."""
    totals = [[score(p) for p in row] for row in points(rows, world)]
    sums = np.array([[sum(row), len(row)] for row in totals], float).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        return bootstrap.confidence_intervals(sums, lambda s: {"mean": s[..., 0] / s[..., 1]})["mean"]


def verdicts(ours: Sequence[ResponsesRow], theirs: Sequence[ResponsesRow], world: str) -> list[list[int]]:
    """Verdicts on the same prompts, sample by sample: the response with more points wins. 1 ours, 0 tie, -1 theirs.

    Raises:
      ValueError: the two lists have different prompts.
    """
    if [r["prompt"] for r in ours] != [r["prompt"] for r in theirs]:
        raise ValueError("the two models did not answer the same prompts")
    return [
        [sign(sum(p.values()) - sum(q.values())) for p, q in zip(a, b, strict=True)]
        for a, b in zip(points(ours, world), points(theirs, world), strict=True)
    ]
