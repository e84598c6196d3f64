"""A prompt's responses compared two by two, and what the wins are worth (after SERL, arXiv 2511.07922).

    R(i) = wins of response i / readable comparisons of it

A comparison is two votes, one for each order of the two responses. It is a win of the response that both votes prefer.
With a length gate a win counts for less, or not at all, where the winner has another length than the loser.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from selfreward_jax.method.judge import judgment_row
from selfreward_jax.method.judge_parsing import MAX_SCORE
from selfreward_jax.method.pairs import comparable
from selfreward_jax.method.pairwise import Matchup, both_orders, resolve_orders
from selfreward_jax.method.rows import ComparisonRow, JudgmentRow, PairRow, PreferenceVote, ResponseRow, Vote

WINDOW = (0.8, 1.2)  # of the winner's length over the loser's, with length_gate=window; SERL's


class Compared(NamedTuple):
    """One vote of each order on two responses.

    credit: 1 or less if the first response wins, -1 or more if the second does, else 0; None if a vote is unreadable.
    """

    first: str
    second: str
    votes: tuple[PreferenceVote, PreferenceVote]
    credit: float | None


def matchups(responses: Iterable[ResponseRow], opponents: int = 0) -> list[Matchup]:
    """What is compared: the responses to each prompt, two by two. The id is PROMPT_ID/I-J."""
    by_prompt: dict[str, list[ResponseRow]] = {}
    for row in responses:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    return [
        Matchup(f"{a['id']}-{b['id'].rpartition('/')[2]}", a["prompt"], a["response"], b["response"])
        for rows in by_prompt.values()
        for a, b in ((rows[i], rows[j]) for i, j in who_meets(len(rows), opponents))
    ]


def who_meets(count: int, opponents: int = 0) -> list[tuple[int, int]]:
    """Which of `count` responses are compared: all pairs; or each with `opponents` others, its neighbours in a ring
    on both sides, so an even number."""
    if not opponents or opponents >= count - 1:
        return list(itertools.combinations(range(count), 2))
    steps = range(1, -(-opponents // 2) + 1)
    return sorted({(min(i, j), max(i, j)) for i in range(count) for j in ((i + step) % count for step in steps)})


def length_credit(winner: str, loser: str, gate: str) -> float:
    """What a win is worth. Lengths are in characters.

    Args:
      winner, loser: the responses.
      gate: "none": 1. "window": 1 if the winner's length over the loser's is between .8 and 1.2, else 0. "scale": the
        loser's length over the winner's, at most 1.
    """
    if gate == "window":
        low, high = WINDOW
        return float(low * len(loser) < len(winner) < high * len(loser))
    return min(1.0, len(loser) / max(1, len(winner))) if gate == "scale" else 1.0


def compared(rows: Iterable[ComparisonRow], texts: Mapping[str, str], gate: str = "none") -> list[Compared]:
    """The comparisons that votes make: the n-th of one order with the n-th of the other.

    Args:
      rows: the votes.
      texts: the responses by id.
      gate: see `length_credit`.
    """
    out = []
    for row in rows:
        prompt_id, _, numbers = row["id"].rpartition("/")
        first, second = (f"{prompt_id}/{n}" for n in numbers.split("-"))
        for votes in zip(*row["orders"], strict=True):
            out.append(Compared(first, second, votes, _credit(votes, texts[first], texts[second], gate)))
    return out


def preferences(rows: Iterable[ComparisonRow]) -> list[tuple[str, list[str | None]]]:
    """The id and what the votes of both orders prefer, for each comparison."""
    both = ((row["id"], votes) for row in rows for votes in zip(*row["orders"], strict=True))
    return [(name, [vote["preference"] for vote in votes]) for name, votes in both]


def _credit(votes: tuple[PreferenceVote, PreferenceVote], first: str, second: str, gate: str) -> float | None:
    sides = [vote["preference"] for vote in votes]
    if None in sides:
        return None
    match resolve_orders(*sides):
        case 1:
            return length_credit(first, second, gate)
        case -1:
            return -length_credit(second, first, gate)
    return 0.0


def judgments(comparisons: Iterable[Compared], min_votes: int = 1) -> list[JudgmentRow]:
    """Each response's comparisons as its votes, from 0 to 5: 5 for a full win. So its score is 5 R(i); None with fewer
    than `min_votes` readable ones."""
    votes: dict[str, list[Vote]] = {}
    for c in comparisons:
        for name, sign in ((c.first, 1), (c.second, -1)):
            shown_first = c.votes[0 if sign == 1 else 1]  # the judgment that has this response as A
            score = None if c.credit is None else MAX_SCORE * max(0.0, sign * c.credit)
            finished = all(vote["finished"] for vote in c.votes)
            votes.setdefault(name, []).append({"text": shown_first["text"], "finished": finished, "score": score})
    return [judgment_row(name, of, tokens=0, min_votes=min_votes) for name, of in votes.items()]


def judge_pairs(
    rows: Iterable[ComparisonRow],
    responses: Mapping[str, ResponseRow],
    scores: Mapping[str, float | None],
    template: str,
) -> list[PairRow]:
    """Pairs of two judgments of a comparison, in the same order: one that agrees with the order of the scores, and
    one that disagrees or cannot be read. Of several the first of each; nothing where scores are equal.

    Args:
      rows: the votes. A vote that was cut off is in no pair.
      responses: by id.
      scores: 5 R(i) by id.
      template: the judge prompt, with both responses.
    """
    pairs: list[PairRow] = []
    for row in rows:
        prompt_id, _, numbers = row["id"].rpartition("/")
        first, second = (responses[f"{prompt_id}/{n}"] for n in numbers.split("-"))
        one, other = scores.get(first["id"]), scores.get(second["id"])
        if one is None or other is None or comparable(one) == comparable(other):
            continue
        right = "a" if one > other else "b"
        matchup = Matchup(row["id"], first["prompt"], first["response"], second["response"])
        prompts = both_orders(template, matchup)
        for order, (prompt, votes) in enumerate(zip(prompts, row["orders"], strict=True)):
            wanted = right if order == 0 else {"a": "b", "b": "a"}[right]
            finished = [vote for vote in votes if vote["finished"]]
            agree = [vote["text"] for vote in finished if vote["preference"] == wanted]
            differ = [vote["text"] for vote in finished if vote["preference"] != wanted]
            if agree and differ:
                pair: PairRow = {
                    "id": f"{row['id']}/{order}",
                    "prompt": prompt,
                    "chosen": agree[0],
                    "rejected": differ[0],
                }
                pairs.append(pair | {"chosen_score": 1.0, "rejected_score": 0.0})
    return pairs
