"""Responses of a round compared two by two by the model that wrote them (judge.kind=pairwise)."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import jax

from selfreward_jax.method import comparisons as comparing
from selfreward_jax.method.judge_parsing import parse_preference
from selfreward_jax.method.pairwise import Matchup, both_orders
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.method.rows import ComparisonRow, PreferenceVote
from selfreward_jax.runs.run import Run
from selfreward_jax.sampling.engine import Completion, Engine, Request, SamplingParams
from selfreward_jax.stages.common import StageError, pairwise_template, previous_model
from selfreward_jax.stages.sampling import run_resumable
from selfreward_jax.telemetry.numbers import counted
from selfreward_jax.telemetry.terminal import log_line


def comparisons(run: Run, model: str) -> None:
    """m_t/comparisons.jsonl: m_(t-1) compares its own responses, judge.num_samples votes for each order."""
    judge_name, settings = previous_model(model), run.cfg.judge
    if run.files.is_complete(model, "comparisons", judge_name):
        return
    responses = finished_responses(run.files.jsonl(model, "responses").rows())
    matchups = comparing.matchups(responses, settings.opponents)
    engine, template, max_new_tokens = (
        run.models.engine(judge_name),
        pairwise_template(run),
        run.cfg.pairwise.max_new_tokens,
    )
    fits = partial(engine.fits, max_new_tokens=max_new_tokens)
    short = [m for m in matchups if all(map(fits, both_orders(template, m)))]
    if not short:
        raise StageError(
            f"{model} comparisons: none of {len(matchups)} pairs of responses fits beside pairwise.max_new_tokens "
            f"{max_new_tokens}: in a new --workdir raise model.max_length, or use judge.kind=model"
        )
    params = SamplingParams(settings.num_samples, settings.temperature, settings.top_p, max_new_tokens)
    stream = partial(_votes, engine, short, template, params)
    left_out = len(matchups) - len(short)
    rows = run_resumable(run, model, "comparisons", [m.id for m in short], stream, judge_name, left_out=left_out)
    votes = [vote for row in rows for order in row["orders"] for vote in order]
    read = [vote["preference"] for vote in votes if vote["preference"]]
    first = sum(side == "a" for side in read)
    log_line(
        f"  {model} comparisons: {len(rows):,} of {len(matchups):,}, {len(read):,} of {len(votes):,} votes read, "
        f"{first:,} for the first response"
    )


def judge_pairs(run: Run, model: str) -> None:
    """m_t/judge_pairs.jsonl: of the votes on a comparison one that agrees with the scores, and one that does not."""
    if run.files.is_complete(model, "judge_pairs"):
        return
    responses = {row["id"]: row for row in finished_responses(run.files.jsonl(model, "responses").rows())}
    scores = {row["id"]: row["score"] for row in run.files.jsonl(model, "judgments").rows()}
    rows = run.files.jsonl(model, "comparisons").rows()
    pairs = comparing.judge_pairs(rows, responses, scores, pairwise_template(run))
    run.files.jsonl(model, "judge_pairs").finish(pairs, tokens=0)
    log_line(f"  {model} judge_pairs: {len(pairs):,} of {counted(2 * len(rows), 'order')} compared")


def _votes(
    engine: Engine,
    matchups: Sequence[Matchup],
    template: str,
    params: SamplingParams,
    key: jax.Array,
    done: Collection[str],
) -> Iterator[list[ComparisonRow]]:
    """Votes in batches; a row when both of its orders are there."""
    requests = [
        Request(f"{m.id}/{order}", text) for m in matchups for order, text in enumerate(both_orders(template, m))
    ]
    answered = {f"{i}/{order}" for i in done for order in (0, 1)}
    votes: dict[str, list[Completion]] = {}
    for batch in engine.stream(requests, params, key, answered):
        for completion in batch:
            votes.setdefault(completion.id, []).append(completion)
        names = dict.fromkeys(c.id.rpartition("/")[0] for c in batch)
        whole = [name for name in names if all(len(votes.get(f"{name}/{k}", ())) == params.num_samples for k in (0, 1))]
        yield [_row(name, votes[f"{name}/0"], votes[f"{name}/1"]) for name in whole]


def _row(name: str, *orders: Sequence[Completion]) -> ComparisonRow:
    in_order = [sorted(order, key=lambda c: c.sample) for order in orders]
    tokens = sum(len(c.ids) for order in in_order for c in order)
    return {"id": name, "orders": [[_vote(c) for c in order] for order in in_order], "tokens": tokens}


def _vote(completion: Completion) -> PreferenceVote:
    preference = parse_preference(completion.text) if completion.finished else None
    return {"text": completion.text, "finished": completion.finished, "preference": preference}
