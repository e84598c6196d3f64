"""A written comparison of two answers: the judgment of each, and which one is better."""

from random import Random
from typing import Any, NamedTuple

Row = dict[str, Any]


class Judged(NamedTuple):
    """An answer with its written judgment, whose last line is the verdict, and its points."""

    response: str
    judgment: str
    points: float


def comparison_row(prompt: str, answers: tuple[Judged, Judged], rng: Random) -> Row:
    """A row {prompt, first, second, judgment, score} of a comparison, in random order. The judgment has the reasons on
    both answers, and ends in `Better: A`, `Better: B` or `Better: tie`; the score is 1, -1 or 0."""
    first, second = rng.sample(answers, 2)
    score = (first.points > second.points) - (first.points < second.points)
    verdict = {1: "A", -1: "B", 0: "tie"}[score]
    judgment = f"A. {_reasons(first)}\nB. {_reasons(second)}\nBetter: {verdict}"
    return {"prompt": prompt, "first": first.response, "second": second.response, "judgment": judgment, "score": score}


def _reasons(answer: Judged) -> str:
    """A judgment without its verdict, if there is more to it."""
    reasons, _, verdict = answer.judgment.strip().rpartition("\n")
    return reasons or verdict
