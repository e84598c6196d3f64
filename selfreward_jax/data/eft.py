"""EFT as the paper builds it: a baseline judges ranked answers, and what agrees with the human order is kept
(arXiv 2401.10020, section 3.1.1)."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from random import Random
from typing import Any

Row = dict[str, Any]


def agrees(human: Sequence[float], judged: Sequence[float], agreement: str) -> bool:
    """Whether a judge's scores order answers as the human scores do.

    Pairs that the human leaves equal are not looked at.

    Args:
      human, judged: scores of the same answers.
      agreement: "strict": every pair is ordered the same way, and a judge's tie is a disagreement; "weak": no pair is
        ordered the other way round, and at least one the same way.
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
    prompts: Sequence[Row], judgments: Sequence[Row], agreement: str, max_share: float, rng: Random
) -> tuple[list[Row], dict[str, Any]]:
    """Judged rows from the baseline's judgments of ranked answers.

    The i-th judgments of all answers of a prompt are one ranking. The first ranking that agrees with the human one
    is kept whole: the judgments that are learnt are those that agree, not others with their mean. An answer whose
    i-th judgment cannot be read is left out of the i-th ranking.

    Args:
      asked: rows {prompt, answers: [{id, response, score}]} with human scores.
      judgments: rows {id, votes: [{text, score}]} of those answers.
      agreement: see `agrees`.
      most_share: share of the rows to which the commonest score (rounded) is thinned, by dropping at random.
      rng: of that.

    Returns:
      Rows {prompt, response, judgment, score}, and the count of every step.
    """
    votes = {row["id"]: row["votes"] for row in judgments}
    counts: Counter[str] = Counter(prompts=0, answers=0, judgments=0, readable=0, no_ranking=0, disagree=0, agree=0)
    rows = []
    for prompt in prompts:
        drawn = [(answer, votes.get(answer["id"], [])) for answer in prompt["answers"]]
        counts["prompts"] += 1
        counts["answers"] += len(drawn)
        counts["judgments"] += sum(len(of) for _, of in drawn)
        counts["readable"] += sum(v["score"] is not None for _, of in drawn for v in of)
        rankings = [
            [(answer, of[i]) for answer, of in drawn if i < len(of) and of[i]["score"] is not None]
            for i in range(max((len(of) for _, of in drawn), default=0))
        ]
        rankings = [r for r in rankings if len({answer["score"] for answer, _ in r}) > 1]
        good = (r for r in rankings if agrees([a["score"] for a, _ in r], [v["score"] for _, v in r], agreement))
        kept = next(good, None)
        counts["agree" if kept else "disagree" if rankings else "no_ranking"] += 1
        for answer, vote in kept or []:
            judged = {"judgment": vote["text"], "score": vote["score"]}
            rows.append({"prompt": prompt["prompt"], "response": answer["response"], **judged})
    thinned = cap_top_score(rows, max_share, rng)
    before, after = (Counter(str(round(r["score"])) for r in of) for of in (rows, thinned))
    scores = {"scores": dict(sorted(before.items())), "scores_kept": dict(sorted(after.items()))}
    return thinned, {**counts, "rows": len(rows), "thinned": len(rows) - len(thinned), "kept": len(thinned), **scores}


def cap_top_score(rows: Sequence[Row], max_share: float, rng: Random) -> list[Row]:
    """The rows without so many of those with the commonest score that it has at most `most_share` of what is left.
    Another score, which is the commonest then, may have more."""
    by_score = Counter(round(row["score"]) for row in rows)
    if not by_score or max_share >= 1:
        return list(rows)
    commonest, count = by_score.most_common(1)[0]
    others = len(rows) - count
    allowed = int(others * max_share / (1 - max_share)) if others else count
    places = [i for i, row in enumerate(rows) if round(row["score"]) == commonest]
    dropped = set(rng.sample(places, max(0, count - allowed)))
    return [row for i, row in enumerate(rows) if i not in dropped]
