"""The model as judge: the judge's prompt, its votes, and the score that they come to."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import pstdev, pvariance
from typing import Any

from selfreward_jax.method.expected_score import expected_scores
from selfreward_jax.method.judge_parsing import PARSERS
from selfreward_jax.method.templates import fill
from selfreward_jax.sampling.engine import Completion, Engine, Request, SamplingParams

Row = dict[str, Any]


def judge_prompt(template: str, prompt: str, response: str) -> str:
    """The judge's prompt for one answer."""
    return fill(template, prompt=prompt, response=response)


def mean_score(votes: Sequence[float | None], min_votes: int = 1) -> float | None:
    """The mean of the readable votes; None if there are fewer than `least`."""
    readable = [v for v in votes if v is not None]
    return sum(readable) / len(readable) if len(readable) >= min_votes else None


def judge(
    engine: Engine,
    answers: Sequence[Row],
    template: str,
    sampling_params: SamplingParams,
    settings: Any,
    key: Any,
    done: Iterable[str] = (),
) -> Iterator[list[Row]]:
    """Judges answers, batch by batch.

    Args:
      engine: the judging model.
      answers: rows {id, prompt, response}.
      template: the judge's template.
      how: `how.samples` votes are drawn for each answer.
      settings: config.judge: `form` of a judgment's end; `least_votes` that an answer needs for a score; `readout`,
        "votes" or "expected", by which a vote counts as the score it names or as its mean over the score's tokens.
      key: random key of the stage.
      done: ids already judged.

    Yields:
      Rows {id, score, variance, votes: [{text, finished, score}], tokens}, with `expected` in each vote if that is
      the readout. The score is the mean of the readable votes, the variance theirs. A vote cut off before it ended
      is no vote.
    """
    prompt = {a["id"]: judge_prompt(template, a["prompt"], a["response"]) for a in answers}
    requests = [Request(i, text) for i, text in prompt.items()]
    for batch in engine.stream(requests, sampling_params, key, done):
        rows = [_judged(row, settings.output_format) for row in group_by_id(batch)]
        if settings.aggregation == "expected":
            _read_out(
                engine,
                rows,
                prompt,
                settings.output_format,
                max(1, engine.max_concurrent // sampling_params.num_samples),
            )
        yield [_scored(row, settings.aggregation, settings.min_votes) for row in rows]


def _judged(completions: Sequence[Completion], form: str) -> Row:
    read = PARSERS[form]
    votes = [
        {"text": c.text, "finished": c.finished, "score": read(c.text) if c.finished else None} for c in completions
    ]
    return {"id": completions[0].id, "votes": votes, "tokens": sum(len(c.ids) for c in completions)}


def _read_out(engine: Engine, rows: Sequence[Row], prompt: dict[str, str], form: str, at_once: int) -> None:
    """Adds `expected` to each vote, None where it has no score. As many prompts are read together as in drawing."""
    votes = [(row["id"], v) for row in rows for v in row["votes"]]
    asked = [(prompt[i], v["text"]) for i, v in votes if v["score"] is not None]
    found = iter(expected_scores(engine, asked, form, at_once))
    for _, vote in votes:
        vote["expected"] = None if vote["score"] is None else next(found)


def _scored(row: Row, readout: str, min_votes: int) -> Row:
    values = [v["expected" if readout == "expected" else "score"] for v in row["votes"]]
    readable = [v for v in values if v is not None]
    return {
        "id": row["id"],
        "score": mean_score(values, min_votes),
        "variance": pvariance(readable) if readable else None,
        "votes": row["votes"],
        "tokens": row["tokens"],
    }


def random_judge(answers: Sequence[Row], num_samples: int, seed: str) -> list[Row]:
    """Judgments of a judge that throws dice, 0 to 5: the control that shows whose signal a gain is."""
    rows = []
    for answer in answers:
        rng = random.Random(f"{seed} {answer['id']}")
        votes = [{"text": "", "finished": True, "score": float(rng.randint(0, 5))} for _ in range(num_samples)]
        rows.append(_scored({"id": answer["id"], "votes": votes, "tokens": 0}, "votes", 1))
    return rows


def group_by_id(completions: Iterable[Completion]) -> list[list[Completion]]:
    """Completions of each request together, samples in order."""
    groups: dict[str, list[Completion]] = {}
    for c in completions:
        groups.setdefault(c.id, []).append(c)
    return [sorted(group, key=lambda c: c.sample) for group in groups.values()]


def judge_stats(judgments: Sequence[Row]) -> dict[str, Any]:
    """How the judge did: votes, share readable, votes cut off at their greatest length, histogram of votes (rounded),
    their standard deviation, answers without a score."""
    votes = [v["score"] for row in judgments for v in row["votes"]]
    readable = [v for v in votes if v is not None]
    return {
        "answers": len(judgments),
        "votes": len(votes),
        "parse_rate": len(readable) / len(votes) if votes else None,
        "cut_off": sum(not v.get("finished", True) for row in judgments for v in row["votes"]),
        "histogram": {str(k): n for k, n in sorted(Counter(round(v) for v in readable).items())},
        "spread": round(pstdev(readable), 3) if readable else None,
        "unscored": sum(row["score"] is None for row in judgments),
    }
