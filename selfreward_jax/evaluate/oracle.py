"""What the embedded world's oracle says of a model's answers to held-out prompts, alone and head to head."""

from collections.abc import Sequence
from typing import Any

from selfreward_jax.evaluate.head_to_head import sign
from selfreward_jax.worlds.toy import oracle

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


def verdicts(ours: Sequence[Row], theirs: Sequence[Row]) -> list[list[int]]:
    """Verdicts on the same prompts, sample by sample: the answer with more points wins.

    Raises:
      ValueError: the rows are of other prompts.
    """
    if [r["prompt"] for r in ours] != [r["prompt"] for r in theirs]:
        raise ValueError("the two models did not answer the same prompts")
    return [
        [sign(sum(p.values()) - sum(q.values())) for p, q in zip(a, b, strict=True)]
        for a, b in zip(points(ours), points(theirs), strict=True)
    ]
