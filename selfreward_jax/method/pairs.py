"""Preference pairs: the response with the best score of a prompt against the one with the worst."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from selfreward_jax.method.rows import JudgmentRow, PairRow, ResponseRow, ScoredPrompt, ScoredResponse
from selfreward_jax.telemetry.numbers import counted


def comparable(score: float) -> float:
    """A score as it is compared: the mean of the same votes in another order differs in the last digits."""
    return round(score, 9)


def build_pairs(rows: Iterable[ScoredPrompt], rho: float = 0.0) -> tuple[list[PairRow], dict[str, int]]:
    """Pairs of the highest and the lowest mean score (arXiv 2401.10020, section 2.3), optionally with length control.

    Args:
      rows: one for each prompt: {id, prompt, candidates: [{response, score}]}. Score None means that the response has
        no parsed vote: it is neither chosen nor rejected. Of responses with equal scores the first is taken.
      rho: fraction of the score range, at both ends, within which length decides (see `length_controlled`). 0: only the
        score decides.

    Returns:
      Rows {id, prompt, chosen, rejected, chosen_score, rejected_score}, and the number of prompts with each outcome:
      `pairs`, `tied` (equal scores), `unscored` (fewer than two responses with a score), `same_text` (both responses
      are equal).
    """
    pairs: list[PairRow] = []
    counts = Counter(pairs=0, tied=0, unscored=0, same_text=0)
    for row in rows:
        scored = [c for c in row["candidates"] if c["score"] is not None]
        if len(scored) < 2:
            counts["unscored"] += 1
            continue
        best, worst = length_controlled(scored, rho) if rho else best_and_worst(scored)
        if comparable(best["score"]) == comparable(worst["score"]):
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


def format_outcomes(counts: Mapping[str, int]) -> str:
    """The counts of `build_pairs` in words."""
    reasons = {"tied": "equal scores", "unscored": "fewer than two scores", "same_text": "equal texts"}
    rest = "".join(f", {counts[name]:,} with {why}" for name, why in reasons.items() if counts[name])
    return f"{counted(counts['pairs'], 'pair')} of {counted(sum(counts.values()), 'prompt')}{rest}"


def best_and_worst(scored: Sequence[ScoredResponse]) -> tuple[ScoredResponse, ScoredResponse]:
    """The responses with the highest and the lowest score; the first of equals."""
    return max(scored, key=_comparable), min(scored, key=_comparable)


def _comparable(response: ScoredResponse) -> float:
    return comparable(response["score"])


def length_controlled(scored: Sequence[ScoredResponse], rho: float) -> tuple[ScoredResponse, ScoredResponse]:
    """The shortest good and the longest poor response (Meta-Rewarding, arXiv 2407.19594, section 2.2).

    With scores from S_min to S_max, good is [(1 - rho) S_max + rho S_min, S_max] and poor is
    [S_min, (1 - rho) S_min + rho S_max]. Length is in characters; of responses of equal length the first is taken.
    """
    scores = [c["score"] for c in scored]
    high, low = max(scores), min(scores)
    tolerance = 1e-9 * max(1.0, high - low)  # a score at the limit is inside it, however its mean was rounded
    good = [c for c in scored if c["score"] >= (1 - rho) * high + rho * low - tolerance]
    poor = [c for c in scored if c["score"] <= (1 - rho) * low + rho * high + tolerance]
    return min(good, key=lambda c: len(c["response"])), max(poor, key=lambda c: len(c["response"]))


def join_scores(responses: Iterable[ResponseRow], judgments: Iterable[JudgmentRow]) -> list[ScoredPrompt]:
    """Joins responses {id, prompt_id, prompt, response} with their scores, one row for each prompt."""
    scores = {row["id"]: row["score"] for row in judgments}
    prompts: dict[str, ScoredPrompt] = {}
    for r in responses:
        row = prompts.setdefault(r["prompt_id"], {"id": r["prompt_id"], "prompt": r["prompt"], "candidates": []})
        row["candidates"].append({"response": r["response"], "score": scores.get(r["id"])})
    return list(prompts.values())
