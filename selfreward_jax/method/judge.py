"""The model as judge: the judge prompt, its votes, and the score that they give."""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from statistics import pstdev, pvariance
from typing import Any

from selfreward_jax.method.expected_score import expected_scores
from selfreward_jax.method.judge_parsing import PARSERS
from selfreward_jax.method.rows import JudgedRow, JudgeInput, JudgmentRow, Vote
from selfreward_jax.method.templates import fill
from selfreward_jax.sampling.engine import Completion, Engine, Request, SamplingParams
from selfreward_jax.telemetry.numbers import counted, three_digits


def judge_prompt(template: str, prompt: str, response: str) -> str:
    """The judge prompt for one response."""
    return fill(template, prompt=prompt, response=response)


def mean_score(scores: Sequence[float | None], min_votes: int = 1) -> float | None:
    """The mean of the parsed scores; None if there are fewer than `min_votes`."""
    parsed = [s for s in scores if s is not None]
    return sum(parsed) / len(parsed) if len(parsed) >= min_votes else None


def judge(
    engine: Engine,
    responses: Sequence[JudgeInput],
    template: str,
    sampling_params: SamplingParams,
    settings: Any,
    key: Any,
    done: Collection[str] = (),
    shots: str = "",
) -> Iterator[list[JudgmentRow]]:
    """Judges responses, batch by batch.

    Args:
      engine: the judging model.
      responses: rows {id, prompt, response}.
      template: the judge's template.
      sampling_params: `num_samples` votes are sampled for each response.
      settings: config.judge. `output_format`: what a judgment ends in. `min_votes`: parsed votes that a response needs
        for a score. `aggregation`: "mean" counts a vote as the score it names, "expected" as its expected score.
        `accept_complete`: a vote that was cut off is read up to its last line break; else it has no score.
      key: random key of the stage.
      done: ids of responses that are already judged.
      shots: shown before each judge prompt: see `few_shot`.

    Yields:
      Rows {id, score, variance, votes: [{text, finished, score}], tokens}; votes have `expected` too with that
      aggregation. The score is the mean of the parsed votes, and the variance is theirs.
    """
    prompts = {r["id"]: shots + judge_prompt(template, r["prompt"], r["response"]) for r in responses}
    next_request = template.partition("{")[0].strip().partition("\n")[0] if shots else ""
    requests = [Request(row_id, prompt) for row_id, prompt in prompts.items()]
    for batch in engine.stream(requests, sampling_params, key, done):
        groups = group_by_id(batch)
        votes = {group[0].id: _parse_votes(group, settings, next_request) for group in groups}
        if settings.aggregation == "expected":
            batch_size = max(1, engine.max_concurrent // sampling_params.num_samples)  # as many prompts as in sampling
            _add_expected_scores(engine, votes, prompts, settings, batch_size)
        yield [
            judgment_row(
                group[0].id,
                votes[group[0].id],
                tokens=sum(len(c.ids) for c in group),
                aggregation=settings.aggregation,
                min_votes=settings.min_votes,
            )
            for group in groups
        ]


def judge_texts(
    engine: Engine,
    pairs: Sequence[tuple[str, str]],
    template: str,
    sampling_params: SamplingParams,
    settings: Any,
    key: Any,
) -> list[JudgmentRow]:
    """Judges (prompt, response) pairs that are no rows of a run. The other arguments are as in `judge`.

    The judge prompt is the row's id. So what is sampled depends on it and the key alone. Equal pairs are judged once.

    Returns:
      A row for each pair.
    """
    ids = [judge_prompt(template, prompt, response) for prompt, response in pairs]
    rows: dict[str, JudgeInput] = {
        row_id: {"id": row_id, "prompt": prompt, "response": response}
        for row_id, (prompt, response) in zip(ids, pairs, strict=True)
    }
    batches = judge(engine, list(rows.values()), template, sampling_params, settings, key)
    judged = {row["id"]: row for batch in batches for row in batch}
    return [judged[row_id] for row_id in ids]


def few_shot(template: str, rows: Sequence[JudgedRow]) -> str:
    """Judged rows in the form of the judge's task, each followed by an empty line."""
    return "".join(f"{judge_prompt(template, r['prompt'], r['response'])}\n{r['judgment']}\n\n" for r in rows)


def choose_shots(rows: Sequence[JudgedRow], count: int, seed: str) -> list[JudgedRow]:
    """So many judged rows, at random: of each score as many, as far as there are any."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    seen: Counter[float] = Counter()
    rounds = []
    for row in shuffled:
        rounds.append((seen[row["score"]], row))
        seen[row["score"]] += 1
    return [row for _, row in sorted(rounds, key=lambda one: one[0])[:count]]


def _parse_votes(completions: Sequence[Completion], settings: Any, next_request: str) -> list[Vote]:
    return [_parse_vote(c.text, c.finished, settings, next_request) for c in completions]


def _parse_vote(text: str, finished: bool, settings: Any, next_request: str = "") -> Vote:
    """A vote. A model that was shown examples may go on with a next one, which begins with the line `next_request`:
    what is before that line is its judgment, and complete."""
    judgment, begins_next, _ = f"\n{text}".partition(f"\n{next_request}") if next_request else (text, "", "")
    if begins_next:
        text, finished = judgment.strip("\n"), True
    complete = _complete(text, finished, settings)
    return {"text": text, "finished": finished, "score": PARSERS[settings.output_format](complete)}


def _complete(text: str, finished: bool, settings: Any) -> str:
    """What of a vote is read. Of one that was cut off the last line may be half a line."""
    return text if finished else text.rpartition("\n")[0] if settings.accept_complete else ""


def _add_expected_scores(
    engine: Engine, votes: dict[str, list[Vote]], prompts: dict[str, str], settings: Any, batch_size: int
) -> None:
    """Adds `expected` to each vote, None if it has no score."""
    scored = [(prompts[row_id], vote) for row_id, row_votes in votes.items() for vote in row_votes]
    judgments = [
        (prompt, _complete(vote["text"], vote["finished"], settings))
        for prompt, vote in scored
        if vote["score"] is not None
    ]
    expected = iter(expected_scores(engine, judgments, settings.output_format, batch_size))
    for _, vote in scored:
        vote["expected"] = None if vote["score"] is None else next(expected)


def judgment_row(
    row_id: str, votes: list[Vote], *, tokens: int, aggregation: str = "mean", min_votes: int = 1
) -> JudgmentRow:
    """The votes on a response with their mean and variance. The other arguments are as in `judge`."""
    scores = [vote["expected"] if aggregation == "expected" else vote["score"] for vote in votes]
    parsed = [s for s in scores if s is not None]
    return {
        "id": row_id,
        "score": mean_score(scores, min_votes),
        "variance": pvariance(parsed) if parsed else None,
        "votes": votes,
        "tokens": tokens,
    }


def random_judge(responses: Sequence[JudgeInput], num_samples: int, seed: str) -> list[JudgmentRow]:
    """Judgments with random votes, 0 to 5: the control that shows whether a gain comes from the judge's signal."""
    rows = []
    for response in responses:
        rng = random.Random(f"{seed} {response['id']}")
        votes: list[Vote] = [
            {"text": "", "finished": True, "score": float(rng.randint(0, 5))} for _ in range(num_samples)
        ]
        rows.append(judgment_row(response["id"], votes, tokens=0))
    return rows


def group_by_id(completions: Iterable[Completion]) -> list[list[Completion]]:
    """The completions of each request, samples in order."""
    groups: dict[str, list[Completion]] = {}
    for c in completions:
        groups.setdefault(c.id, []).append(c)
    return [sorted(group, key=lambda c: c.sample) for group in groups.values()]


def judge_stats(judgments: Sequence[JudgmentRow]) -> dict[str, Any]:
    """Statistics of the judge.

    Returns:
      `answers` and `votes`, their numbers; `parse_rate`, the fraction of votes with a score; `cut_off`, votes that
      reached max_new_tokens; `histogram` of the rounded votes and `spread`, the standard deviation of votes;
      `unscored`, answers without a score.
    """
    votes = [vote["score"] for row in judgments for vote in row["votes"]]
    parsed = [score for score in votes if score is not None]
    return {
        "answers": len(judgments),
        "votes": len(votes),
        "parse_rate": len(parsed) / len(votes) if votes else None,
        "cut_off": sum(not vote.get("finished", True) for row in judgments for vote in row["votes"]),
        "histogram": {str(score): n for score, n in sorted(Counter(round(s) for s in parsed).items())},
        "spread": round(pstdev(parsed), 3) if parsed else None,
        "unscored": sum(row["score"] is None for row in judgments),
    }


def format_stats(stats: dict[str, Any]) -> str:
    """The statistics of a judge in words, such as "72 votes on 24 answers, 98.6 % parsed"."""
    parsed = "" if stats["parse_rate"] is None else f", {three_digits(100 * stats['parse_rate'])} % parsed"
    cut_off = f", {stats['cut_off']:,} cut off at max_new_tokens" * bool(stats["cut_off"])
    unscored = f", {counted(stats['unscored'], 'answer')} without a score" * bool(stats["unscored"])
    votes = f"{counted(stats['votes'], 'vote')} on {counted(stats['answers'], 'answer')}"
    return votes + parsed + cut_off + unscored


def format_histogram(stats: dict[str, Any]) -> list[str]:
    """The votes by score as a table of two lines; none without votes."""
    if not stats["histogram"]:
        return []
    scores = sorted({0, 1, 2, 3, 4, 5} | {int(score) for score in stats["histogram"]})
    votes = [stats["histogram"].get(str(score), 0) for score in scores]
    return [
        "    score " + "".join(f"{score:7d}" for score in scores),
        "    votes " + "".join(f"{count:7,}" for count in votes) + f"   spread {three_digits(stats['spread'])}",
    ]
