"""Preference pairs: the best-scored answer of a prompt against the worst."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]


def build_pairs(rows: Iterable[Row]) -> tuple[list[Row], dict[str, int]]:
    """Pairs of highest against lowest mean score (arXiv 2401.10020, section 2.3).

    Args:
      rows: one for each prompt: {id, prompt, candidates: [{response, score}]}, where score None means that the
        answer has no readable vote: it is then neither chosen nor rejected. Of several answers with the same
        score the first counts.

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
        best = max(scored, key=lambda c: c["score"])
        worst = min(scored, key=lambda c: c["score"])
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


def gather(answers: Iterable[Row], judgements: Iterable[Row]) -> list[Row]:
    """Joins answers {id, prompt_id, prompt, response} with their scores, a row for each prompt."""
    score = {j["id"]: j["score"] for j in judgements}
    prompts: dict[str, Row] = {}
    for a in answers:
        row = prompts.setdefault(a["prompt_id"], {"id": a["prompt_id"], "prompt": a["prompt"], "candidates": []})
        row["candidates"].append({"response": a["response"], "score": score.get(a["id"])})
    return list(prompts.values())
