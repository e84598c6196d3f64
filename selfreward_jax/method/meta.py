"""Pairs of judgments by a meta-judge: the model compares its own judgments of a response (after arXiv 2407.19594).

For each prompt it is the response whose votes differ most. Each two of its votes are compared in both orders. Wins are
weighted by place and give Elo ratings; the best vote against the worst is a pair. The weights are of the whole round: a
response has too few games to tell a place's luck from a vote's worth.
"""

import itertools
from collections.abc import Iterable, Mapping
from statistics import pvariance
from typing import NamedTuple

from selfreward_jax.method.elo import elo, position_weights, weighted_wins
from selfreward_jax.method.pairs import comparable
from selfreward_jax.method.rows import JudgmentRow, PairRow, ResponseRow, VerdictRow, Vote
from selfreward_jax.method.templates import fill


class Judged(NamedTuple):
    """A response and those of its votes that are compared, by their numbers."""

    id: str
    prompt: str
    response: str
    votes: dict[int, Vote]


class MetaMatchup(NamedTuple):
    """Two judgments of a response. The id is PROMPT_ID/SAMPLE/I-J."""

    id: str
    judged: Judged
    first: str
    second: str

    def prompts(self, template: str) -> tuple[str, str]:
        """The meta-judge's prompts, with the first judgment first and with the second first."""
        shown = {"prompt": self.judged.prompt, "response": self.judged.response}
        return (
            fill(template, **shown, first=self.first, second=self.second),
            fill(template, **shown, first=self.second, second=self.first),
        )


def most_doubtful(judgments: Iterable[JudgmentRow], responses: Mapping[str, ResponseRow]) -> list[Judged]:
    """Of each prompt the response whose votes have the largest variance, the first of equals; none if all agree.

    Votes that were cut off do not count.

    Args:
      judgments: of a round.
      responses: by id.
    """
    largest: dict[str, tuple[float, Judged]] = {}
    for row in judgments:
        votes = {i: vote for i, vote in enumerate(row["votes"]) if vote["finished"]}
        scores = [vote["score"] for vote in votes.values() if vote["score"] is not None]
        prompt_id, variance = row["id"].rpartition("/")[0], comparable(pvariance(scores)) if scores else 0.0
        if variance > largest.get(prompt_id, (0.0,))[0]:
            of = responses[row["id"]]
            largest[prompt_id] = variance, Judged(row["id"], of["prompt"], of["response"], votes)
    return [judged for _, judged in largest.values()]


def matchups(judged: Iterable[Judged]) -> list[MetaMatchup]:
    """Each two votes of each response that have different texts."""
    return [
        MetaMatchup(f"{one.id}/{i}-{j}", one, one.votes[i]["text"], one.votes[j]["text"])
        for one in judged
        for i, j in itertools.combinations(one.votes, 2)
        if one.votes[i]["text"] != one.votes[j]["text"]
    ]


def judge_pairs(
    judged: Iterable[Judged], verdicts: Iterable[VerdictRow], judge_template: str, max_length: int = 0
) -> list[PairRow]:
    """The best judgment of each response against the worst, by Elo; nothing where all are equal. One that gives no
    score is never the best: the judge would learn to give none.

    Args:
      judged: what was compared.
      verdicts: the meta-judge's, with the ids of `matchups`.
      judge_template: the judge prompt, for one response.
      max_length: longest chosen judgment in characters, as a meta-judge prefers long ones; 0: any.
    """
    games: dict[str, list[tuple[int, int, str | None]]] = {}
    for row in verdicts:
        name, _, numbers = row["id"].rpartition("/")
        i, j = map(int, numbers.split("-"))
        games.setdefault(name, []).extend([(i, j, row["read"][0]), (j, i, row["read"][1])])
    outcomes = [outcome for of in games.values() for _, _, outcome in of]
    weights = position_weights(outcomes.count("a"), outcomes.count("b"))
    pairs: list[PairRow] = []
    for one in judged:
        ratings = elo(weighted_wins(max(one.votes) + 1, games.get(one.id, []), weights))
        scored = [i for i, vote in one.votes.items() if vote["score"] is not None]
        if not scored:
            continue
        best = max(scored, key=lambda i: comparable(ratings[i]))
        worst = min(one.votes, key=lambda i: comparable(ratings[i]))
        if comparable(ratings[best] - ratings[worst]) <= 0:
            continue
        chosen, rejected = one.votes[best]["text"], one.votes[worst]["text"]
        if max_length and len(chosen) > max_length:
            continue
        prompt = fill(judge_template, prompt=one.prompt, response=one.response)
        pair: PairRow = {"id": one.id, "prompt": prompt, "chosen": chosen, "rejected": rejected}
        pairs.append(pair | {"chosen_score": float(ratings[best]), "rejected_score": float(ratings[worst])})
    return pairs
