"""EFT as the paper builds it: a baseline judges ranked answers; judgments that agree with the human order are kept
(arXiv 2401.10020, section 3.1.1)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Any

from selfreward_jax.method.rows import JudgedRow, JudgmentRow, RankedResponse, RankedRow, Vote

Ranking = list[tuple[RankedResponse, Vote]]  # answers of a prompt with one judgment each


def agrees(human: Sequence[float], judged: Sequence[float], agreement: str) -> bool:
    """Whether a judge's scores order answers as the human scores do.

    Pairs with equal human scores are ignored.

    Args:
      human, judged: scores of the same answers.
      agreement: "strict": every pair has the same order, and a tie of the judge is a disagreement; "weak": no pair has
        the opposite order, and at least one has the same.
    """
    signs = [
        (human[i] - human[j]) * (judged[i] - judged[j])
        for i, j in combinations(range(len(human)), 2)
        if human[i] != human[j]
    ]
    if agreement == "strict":
        return bool(signs) and all(s > 0 for s in signs)
    return any(s > 0 for s in signs) and not any(s < 0 for s in signs)


def build_eft(
    prompts: Sequence[RankedRow], judgments: Sequence[JudgmentRow], agreement: str, max_share: float, rng: Random
) -> tuple[list[JudgedRow], dict[str, Any]]:
    """Judged rows from the baseline's judgments of ranked answers.

    The i-th judgments of all answers of a prompt are one ranking. The first ranking that agrees with the human one is
    kept with all its judgments. So the judgments that are learned are those that agree, not others with the same mean.
    An answer whose i-th judgment cannot be parsed is left out of the i-th ranking.

    Args:
      prompts: rows {prompt, answers: [{id, response, score}]} with human scores.
      judgments: rows {id, votes: [{text, score}]} of those answers.
      agreement: see `agrees`.
      max_share: see `cap_top_score`.
      rng: chooses the rows that `cap_top_score` drops.

    Returns:
      Rows {prompt, response, judgment, score}, and the counts of every step.
    """
    votes = {row["id"]: row["votes"] for row in judgments}
    counts: Counter[str] = Counter(prompts=0, answers=0, judgments=0, readable=0, no_ranking=0, disagree=0, agree=0)
    rows: list[JudgedRow] = []
    for prompt in prompts:
        answers_with_votes = [(answer, votes.get(answer["id"], [])) for answer in prompt["answers"]]
        counts["prompts"] += 1
        counts["answers"] += len(answers_with_votes)
        counts["judgments"] += sum(len(answer_votes) for _, answer_votes in answers_with_votes)
        counts["readable"] += sum(
            v["score"] is not None for _, answer_votes in answers_with_votes for v in answer_votes
        )
        rankings = _rankings(answers_with_votes)
        ranking = next((r for r in rankings if _ranking_agrees(r, agreement)), None)
        counts["agree" if ranking else "disagree" if rankings else "no_ranking"] += 1
        for answer, vote in ranking or []:
            rows.append(
                {
                    "prompt": prompt["prompt"],
                    "response": answer["response"],
                    "judgment": vote["text"],
                    "score": vote["score"],
                }
            )
    kept = cap_top_score(rows, max_share, rng)
    histograms = {"scores": _score_histogram(rows), "scores_kept": _score_histogram(kept)}
    return kept, {**counts, "rows": len(rows), "thinned": len(rows) - len(kept), "kept": len(kept), **histograms}


def format_counts(counts: Mapping[str, Any]) -> str:
    """The counts of `build_eft` in words."""
    parts = {
        "prompts": "prompts",
        "answers": "answers",
        "judgments": "judgments",
        "readable": "of them parsed",
        "agree": "prompts agree with the human order",
        "disagree": "disagree",
        "no_ranking": "have nothing to compare",
        "thinned": "rows dropped by eft.max_share",
        "written": "rows written by people",
        "over_the_limit": "rows over data.eft_rows",
        "kept": "rows kept",
    }
    return ", ".join(f"{counts[name]:,} {what}" for name, what in parts.items() if counts.get(name))


def _rankings(answers_with_votes: Sequence[tuple[RankedResponse, list[Vote]]]) -> list[Ranking]:
    """The i-th ranking for each i, if its answers have different human scores."""
    num_rankings = max((len(votes) for _, votes in answers_with_votes), default=0)
    rankings = [
        [(answer, votes[i]) for answer, votes in answers_with_votes if i < len(votes) and votes[i]["score"] is not None]
        for i in range(num_rankings)
    ]
    return [ranking for ranking in rankings if len({answer["score"] for answer, _ in ranking}) > 1]


def _ranking_agrees(ranking: Ranking, agreement: str) -> bool:
    return agrees([answer["score"] for answer, _ in ranking], [vote["score"] for _, vote in ranking], agreement)


def _score_histogram(rows: Sequence[JudgedRow]) -> dict[str, int]:
    return dict(sorted(Counter(str(round(row["score"])) for row in rows).items()))


def cap_top_score(rows: Sequence[JudgedRow], max_share: float, rng: Random) -> list[JudgedRow]:
    """Drops random rows with the most common rounded score until at most `max_share` of the rows have it.

    Another score, which is then the most common one, may have a larger share. The order of rows does not change.
    """
    histogram = Counter(round(row["score"]) for row in rows)
    if not histogram or max_share >= 1:
        return list(rows)
    top_score, count = histogram.most_common(1)[0]
    num_others = len(rows) - count
    allowed = int(num_others * max_share / (1 - max_share)) if num_others else count
    indices = [i for i, row in enumerate(rows) if round(row["score"]) == top_score]
    dropped = set(rng.sample(indices, max(0, count - allowed)))
    return [row for i, row in enumerate(rows) if i not in dropped]
