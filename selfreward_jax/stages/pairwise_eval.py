"""Responses of two models compared by a model of the run, or by an endpoint."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import jax

from selfreward_jax.evaluate.endpoint import Endpoint
from selfreward_jax.evaluate.head_to_head import sign
from selfreward_jax.method.judge_parsing import parse_preference
from selfreward_jax.method.pairwise import Matchup, both_orders, make_matchups, resolve_orders, verdicts_by_prompt
from selfreward_jax.method.rows import JudgeInput, ResponsesRow, VerdictRow
from selfreward_jax.runs.run import Run
from selfreward_jax.sampling.engine import Completion, Engine, SamplingParams
from selfreward_jax.stages import orders
from selfreward_jax.stages.common import pairwise_template
from selfreward_jax.stages.sampling import judge, run_resumable
from selfreward_jax.telemetry.terminal import log_line


def compare(
    run: Run,
    judge_name: str,
    ours: Sequence[ResponsesRow],
    theirs: Sequence[ResponsesRow],
    folder: str,
    stage: str,
) -> list[list[int]]:
    """Verdicts of a model of the run on responses to the same prompts, by the method that pairwise.method names.

    Args:
      run: the run.
      judge_name: the judge, a finished model such as "m1".
      ours, theirs: the responses of the two models.
      folder, stage: the artifact for what the judge writes.

    Returns:
      For each prompt the verdicts of its samples: 1 ours, 0 tie, -1 theirs.
    """
    matchups = make_matchups(ours, theirs)
    return verdicts_by_prompt(matchups, judge_matchups(run, judge_name, matchups, folder, stage))


def judge_matchups(run: Run, judge_name: str, matchups: Sequence[Matchup], folder: str, stage: str) -> list[int]:
    """The verdict on each matchup, as `compare`."""
    by = _by_scores if run.cfg.pairwise.method == "scores" else side_by_side
    return by(run, judge_name, matchups, folder, stage)


def compare_by_endpoint(
    run: Run, endpoint: Endpoint, ours: Sequence[ResponsesRow], theirs: Sequence[ResponsesRow], label: str
) -> list[list[int]]:
    """The same verdicts by an endpoint, in both orders.

    Raises:
      EndpointError: it cannot be used, or not be asked any further.
    """
    template, matchups = pairwise_template(run), make_matchups(ours, theirs)
    requests = [prompt for matchup in matchups for prompt in both_orders(template, matchup)]
    replies = endpoint.complete(requests, run.cfg.endpoint.max_tokens)
    sides = [parse_preference(text) if text else None for text in replies]
    _log_unreadable(label, sides, f"endpoint.max_tokens is {run.cfg.endpoint.max_tokens}")
    verdicts = [resolve_orders(*orders) for orders in zip(sides[::2], sides[1::2], strict=True)]
    return verdicts_by_prompt(matchups, verdicts)


def _log_unreadable(label: str, sides: Sequence[str | None], limit: str) -> None:
    if count := sum(side is None for side in sides):
        log_line(f"{label}: {count} of {len(sides)} verdicts could not be parsed and count as ties ({limit})")


def _by_scores(run: Run, judge_name: str, matchups: Sequence[Matchup], folder: str, stage: str) -> list[int]:
    """Each response is judged alone; the higher score wins. A response without a score neither wins nor loses."""
    responses: list[JudgeInput] = [
        {"id": f"{m.id}/{side}", "prompt": m.prompt, "response": text}
        for m in matchups
        for side, text in (("ours", m.ours), ("theirs", m.theirs))
    ]
    scores = {row["id"]: row["score"] for row in judge(run, judge_name, responses, folder, stage)}
    sides = [(scores.get(f"{m.id}/ours"), scores.get(f"{m.id}/theirs")) for m in matchups]
    return [0 if a is None or b is None else sign(a - b) for a, b in sides]


def side_by_side(run: Run, judge_name: str, matchups: Sequence[Matchup], folder: str, stage: str) -> list[int]:
    """Both responses are shown together, in both orders."""
    if not run.files.is_complete(folder, stage, judge_name):
        settings, engine, template = run.cfg.pairwise, run.models.engine(judge_name), pairwise_template(run)
        prompts = {m.id: both_orders(template, m) for m in matchups}
        remedy = "set pairwise.method=scores, or lower pairwise.max_new_tokens"
        short = orders.drop_long(engine, prompts, settings.max_new_tokens, f"{folder} {stage}", remedy)
        greedy = SamplingParams(1, 0.0, 1.0, settings.max_new_tokens)  # chance has no place in a verdict
        stream = partial(stream_verdicts, engine, short, greedy)
        left_out = len(matchups) - len(short)
        run_resumable(run, folder, stage, list(short), stream, engine, judge_name, left_out=left_out)
    rows = run.files.jsonl(folder, stage).rows()
    limit = f"pairwise.max_new_tokens is {run.cfg.pairwise.max_new_tokens}"
    _log_unreadable(f"{folder} {stage}", [side for row in rows for side in row["read"]], limit)
    verdicts = {row["id"]: row["verdict"] for row in rows}
    return [verdicts.get(m.id, 0) for m in matchups]


def stream_verdicts(
    engine: Engine, prompts: orders.Prompts, params: SamplingParams, key: jax.Array, done: Collection[str]
) -> Iterator[list[VerdictRow]]:
    """Verdicts of one sample of each order, in batches. `texts` and `read` hold what the judge wrote and what was
    parsed, with our response first and then second."""
    for batch in orders.stream(engine, prompts, params, key, done):
        yield [_verdict(both.id, both.first[0], both.second[0]) for both in batch]


def _verdict(name: str, first: Completion, second: Completion) -> VerdictRow:
    sides = [parse_preference(c.text) if c.finished else None for c in (first, second)]
    return {
        "id": name,
        "verdict": resolve_orders(*sides),
        "read": sides,
        "texts": [first.text, second.text],
        "tokens": len(first.ids) + len(second.ids),
    }
