"""Two models' answers compared by a model of the run."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from selfreward_jax.evaluate.endpoint import Endpoint
from selfreward_jax.evaluate.head_to_head import sign
from selfreward_jax.method.judge_parsing import parse_preference
from selfreward_jax.method.pairwise import Matchup, both_orders, make_matchups, resolve_orders, verdicts_by_prompt
from selfreward_jax.runs.run import Run
from selfreward_jax.sampling.engine import Completion, Engine, Request, SamplingParams
from selfreward_jax.stages.common import StageError, pairwise_template
from selfreward_jax.stages.self_reward import judge, run_resumable
from selfreward_jax.telemetry.progress import log_line

Row = dict[str, Any]


def compare(
    run: Run, judging: str, ours: Sequence[Row], theirs: Sequence[Row], owner: str, stage: str
) -> list[list[int]]:
    """Verdicts of the model `judging` on answers to the same prompts, for each prompt and sample: 1 ours, 0 tie, -1
    theirs. How it judges, pairwise.method says. What it wrote goes to OWNER/STAGE.jsonl.

    Args:
      run: the run.
      judging: a finished model of the run, such as "m1".
      ours, theirs: rows {id, prompt, responses: [{text}]}.
      owner, stage: the file.
    """
    played = make_matchups(ours, theirs)
    by = _by_scores if run.cfg.pairwise.method == "scores" else _side_by_side
    return verdicts_by_prompt(played, by(run, judging, played, owner, stage))


def compare_by_endpoint(
    run: Run, endpoint: Endpoint, ours: Sequence[Row], theirs: Sequence[Row], label: str
) -> list[list[int]]:
    """The same verdicts by an endpoint, in both orders.

    Raises:
      EndpointError: it cannot be used or asked further.
    """
    template, played = pairwise_template(run), make_matchups(ours, theirs)
    asked = [prompt for g in played for prompt in both_orders(template, g)]
    said = endpoint.ask(asked, run.cfg.endpoint.max_tokens)
    read = [parse_preference(text) if text else None for text in said]
    _say_unread(label, read, f"endpoint.max_tokens is {run.cfg.endpoint.max_tokens}")
    return verdicts_by_prompt(played, [resolve_orders(*orders) for orders in zip(read[::2], read[1::2], strict=True)])


def _say_unread(label: str, read: Sequence[str | None], limit: str) -> None:
    if unread := sum(r is None for r in read):
        log_line(f"{label}: {unread} of {len(read)} verdicts could not be read and count as ties ({limit})")


def _by_scores(run: Run, judging: str, played: Sequence[Matchup], owner: str, stage: str) -> list[int]:
    """Each answer judged alone; the higher score wins. An answer that has no score neither wins nor loses."""
    answers = [
        {"id": f"{g.id}/{side}", "prompt": g.prompt, "response": text}
        for g in played
        for side, text in (("ours", g.ours), ("theirs", g.theirs))
    ]
    judge(run, judging, answers, owner, stage)
    score = {row["id"]: row["score"] for row in run.jsonl(owner, stage).rows()}
    sides = [(score.get(f"{g.id}/ours"), score.get(f"{g.id}/theirs")) for g in played]
    return [0 if a is None or b is None else sign(a - b) for a, b in sides]


def _side_by_side(run: Run, judging: str, played: Sequence[Matchup], owner: str, stage: str) -> list[int]:
    """Both answers shown at once, in both orders."""
    out = run.jsonl(owner, stage)
    if not run.is_complete(owner, stage, judging):
        settings = run.cfg.pairwise
        engine, template = run.engine(judging), pairwise_template(run)
        fit = [g for g in played if all(engine.fits(p, settings.max_new_tokens) for p in both_orders(template, g))]
        if played and not fit:
            raise StageError(
                f"{owner} {stage}: no two answers fit side by side into {engine.max_length - settings.max_new_tokens} tokens: "
                "take pairwise.method=scores, or lower pairwise.max_new_tokens"
            )
        if len(fit) < len(played):
            log_line(f"{owner} {stage}: {len(played) - len(fit)} of {len(played)} games are too long and count as ties")
        stream = partial(_verdicts, engine, fit, template, settings.max_new_tokens)
        run_resumable(run, owner, stage, [g.id for g in fit], stream, judging, left_out=len(played) - len(fit))
    rows = out.rows()
    read = [side for row in rows for side in row["read"]]
    _say_unread(f"{owner} {stage}", read, f"pairwise.max_new_tokens is {run.cfg.pairwise.max_new_tokens}")
    verdict = {row["id"]: row["verdict"] for row in rows}
    return [verdict.get(g.id, 0) for g in played]


def _verdicts(
    engine: Engine, played: Sequence[Matchup], template: str, max_new: int, key: Any, done: Iterable[str]
) -> Iterator[list[Row]]:
    """Rows {id, verdict, read, texts, tokens} in batches; `texts` and what was `read` of them with our answer first and
    second. The likeliest words are taken: a verdict is no place for chance."""
    asked = [Request(f"{g.id}/{i}", text) for g in played for i, text in enumerate(both_orders(template, g))]
    answered = {f"{i}/{order}" for i in done for order in (0, 1)}
    said: dict[str, Completion] = {}
    for batch in engine.stream(asked, SamplingParams(1, 0.0, 1.0, max_new), key, answered):
        said |= {c.id: c for c in batch}
        whole = dict.fromkeys(c.id.rpartition("/")[0] for c in batch)
        rows = [(i, said[f"{i}/0"], said[f"{i}/1"]) for i in whole if {f"{i}/0", f"{i}/1"} <= said.keys()]
        yield [_verdict(*row) for row in rows]


def _verdict(name: str, first: Completion, second: Completion) -> Row:
    read = [parse_preference(c.text) if c.finished else None for c in (first, second)]
    said = {"read": read, "texts": [first.text, second.text], "tokens": len(first.ids) + len(second.ids)}
    return {"id": name, "verdict": resolve_orders(*read), **said}
