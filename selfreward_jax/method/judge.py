"""The model as judge: the judge's prompt, its votes, and the score read from what it wrote."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import pstdev
from typing import Any

from selfreward_jax.generate.engine import Completion, Engine, Request, Sampling
from selfreward_jax.method.templates import fill

Row = dict[str, Any]

LOWEST, HIGHEST = 0.0, 5.0
_SCORE = re.compile(r"\bscore[\s*_`]{0,4}:", re.IGNORECASE)
# A plain number, behind marks of emphasis; after it perhaps "/5" or "out of 5", and nothing that makes it another
# number or a share of something else.
_NUMBER = re.compile(
    r"[\s*_`<(\[]{0,6}(\d+(?:\.\d+)?)(?:\s*(?:/|out of|of)\s*5(?:\.0+)?)?"
    r"(?![\w%]|[.,/-]\d|\s*/|\s+(?:out of|of)\b)",
    re.IGNORECASE,
)


def parse_score(text: str) -> float | None:
    """The score a judgement gives, None if it gives none.

    The last `Score: n` counts (the reasons may weigh others before it), with n from 0 to 5, decimals allowed
    and `/5` after it. If that last one is out of range or is not a plain number, the judgement is no vote;
    it does not fall back to an earlier one. `text` must be the judge's own words alone: what it was shown may
    hold anything, also "Score: 5".
    """
    *_, last = [None, *_SCORE.finditer(text)]
    number = _NUMBER.match(text, last.end()) if last else None
    if number is None:
        return None
    score = float(number[1])
    return score if LOWEST <= score <= HIGHEST else None


def judge_prompt(template: str, prompt: str, response: str) -> str:
    """The judge's prompt for one answer."""
    return fill(template, prompt=prompt, response=response)


def mean_score(votes: Sequence[float | None], least: int = 1) -> float | None:
    """The mean of the readable votes; None if there are fewer than `least`."""
    readable = [v for v in votes if v is not None]
    return sum(readable) / len(readable) if len(readable) >= least else None


def judge(
    engine: Engine,
    answers: Sequence[Row],
    template: str,
    how: Sampling,
    key: Any,
    done: Iterable[str] = (),
    least_votes: int = 1,
) -> Iterator[list[Row]]:
    """Judges answers, batch by batch.

    Args:
      engine: the judging model.
      answers: rows {id, prompt, response}.
      template: the judge's template.
      how: `how.samples` votes are drawn for each answer.
      key: random key of the stage.
      done: ids already judged.
      least_votes: readable votes an answer needs for a score.

    Yields:
      Rows {id, votes: [{text, score}], score, tokens}; a vote cut off before it ended is no vote.
    """
    requests = [Request(a["id"], judge_prompt(template, a["prompt"], a["response"])) for a in answers]
    for batch in engine.stream(requests, how, key, done):
        yield [_judged(row, least_votes) for row in by_id(batch)]


def _judged(completions: Sequence[Completion], least_votes: int) -> Row:
    votes = [
        {"text": c.text, "finished": c.finished, "score": parse_score(c.text) if c.finished else None}
        for c in completions
    ]
    return {
        "id": completions[0].id,
        "score": mean_score([v["score"] for v in votes], least_votes),
        "votes": votes,
        "tokens": sum(len(c.ids) for c in completions),
    }


def by_id(completions: Iterable[Completion]) -> list[list[Completion]]:
    """Completions of each request together, samples in order."""
    groups: dict[str, list[Completion]] = {}
    for c in completions:
        groups.setdefault(c.id, []).append(c)
    return [sorted(group, key=lambda c: c.sample) for group in groups.values()]


def health(judgements: Sequence[Row]) -> dict[str, Any]:
    """How the judge did: votes, share readable, votes cut off at their greatest length, histogram of votes (rounded),
    their standard deviation, answers without a score."""
    votes = [v["score"] for row in judgements for v in row["votes"]]
    readable = [v for v in votes if v is not None]
    return {
        "answers": len(judgements),
        "votes": len(votes),
        "parse_rate": len(readable) / len(votes) if votes else None,
        "cut_off": sum(not v.get("finished", True) for row in judgements for v in row["votes"]),
        "histogram": {str(k): n for k, n in sorted(Counter(round(v) for v in readable).items())},
        "spread": round(pstdev(readable), 3) if readable else None,
        "unscored": sum(row["score"] is None for row in judgements),
    }
