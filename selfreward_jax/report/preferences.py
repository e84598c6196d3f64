"""What the judge of a round prefers: how often the longer answer, by how much, and some pairs to read."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from selfreward_jax.method.rows import PairRow
from selfreward_jax.report.embedded_data import RoundRows, display_text, vote_lookup

NUM_EXAMPLES = 3  # pairs with the widest score gap, and as many with the smallest
MAX_CHARACTERS = 600  # of a text in them
Z = 1.96  # standard errors on each side of a 95 % confidence interval


def preferences(pairs: Sequence[PairRow]) -> dict[str, Any]:
    """Figures of a round's pairs; at least one pair.

    Returns:
      `pairs`, their number; `longer`, `same_length`, `shorter`, the fractions in which the chosen answer is that,
      against the rejected one; `longer_interval`, the 95 % confidence interval (Wilson) of the first; `score_gap` and
      `length_gap`, the means of the chosen minus the rejected side's score and characters; `score_gap_error` and
      `length_gap_error`, half the widths of their 95 % confidence intervals.
    """
    count = len(pairs)
    lengths = [len(row["chosen"]) - len(row["rejected"]) for row in pairs]
    scores = [row["chosen_score"] - row["rejected_score"] for row in pairs]
    longer = sum(gap > 0 for gap in lengths)
    return {
        "pairs": count,
        "longer": longer / count,
        "same_length": lengths.count(0) / count,
        "shorter": sum(gap < 0 for gap in lengths) / count,
        "longer_interval": _wilson(longer, count),
        "score_gap": fmean(scores),
        "score_gap_error": _error(scores),
        "length_gap": fmean(lengths),
        "length_gap_error": _error(lengths),
    }


def _wilson(part: int, total: int) -> list[float]:
    share, spread = part / total, Z * Z / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def _error(values: Sequence[float]) -> float:
    return Z * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def examples(round_rows: RoundRows) -> dict[str, list[dict[str, Any]]]:
    """The pairs with the widest and with the smallest score gap, no pair twice, the first of equals first.

    Returns:
      `widest` and `closest`: pairs with `id`, `prompt`, `gap` and `sides`: `side`, `text`, `score`, and its `votes`,
      equal ones together: `count`, `score`, `text`. Texts are as `embedded_data.display_text` gives them, and short.
    """
    votes_of = vote_lookup(round_rows, MAX_CHARACTERS)
    ranked = sorted(round_rows["pairs"], key=lambda row: row["rejected_score"] - row["chosen_score"])
    widest = ranked[:NUM_EXAMPLES]
    others = sorted(ranked[NUM_EXAMPLES:], key=lambda row: row["chosen_score"] - row["rejected_score"])
    return {
        "widest": [_example(row, votes_of(row)) for row in widest],
        "closest": [_example(row, votes_of(row)) for row in others[:NUM_EXAMPLES]],
    }


def _example(row: Mapping[str, Any], votes: Sequence[Sequence[Sequence[Any]]]) -> dict[str, Any]:
    return {
        "id": display_text(row["id"], MAX_CHARACTERS),
        "prompt": display_text(row["prompt"], MAX_CHARACTERS),
        "gap": row["chosen_score"] - row["rejected_score"],
        "sides": [
            {
                "side": side,
                "text": display_text(row[side], MAX_CHARACTERS),
                "score": row[f"{side}_score"],
                "votes": _grouped(side_votes),
            }
            for side, side_votes in zip(("chosen", "rejected"), votes, strict=True)
        ],
    }


def _grouped(votes: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    counts: dict[tuple[float | None, str], int] = {}
    for score, text in votes:
        counts[score, text] = counts.get((score, text), 0) + 1
    return [{"count": count, "score": score, "text": text} for (score, text), count in counts.items()]
