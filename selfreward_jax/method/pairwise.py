"""Pairwise comparison of two responses: the judge prompts, and the verdict from both orders."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from selfreward_jax.method.rows import ResponsesRow
from selfreward_jax.method.templates import fill


class Matchup(NamedTuple):
    """A prompt with one response of our model and one of the opponent."""

    id: str
    prompt: str
    ours: str
    theirs: str


def make_matchups(ours: Sequence[ResponsesRow], theirs: Sequence[ResponsesRow]) -> list[Matchup]:
    """Matchups of two models' responses to the same prompts, sample by sample.

    A prompt that one model has no row for (it was too long) is left out; so is a sample that one model does not have.

    Args:
      ours, theirs: rows {id, prompt, responses: [{text}]}.
    """
    opponent = {row["prompt"]: row["responses"] for row in theirs}
    return [
        Matchup(f"{row['id']}/{i}", row["prompt"], our["text"], their["text"])
        for row in ours
        for i, (our, their) in enumerate(zip(row["responses"], opponent.get(row["prompt"], ()), strict=False))
    ]


def both_orders(template: str, matchup: Matchup) -> tuple[str, str]:
    """The judge prompts with our response first, and with theirs first."""
    ours_first = fill(template, prompt=matchup.prompt, first=matchup.ours, second=matchup.theirs)
    return ours_first, fill(template, prompt=matchup.prompt, first=matchup.theirs, second=matchup.ours)


def resolve_orders(ours_first: str | None, theirs_first: str | None) -> int:
    """The verdict from the preferences "a", "b", "tie" or None in both orders: 1 our win, -1 our loss, 0 tie.

    It is a tie if the orders disagree or one of them has no parsed preference (arXiv 2401.10020, section 3.2).
    """
    if (ours_first, theirs_first) == ("a", "b"):
        return 1
    return -1 if (ours_first, theirs_first) == ("b", "a") else 0


def flip_rate(orders: Iterable[Sequence[str | None]]) -> float | None:
    """Of the comparisons that can be read in both orders, the share whose verdict names the same side in both, so that
    the order decided; None without any.

    Args:
      orders: the preferences of each comparison, "a", "b", "tie" or None, in the two orders.
    """
    both = [tuple(sides) for sides in orders if None not in sides]
    return sum(sides in (("a", "a"), ("b", "b")) for sides in both) / len(both) if both else None


def verdicts_by_prompt(matchups: Sequence[Matchup], verdicts: Sequence[int]) -> list[list[int]]:
    """The verdicts of each prompt, in order."""
    groups: dict[str, list[int]] = {}
    for matchup, verdict in zip(matchups, verdicts, strict=True):
        groups.setdefault(matchup.prompt, []).append(verdict)
    return list(groups.values())
