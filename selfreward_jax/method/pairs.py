"""Preference pairs: the best-scored answer of a prompt against the worst."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def build_pairs(rows: Iterable[Row], rho: float = 0.0) -> tuple[list[Row], dict[str, int]]:
    """Pairs of highest against lowest mean score (arXiv 2401.10020, section 2.3), with length control if asked for.

    Args:
      rows: one for each prompt: {id, prompt, candidates: [{response, score}]}, where score None means that the
        answer has no readable vote: it is then neither chosen nor rejected. Of several answers with the same
        score the first counts.
      rho: share of the range of scores, at either end, within which length decides (see `length_controlled`); 0:
        score alone.

    Returns:
      Rows {id, prompt, chosen, rejected, chosen_score, rejected_score}, and how many prompts fell to each
      outcome: `pairs`, `tied` (equal scores), `unscored` (fewer than two answers with a score),
      `same_text` (both answers read the same).
    """
    pairs, counts = [], Counter(pairs=0, tied=0, unscored=0, same_text=0)
    for row in rows:
        scored = [c for c in row["candidates"] if c["score"] is not None]
        if len(scored) < 2:
            counts["unscored"] += 1
            continue
        best, worst = length_controlled(scored, rho) if rho else best_and_worst(scored)
        if best["score"] == worst["score"]:
            counts["tied"] += 1
        elif best["response"] == worst["response"]:
            counts["same_text"] += 1
        else:
            counts["pairs"] += 1
            pairs.append(
                {
                    "id": row["id"],
                    "prompt": row["prompt"],
                    "chosen": best["response"],
                    "rejected": worst["response"],
                    "chosen_score": best["score"],
                    "rejected_score": worst["score"],
                }
            )
    return pairs, dict(counts)


def best_and_worst(scored: Sequence[Row]) -> tuple[Row, Row]:
    """The answers with the highest and the lowest score; of equals the first."""
    return max(scored, key=lambda c: c["score"]), min(scored, key=lambda c: c["score"])


def length_controlled(scored: Sequence[Row], rho: float) -> tuple[Row, Row]:
    """The shortest of the good answers and the longest of the poor (Meta-Rewarding, arXiv 2407.19594, section 2.2).

    With scores from S_min to S_max, good is [(1 - rho) S_max + rho S_min, S_max] and poor is
    [S_min, (1 - rho) S_min + rho S_max]. Length is in characters; of equally long answers the first counts.
    """
    scores = [c["score"] for c in scored]
    high, low = max(scores), min(scores)
    slack = 1e-9 * max(1.0, high - low)  # a score on the border belongs to it, however its mean was rounded
    good = [c for c in scored if c["score"] >= (1 - rho) * high + rho * low - slack]
    poor = [c for c in scored if c["score"] <= (1 - rho) * low + rho * high + slack]
    return min(good, key=lambda c: len(c["response"])), max(poor, key=lambda c: len(c["response"]))


def join_scores(answers: Iterable[Row], judgments: Iterable[Row]) -> list[Row]:
    """Joins answers {id, prompt_id, prompt, response} with their scores, a row for each prompt."""
    score = {j["id"]: j["score"] for j in judgments}
    prompts: dict[str, Row] = {}
    for a in answers:
        row = prompts.setdefault(a["prompt_id"], {"id": a["prompt_id"], "prompt": a["prompt"], "candidates": []})
        row["candidates"].append({"response": a["response"], "score": score.get(a["id"])})
    return list(prompts.values())
