"""Two models' answers compared by a model of the run."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from etils import epath

from selfreward_jax.evaluate.endpoint import Endpoint
from selfreward_jax.evaluate.head_to_head import sign
from selfreward_jax.generate.engine import Engine, Request, Sampling
from selfreward_jax.method.compare import Game, both_orders, by_prompt, games, settle
from selfreward_jax.method.verdicts import parse_preference
from selfreward_jax.run import Run
from selfreward_jax.stages.inputs import pairwise_template
from selfreward_jax.stages.rounds import generated, judge

Row = dict[str, Any]


def compare(
    run: Run, judging: str, ours: Sequence[Row], theirs: Sequence[Row], owner: str, stage: str
) -> list[list[int]]:
    """Verdicts of the model `judging` on answers to the same prompts, for each prompt and sample: 1 ours, 0 tie, -1
    theirs. How it judges, compare.form says. What it wrote goes to OWNER/STAGE.jsonl.

    Args:
      run: the run.
      judging: a finished model of the run, such as "m1".
      ours, theirs: rows {id, prompt, responses: [{text}]}.
      owner, stage: the file.
    """
    played = games(ours, theirs)
    by = _by_scores if run.cfg.compare.form == "scores" else _side_by_side
    return by_prompt(played, by(run, judging, played, owner, stage))


def compare_by_endpoint(run: Run, ours: Sequence[Row], theirs: Sequence[Row], cache: epath.Path) -> list[list[int]]:
    """The same verdicts by the endpoint of config.endpoint, in both orders; what it said stays in `cache`.

    Raises:
      EndpointError: it cannot be used or asked further.
    """
    template, played = pairwise_template(run), games(ours, theirs)
    asked = [prompt for g in played for prompt in both_orders(template, g)]
    said = Endpoint(run.cfg.endpoint, cache).ask(asked, run.cfg.compare.max_new)
    read = [parse_preference(text) if text else None for text in said]
    return by_prompt(played, [settle(*orders) for orders in zip(read[::2], read[1::2], strict=True)])


def _by_scores(run: Run, judging: str, played: Sequence[Game], owner: str, stage: str) -> list[int]:
    """Each answer judged alone; the higher score wins. An answer that has no score neither wins nor loses."""
    answers = [
        {"id": f"{g.id}/{side}", "prompt": g.prompt, "response": text}
        for g in played
        for side, text in (("ours", g.ours), ("theirs", g.theirs))
    ]
    judge(run, judging, answers, owner, stage)
    score = {row["id"]: row["score"] for row in run.rows(owner, stage).rows()}
    sides = [(score.get(f"{g.id}/ours"), score.get(f"{g.id}/theirs")) for g in played]
    return [0 if a is None or b is None else sign(a - b) for a, b in sides]


def _side_by_side(run: Run, judging: str, played: Sequence[Game], owner: str, stage: str) -> list[int]:
    """Both answers shown at once, in both orders."""
    out = run.rows(owner, stage)
    if out.manifest is None:
        settings = run.cfg.compare
        engine, template = run.engine(judging), pairwise_template(run)
        fit = [g for g in played if all(engine.fits(p, settings.max_new) for p in both_orders(template, g))]
        stream = partial(_verdicts, engine, fit, template, settings.max_new)
        generated(run, owner, stage, [g.id for g in fit], stream, left_out=len(played) - len(fit))
    verdict = {row["id"]: row["verdict"] for row in out.rows()}
    return [verdict.get(g.id, 0) for g in played]


def _verdicts(
    engine: Engine, played: Sequence[Game], template: str, max_new: int, key: Any, done: Iterable[str]
) -> Iterator[list[Row]]:
    """Rows {id, verdict, texts, tokens} in batches; `texts` is what was said with our answer first and second. The
    likeliest words are taken: a verdict is no place for chance."""
    how, done = Sampling(1, 0.0, 1.0, max_new), set(done)
    step = max(1, engine.rows // 2)
    for start in range(0, len(played), step):
        batch = played[start : start + step]
        if all(g.id in done for g in batch):
            continue
        asked = [Request(f"{g.id}/{i}", text) for g in batch for i, text in enumerate(both_orders(template, g))]
        said = engine.generate(asked, how, key)
        rows = []
        for game, first, second in zip(batch, said[::2], said[1::2], strict=True):
            read = [parse_preference(c.text) if c.finished else None for c in (first, second)]
            tokens = len(first.ids) + len(second.ids)
            rows.append({"id": game.id, "verdict": settle(*read), "texts": [first.text, second.text], "tokens": tokens})
        yield rows
