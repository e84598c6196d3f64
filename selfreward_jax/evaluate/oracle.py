"""What the embedded world's oracle says of a model's answers to held-out prompts, alone and head to head."""

import math
from collections.abc import Sequence
from typing import Any

from selfreward_jax.worlds import oracle

Row = dict[str, Any]

CRITERIA = oracle.CRITERIA


def points(rows: Sequence[Row]) -> list[list[dict[str, bool]]]:
    """The points of each response of each row {prompt, responses: [{text}]}."""
    return [[oracle.points(row["prompt"], r["text"]) for r in row["responses"]] for row in rows]


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean points (0 to 5), share of perfect answers, the share that names
    something twice (no point hangs on that), and the share that earns each point."""
    flat = [p for row in points(rows) for p in row]
    totals = [sum(p.values()) for p in flat]
    return {
        "mean": sum(totals) / len(totals),
        "perfect": sum(t == len(oracle.CRITERIA) for t in totals) / len(totals),
        "repeats": sum(oracle.repeats(r["text"]) for row in rows for r in row["responses"]) / len(flat),
        "criteria": {name: sum(p[name] for p in flat) / len(flat) for name in oracle.CRITERIA},
    }


def versus(ours: Sequence[Row], theirs: Sequence[Row]) -> dict[str, float]:
    """Head to head on the same prompts, sample by sample: the answer with more points wins.

    Returns:
      `win`, `tie`, `lose` as fractions, and `error`, the standard error of win - lose over prompts.
    """
    if [r["prompt"] for r in ours] != [r["prompt"] for r in theirs]:
        raise ValueError("the two models did not answer the same prompts")
    margins = []
    win = tie = lose = 0
    for a, b in zip(points(ours), points(theirs), strict=True):
        signs = []
        for p, q in zip(a, b, strict=True):
            difference = sum(p.values()) - sum(q.values())
            signs.append((difference > 0) - (difference < 0))
        win += signs.count(1)
        tie += signs.count(0)
        lose += signs.count(-1)
        margins.append(sum(signs) / len(signs))
    games = win + tie + lose
    mean = sum(margins) / len(margins)
    spread = sum((m - mean) ** 2 for m in margins) / max(1, len(margins) - 1)
    return {
        "win": win / games,
        "tie": tie / games,
        "lose": lose / games,
        "error": math.sqrt(spread / len(margins)),
    }
