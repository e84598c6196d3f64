"""Written comparisons: of two answers by the judgment of each, and of two judgments by a third."""

from collections.abc import Sequence
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


def meta_row(prompt: str, true: Judged, judged: Sequence[Judged], rng: Random) -> Row:
    """A row {prompt, response, first, second, judgment, score} of a comparison of two judgments, in random order.

    The meta-judge judges the answer itself and prefers the judgment with the same points. If both have them, or none,
    it is a tie. A small model learns this, and not which of two points is nearer.

    Args:
      prompt: of the answer.
      true: the answer with its right judgment.
      judged: the same answer with two other judgments.
      rng: chooses the order.
    """
    first, second = rng.sample(judged, 2)
    is_right = [j.points == true.points for j in (first, second)]
    score = is_right[0] - is_right[1]
    verdict = {1: "A", -1: "B", 0: "tie"}[score]
    sides = zip("AB", (first, second), is_right, strict=True)
    points = " ".join(f"{a} says {j.points:g}, it is {true.points:g}, {_same(right)}." for a, j, right in sides)
    judgment = f"{_reasons(true)} {points}\nBetter: {verdict}"
    texts = {"response": true.response, "first": first.judgment, "second": second.judgment}
    return {"prompt": prompt, **texts, "judgment": judgment, "score": score}


def _same(is_same: bool) -> str:
    return "same" if is_same else "different"


def _reasons(answer: Judged) -> str:
    """A judgment without its verdict, if there is more to it."""
    reasons, _, verdict = answer.judgment.strip().rpartition("\n")
    return reasons or verdict
