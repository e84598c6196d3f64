"""Two answers side by side: the pairwise judge's prompts, and what its verdicts in both orders come to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from selfreward_jax.method.templates import fill

Row = dict[str, Any]


class Matchup(NamedTuple):
    """One prompt with one answer of ours and one of theirs."""

    id: str
    prompt: str
    ours: str
    theirs: str


def make_matchups(ours: Sequence[Row], theirs: Sequence[Row]) -> list[Matchup]:
    """Sample against sample of two models' answers to the same prompts, rows {id, prompt, responses: [{text}]}. A
    prompt that one of them did not get (it was too long) is left out; so is a sample that one of them has not."""
    other = {row["prompt"]: row["responses"] for row in theirs}
    return [
        Matchup(f"{row['id']}/{i}", row["prompt"], a["text"], b["text"])
        for row in ours
        for i, (a, b) in enumerate(zip(row["responses"], other.get(row["prompt"], ()), strict=False))
    ]


def both_orders(template: str, game: Matchup) -> tuple[str, str]:
    """The judge's prompts with our answer first, and with theirs first."""
    one = fill(template, prompt=game.prompt, first=game.ours, second=game.theirs)
    return one, fill(template, prompt=game.prompt, first=game.theirs, second=game.ours)


def resolve_orders(ours_first: str | None, theirs_first: str | None) -> int:
    """The verdict of "a", "b" or "tie" in both orders: 1 our win, -1 our loss. Orders that disagree, or of which one
    gave no verdict, are a tie (arXiv 2401.10020, section 3.2)."""
    if (ours_first, theirs_first) == ("a", "b"):
        return 1
    return -1 if (ours_first, theirs_first) == ("b", "a") else 0


def verdicts_by_prompt(matchups: Sequence[Matchup], verdicts: Sequence[int]) -> list[list[int]]:
    """The verdicts of each prompt together, in order."""
    found: dict[str, list[int]] = {}
    for game, verdict in zip(matchups, verdicts, strict=True):
        found.setdefault(game.prompt, []).append(verdict)
    return list(found.values())
