"""How sure a pair's label is: the rank agreement of two scorings of its prompt's responses.

After CREAM (arXiv 2410.12735), which weighs a whole data set by its mean agreement. Here each pair has its own: with
Kendall's tau-b of the two scorings, the label is smoothed by e = (1 - tau) / 2 (see `preference_losses.cdpo`). e is 0
where both rank alike, 1/2 where they have nothing in common, and 1 where one is the reverse of the other.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from selfreward_jax.method.judge import mean_score
from selfreward_jax.method.pairs import comparable
from selfreward_jax.method.rows import JudgmentRow

Scores = Mapping[str, float | None]  # by the id of the response, PROMPT_ID/SAMPLE


def of_votes(judgments: Iterable[JudgmentRow]) -> dict[str, float]:
    """tau-b of two halves of the votes, by prompt id: of the first, third, ... votes and of the others."""
    halves: tuple[dict[str, float | None], ...] = ({}, {})
    for row in judgments:
        for half, scores in enumerate(halves):
            scores[row["id"]] = mean_score([_counted(vote) for vote in row["votes"][half::2]])
    return of_scores(*halves)


def of_scores(now: Scores, before: Scores) -> dict[str, float]:
    """tau-b of two scorings of the responses to each prompt, by prompt id; 0 where one of them is constant.

    Args:
      now, before: scores of responses, None without a vote. A response counts if it has both.
    """
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for name, score in now.items():
        other, both = before.get(name), by_prompt.setdefault(name.rpartition("/")[0], [])
        if score is not None and other is not None:
            both.append((comparable(score), comparable(other)))
    return {prompt: tau_b(both) for prompt, both in by_prompt.items()}


def tau_b(scored: Sequence[tuple[float, float]]) -> float:
    """Kendall's tau-b of pairs of numbers; 0 where one side is constant."""
    pairs = list(itertools.combinations(scored, 2))
    signs = [(_sign(a[0] - b[0]), _sign(a[1] - b[1])) for a, b in pairs]
    untied = sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)
    return sum(x * y for x, y in signs) / untied**0.5 if untied else 0.0


def _counted(vote: Mapping[str, float | None]) -> float | None:
    return vote["expected"] if "expected" in vote else vote["score"]


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
