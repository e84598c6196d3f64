"""The judge's own pairs: responses compared two by two, judgments compared by a meta-judge, and pairs of judgments."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import jax

from selfreward_jax.method import comparisons as comparing
from selfreward_jax.method import hacks, meta
from selfreward_jax.method.judge_parsing import parse_preference
from selfreward_jax.method.pairwise import Matchup, both_orders, flip_rate
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.method.rows import ComparisonRow, PreferenceVote, ResponseRow
from selfreward_jax.runs.run import Run
from selfreward_jax.sampling.engine import Completion, Engine, SamplingParams
from selfreward_jax.stages import orders
from selfreward_jax.stages.common import judge_template, meta_template, pairwise_template, planted_hacks, previous_model
from selfreward_jax.stages.pairwise_eval import stream_verdicts
from selfreward_jax.stages.sampling import run_resumable
from selfreward_jax.telemetry.numbers import counted
from selfreward_jax.telemetry.terminal import log_line


def comparisons(run: Run, model: str) -> None:
    """m_t/comparisons.jsonl: m_(t-1) compares its own responses, judge.num_samples votes for each order."""
    if not run.files.is_complete(model, "comparisons", previous_model(model)):
        responses = _responses(run, model).values()
        _compare(run, model, "comparisons", comparing.matchups(responses, run.cfg.judge.opponents))


def hack_comparisons(run: Run, model: str) -> None:
    """m_t/hack_comparisons.jsonl: m_(t-1) compares hacks that are planted into its own responses with these."""
    if run.files.is_complete(model, "hack_comparisons", previous_model(model)):
        return
    if rows := planted_hacks(run, model):
        _compare(run, model, "hack_comparisons", hacks.matchups(rows))


def _compare(run: Run, model: str, stage: str, matchups: Sequence[Matchup]) -> None:
    judge_name, settings, label = previous_model(model), run.cfg.judge, f"{model} {stage}"
    engine, max_new_tokens = run.models.engine(judge_name), run.cfg.pairwise.max_new_tokens
    template = pairwise_template(run)
    prompts = {m.id: both_orders(template, m) for m in matchups}
    remedy = "in a new --workdir raise model.max_length, or use judge.kind=model"
    short = orders.drop_long(engine, prompts, max_new_tokens, label, remedy)
    params = SamplingParams(settings.num_samples, settings.temperature, settings.top_p, max_new_tokens)
    stream, left_out = partial(_stream_votes, engine, short, params), len(prompts) - len(short)
    rows = run_resumable(run, model, stage, list(short), stream, engine, judge_name, left_out=left_out)
    sides = [both for _, both in comparing.preferences(rows)]
    votes = [side for both in sides for side in both]
    read, first = sum(side is not None for side in votes), sum(side == "a" for side in votes)
    rate = flip_rate(sides)
    flips = "" if rate is None else f"; {rate:.0%} of the verdicts flip with the order"
    log_line(f"  {label}: {read:,} of {len(votes):,} votes can be read, {first:,} are for the first response{flips}")


def meta_judgments(run: Run, model: str) -> None:
    """m_t/meta_judgments.jsonl: m_(t-1) compares its own judgments of the response to each prompt that they differ on
    most, in both orders."""
    judge_name, label = previous_model(model), f"{model} meta_judgments"
    if run.files.is_complete(model, "meta_judgments", judge_name):
        return
    engine, template, settings = run.models.engine(judge_name), meta_template(run), run.cfg.meta
    prompts = {m.id: m.prompts(template) for m in meta.matchups(_doubtful(run, model))}
    remedy = "in a new --workdir raise model.max_length, or lower meta.max_new_tokens"
    short = orders.drop_long(engine, prompts, settings.max_new_tokens, label, remedy)
    greedy = SamplingParams(1, 0.0, 1.0, settings.max_new_tokens)
    stream, left_out = partial(stream_verdicts, engine, short, greedy), len(prompts) - len(short)
    rows = run_resumable(run, model, "meta_judgments", list(short), stream, engine, judge_name, left_out=left_out)
    read = sum(side is not None for row in rows for side in row["read"])
    agree = sum(row["verdict"] != 0 for row in rows)
    log_line(f"  {label}: {read:,} of {2 * len(rows):,} can be read, {agree:,} verdicts hold in both orders")


def judge_pairs(run: Run, model: str) -> None:
    """m_t/judge_pairs.jsonl: pairs of judgments, by all comparisons of the prompt or by the meta-judge."""
    if run.files.is_complete(model, "judge_pairs"):
        return
    if run.cfg.dpo.judge_pairs == "meta":
        judged, verdicts = _doubtful(run, model), run.files.jsonl(model, "meta_judgments").rows()
        pairs = meta.judge_pairs(judged, verdicts, judge_template(run), run.cfg.dpo.judge_pair_max_length)
        of = counted(len(judged), "response")
    else:
        rows = run.files.jsonl(model, "comparisons").rows()
        scores = {row["id"]: row["score"] for row in run.files.jsonl(model, "judgments").rows()}
        pairs = comparing.judge_pairs(rows, _responses(run, model), scores, pairwise_template(run))
        of = f"{2 * len(rows):,} comparisons in an order"
    run.files.jsonl(model, "judge_pairs").finish(pairs, tokens=0)
    log_line(f"  {model} judge_pairs: {counted(len(pairs), 'pair')} of {of}")


def _responses(run: Run, model: str) -> dict[str, ResponseRow]:
    return {row["id"]: row for row in finished_responses(run.files.jsonl(model, "responses").rows())}


def _doubtful(run: Run, model: str) -> list[meta.Judged]:
    return meta.most_doubtful(run.files.jsonl(model, "judgments").rows(), _responses(run, model))


def _stream_votes(
    engine: Engine, prompts: orders.Prompts, params: SamplingParams, key: jax.Array, done: Collection[str]
) -> Iterator[list[ComparisonRow]]:
    for batch in orders.stream(engine, prompts, params, key, done):
        yield [_row(both.id, both.first, both.second) for both in batch]


def _row(name: str, *both: Sequence[Completion]) -> ComparisonRow:
    tokens = sum(len(c.ids) for order in both for c in order)
    return {"id": name, "orders": [[_vote(c) for c in order] for order in both], "tokens": tokens}


def _vote(completion: Completion) -> PreferenceVote:
    preference = parse_preference(completion.text) if completion.finished else None
    return {"text": completion.text, "finished": completion.finished, "preference": preference}
