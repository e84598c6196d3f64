"""Preference pairs: the response with the best score of a prompt against one with a poor score."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev

from selfreward_jax.method.rows import JudgmentRow, PairRow, ResponseRow, ScoredPrompt, ScoredResponse
from selfreward_jax.telemetry.numbers import counted


def comparable(score: float) -> float:
    """A score as it is compared: the mean of the same votes in another order differs in the last digits."""
    return round(score, 9)


def build_pairs(
    rows: Iterable[ScoredPrompt], rho: float = 0.0, rejected: str = "worst", min_gap: float = 0.0
) -> tuple[list[PairRow], dict[str, int]]:
    """Pairs of the response with the highest mean score and a poor one (arXiv 2401.10020, section 2.3).

    Args:
      rows: one for each prompt: {id, prompt, candidates: [{response, score}]}. Score None means that the response has
        no parsed vote: it is neither chosen nor rejected. Of responses with equal scores the first is taken.
      rho: fraction of the score range, at both ends, within which length decides (see `length_controlled`). 0: only the
        score decides.
      rejected: which response is rejected. "worst": the one with the lowest score. "two_sigma": see `two_sigma`.
        "anchor": the one with the lowest score of `anchors`, a row's responses of an earlier model (after arXiv
        2508.06026); in a row without that field the worst.
      min_gap: least difference of both scores, in points.

    Returns:
      Rows {id, prompt, chosen, rejected, chosen_score, rejected_score}, and the number of prompts with each outcome:
      `pairs`, `tied` (the chosen score is not higher), `unscored` (fewer than two responses with a score), `same_text`
      (both responses are equal), `close` (their scores differ by less than `min_gap`).
    """
    pairs: list[PairRow] = []
    counts = Counter(pairs=0, tied=0, unscored=0, same_text=0, close=0)
    for row in rows:
        sides = _choose(row, rho, rejected)
        outcome = _outcome(*sides, min_gap) if sides else "unscored"
        counts[outcome] += 1
        if sides and outcome == "pairs":
            good, poor = sides
            pairs.append(
                {
                    "id": row["id"],
                    "prompt": row["prompt"],
                    "chosen": good["response"],
                    "rejected": poor["response"],
                    "chosen_score": good["score"],
                    "rejected_score": poor["score"],
                }
            )
    return pairs, dict(counts)


def _choose(row: ScoredPrompt, rho: float, rejected: str) -> tuple[ScoredResponse, ScoredResponse] | None:
    """The chosen and the rejected response; None if too few have a score."""
    scored = [c for c in row["candidates"] if c["score"] is not None]
    if rejected == "anchor" and "anchors" in row:
        anchors = [c for c in row["anchors"] if c["score"] is not None]
        return (best_and_worst(scored)[0], best_and_worst(anchors)[1]) if scored and anchors else None
    if len(scored) < 2:
        return None
    if rho:
        return length_controlled(scored, rho)
    best, worst = best_and_worst(scored)
    return best, two_sigma(scored) if rejected == "two_sigma" else worst


def _outcome(good: ScoredResponse, poor: ScoredResponse, min_gap: float) -> str:
    gap = comparable(comparable(good["score"]) - comparable(poor["score"]))
    if gap <= 0:
        return "tied"
    if good["response"] == poor["response"]:
        return "same_text"
    return "close" if gap < min_gap else "pairs"


def format_outcomes(counts: Mapping[str, int]) -> str:
    """The counts of `build_pairs` in words."""
    reasons = {
        "tied": "no higher score",
        "unscored": "too few scores",
        "same_text": "equal texts",
        "close": "scores too close",
    }
    rest = "".join(f", {counts[name]:,} with {why}" for name, why in reasons.items() if counts.get(name))
    return f"{counted(counts['pairs'], 'pair')} of {counted(sum(counts.values()), 'prompt')}{rest}"


def best_and_worst(scored: Sequence[ScoredResponse]) -> tuple[ScoredResponse, ScoredResponse]:
    """The responses with the highest and the lowest score; the first of equals."""
    return max(scored, key=_comparable), min(scored, key=_comparable)


def _comparable(response: ScoredResponse) -> float:
    return comparable(response["score"])


def two_sigma(scored: Sequence[ScoredResponse]) -> ScoredResponse:
    """Of the responses below the best, the one whose score is nearest to two standard deviations below the mean of all;
    the first of equals (arXiv 2502.16825: of many samples the minimum is an outlier). Of a few it is the minimum.
    """
    scores = [comparable(c["score"]) for c in scored]
    target = fmean(scores) - 2 * pstdev(scores)
    below = [c for c in scored if comparable(c["score"]) < max(scores)]
    return min(below or scored, key=lambda c: comparable(abs(c["score"] - target)))


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


def with_anchors(rows: Iterable[ScoredPrompt], anchors: Iterable[ScoredPrompt]) -> list[ScoredPrompt]:
    """The rows with the scored responses of M1 to the same prompt as `anchors`; none, if it has none."""
    of_prompt = {row["id"]: row["candidates"] for row in anchors}
    return [{**row, "anchors": of_prompt.get(row["id"], [])} for row in rows]
