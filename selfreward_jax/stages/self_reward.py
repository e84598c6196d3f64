"""A round's rows: new prompts, answers, judgments, pairs."""

from collections import Counter
from functools import partial
from itertools import count, takewhile
from statistics import fmean
from typing import Any

from selfreward_jax import storage
from selfreward_jax.llm import hub
from selfreward_jax.method import judge as judging
from selfreward_jax.method import prompt_generation, round_checks
from selfreward_jax.method.pairs import build_pairs, join_scores
from selfreward_jax.method.responses import finished_responses, generate_responses
from selfreward_jax.parallel import preemption
from selfreward_jax.runs.loading import load_model
from selfreward_jax.runs.run import Run
from selfreward_jax.sampling.engine import Engine, SamplingParams
from selfreward_jax.stages.common import StageError, eft_source_set, few_shot_pool, judge_template, prompt_template
from selfreward_jax.telemetry.progress import Progress, log_line

Row = dict[str, Any]


def sampling_params(settings: Any) -> SamplingParams:
    """How a stage draws."""
    return SamplingParams(settings.get("num_samples", 1), settings.temperature, settings.top_p, settings.max_new_tokens)


def prompts(run: Run, t: int) -> None:
    """m_t/prompts.jsonl: new prompts, by m_(t-1) if prompts.writer names nobody else."""
    out, by = run.jsonl(f"m{t}", "prompts"), "" if run.cfg.prompts.writer else f"m{t - 1}"
    if run.is_complete(f"m{t}", "prompts", by):
        return
    settings, numbers = run.cfg.prompts, count()
    begun = list(takewhile(lambda row: row["id"] == f"m{t}/{next(numbers)}", out.load_partial()))
    # Only whole waves count: which prompts are new depends on all before them.
    begun = begun[: len(begun) // settings.batch_size * settings.batch_size]
    out.rewrite_partial(begun)
    known = [row["prompt"] for name in ("ift", eft_source_set(run)) for row in run.jsonl("seed", name).rows()]
    earlier = [r["prompt"] for i in range(2, t) for r in run.jsonl(f"m{i}", "prompts").rows()]
    accepted = sum(row["fault"] is None for row in begun)
    writer, template = _writer(run, t), prompt_template(run)
    shown = [
        p for p in few_shot_pool(run) if writer.fits(prompt_generation.few_shot(template, [p]), settings.max_new_tokens)
    ]
    if len(shown) < settings.num_seed_examples + settings.num_generated_examples:
        raise StageError(
            f"m{t} prompts: only {len(shown)} seed prompts fit beside prompts.max_new_tokens {settings.max_new_tokens} into the "
            "writer's length: in a new --workdir lower prompts.max_new_tokens or raise model.max_length"
        )
    progress = Progress(f"m{t} prompts", settings.count, accepted)

    def keep(wave: list[Row]) -> None:
        out.append(wave)
        progress.add(sum(r["fault"] is None for r in wave), sum(r["tokens"] for r in wave))
        run.note_time()
        preemption.raise_if_stopped()

    rows = prompt_generation.generate_prompts(
        writer,
        settings,
        template,
        sampling_params(settings),
        run.stage_key(f"m{t}", "prompts"),
        seed_prompts=shown,
        generated_prompts=earlier,
        forbidden=[*known, *earlier, *held_out_prompts(run)],
        name=f"m{t}",
        seed=run.cfg.seed,
        partial=begun,
        on_batch=keep,
    )
    faults = dict(Counter(row["fault"] for row in rows if row["fault"]))
    good = [{"id": r["id"], "prompt": r["prompt"]} for r in rows if r["fault"] is None]
    if not good:
        raise StageError(
            f"m{t} prompts: none of {len(rows)} attempts passed the filters ({faults}); the model does not write "
            "prompts yet: in a new --workdir train M1 longer, or loosen prompts.max_rouge and prompts.*_words"
        )
    tokens = sum(row["tokens"] for row in rows)
    facts = {"weights": run.weights_fingerprint(by)} if by else {}
    out.finish(good, attempts=len(rows), faults=faults, tokens=tokens, **facts)
    progress.close(f"of {len(rows)} attempts, turned down: {faults}")
    run.flush_usage()


def held_out_prompts(run: Run) -> list[str]:
    """The prompts that nothing may be trained on."""
    splits = ("validation", "heldout", "ranked_validation", "ranked_heldout")
    return [r["prompt"] for split in splits for r in run.jsonl("seed", split).rows()]


def _writer(run: Run, t: int) -> Engine | prompt_generation.ToyPromptSource:
    """Who writes the prompts of round t: m_(t-1), or who prompts.writer names, the same in every round."""
    path = run.cfg.prompts.writer
    if not path:
        return run.engine(f"m{t - 1}")
    if path == "world":
        return prompt_generation.ToyPromptSource(run.cfg.seed)
    run.drop_engine()
    name = storage.read_json(run.workdir / "prompts_writer.json")["model"]
    found = load_model(path, "" if path.startswith(hub.HUB_PREFIX) else name, mesh_from=run)
    return found.engine(run.cfg.sampling.max_concurrent, run.cfg.model.max_length)


def run_resumable(run: Run, owner: str, stage: str, ids: list[str], stream: Any, by: str, **facts: Any) -> list[Row]:
    """OWNER/STAGE.jsonl: the rows of `stream(key, done)`, each batch kept as it comes; in the end in the order of
    `ids`, and with the weights of model `by`, if it has a name, in its manifest. Returns them."""
    out, label = run.jsonl(owner, stage), f"{owner} {stage}"
    begun = {row["id"]: row for row in out.load_partial()}
    progress = Progress(label, len(ids), len(begun))
    for batch in stream(run.stage_key(owner, stage), begun.keys()):
        new = [row for row in batch if row["id"] not in begun]
        out.append(new)
        begun |= {row["id"]: row for row in new}
        scores = [row["score"] for row in new if row.get("score") is not None]
        note = f"score {fmean(scores):.2f}" if scores else ""
        progress.add(len(new), sum(row["tokens"] for row in new), note)
        run.note_time()
    if len(begun) < len(ids):
        preemption.raise_if_stopped()
    rows = [begun[i] for i in ids]
    facts |= {"weights": run.weights_fingerprint(by)} if by else {}
    out.finish(rows, tokens=sum(row["tokens"] for row in rows), **facts)
    progress.close()
    run.flush_usage()
    return rows


def sample_responses(run: Run, model: str, asked: list[Row], settings: Any, owner: str, stage: str) -> None:
    """OWNER/STAGE.jsonl: answers of `model` to the prompts `asked`."""
    if not run.is_complete(owner, stage, model):
        sample_with_engine(run, run.engine(model), asked, settings, owner, stage, model)


def sample_with_engine(
    run: Run, engine: Engine, asked: list[Row], settings: Any, owner: str, stage: str, model: str = ""
) -> None:
    """The same with an engine of any parameters, those of `model` if it has a name."""
    if run.is_complete(owner, stage, model):
        return
    kept = _short_enough(engine, asked, settings.max_new_tokens, f"{owner} {stage}")
    stream = partial(generate_responses, engine, kept, sampling_params(settings))
    run_resumable(run, owner, stage, [row["id"] for row in kept], stream, model, left_out=len(asked) - len(kept))


def sample_best_of_n(run: Run, model: str, asked: list[Row], settings: Any, owner: str, stage: str) -> None:
    """OWNER/STAGE.jsonl: of `settings.best_of` answers drawn for each that is wanted, the one that `model` itself
    scores highest; of equals the first. With best_of 1 the answers as they are drawn."""
    out, wanted = run.jsonl(owner, stage), settings.num_samples
    if settings.best_of == 1 or out.manifest is not None:
        sample_responses(run, model, asked, settings, owner, stage)
        return
    more = settings.copy_and_resolve_references()
    more.num_samples = wanted * settings.best_of
    sample_responses(run, model, asked, more, owner, f"{stage}_drawn")
    drawn = run.jsonl(owner, f"{stage}_drawn").rows()
    judge(run, model, finished_responses(drawn), owner, f"{stage}_judged")
    score = {row["id"]: row["score"] for row in run.jsonl(owner, f"{stage}_judged").rows()}
    rows = []
    for row in drawn:
        order = sorted(range(more.num_samples), key=lambda i: -_or_lowest(score.get(f"{row['id']}/{i}")))
        groups = ([i for i in order if i // settings.best_of == g] for g in range(wanted))
        rows.append({**row, "responses": [row["responses"][of[0]] for of in groups]})
    out.finish(rows, tokens=0, best_of=settings.best_of, weights=run.weights_fingerprint(model))


def _or_lowest(score: float | None) -> float:
    return -1.0 if score is None else score


def _short_enough(engine: Engine, asked: list[Row], max_new: int, label: str) -> list[Row]:
    room = engine.max_length - max_new
    kept = [row for row in asked if engine.fits(row["prompt"], max_new)]
    if len(kept) < len(asked):
        log_line(f"{label}: {len(asked) - len(kept)} of {len(asked)} prompts are longer than {room} tokens, left out")
    if asked and not kept:
        raise StageError(f"{label}: no prompt fits into {room} tokens: in a new --workdir raise model.max_length")
    return kept


def judge(run: Run, model: str, judged: list[Row], owner: str, stage: str, samples: int = 0) -> dict[str, Any] | None:
    """OWNER/STAGE.jsonl: judgments by `model` of the answers `judged`, rows {id, prompt, response}, with `samples`
    votes each if not judge.num_samples. Returns the judge's health, None if the file was whole."""
    if run.is_complete(owner, stage, model):
        return None
    if not judged:
        raise StageError(
            f"{owner} {stage}: there is no finished answer to judge: in a new --workdir raise max_new of the stage "
            "that answers, or train the model longer"
        )
    settings, template, engine = run.cfg.judge, judge_template(run), run.engine(model)
    as_prompts = [{**a, "prompt": judging.judge_prompt(template, a["prompt"], a["response"])} for a in judged]
    fit = {row["id"] for row in _short_enough(engine, as_prompts, settings.max_new_tokens, f"{owner} {stage}")}
    kept = [a for a in judged if a["id"] in fit]
    how = sampling_params(settings)._replace(num_samples=samples or settings.num_samples)
    stream = partial(judging.judge, engine, kept, template, how, settings)
    rows = run_resumable(run, owner, stage, [a["id"] for a in kept], stream, model, left_out=len(judged) - len(kept))
    health = judging.judge_stats(rows)
    log_line(f"{owner} {stage}: {health}")
    return health


def self_judge(run: Run, t: int) -> None:
    """m_t/judgments.jsonl: m_(t-1) judges its own answers; or dice do, where judge.kind says so. And
    m_t/probes.jsonl: what it makes of answers that say nothing."""
    found = finished_responses(run.jsonl(f"m{t}", "responses").rows())
    out = run.jsonl(f"m{t}", "judgments")
    if run.cfg.judge.kind == "model":
        judge(run, f"m{t - 1}", found, f"m{t}", "judgments")
        if probed := run.jsonl(f"m{t}", "prompts").rows()[: run.cfg.checks.num_probe_prompts]:
            judge(run, f"m{t - 1}", round_checks.probes(probed, run.cfg.judge.output_format), f"m{t}", "probes")
    elif out.manifest is None:
        out.finish(judging.random_judge(found, run.cfg.judge.num_samples, f"{run.cfg.seed} {t}"), tokens=0)


def check_judge(run: Run, model: str) -> None:
    """Stops a round before its first stage if `model` could not judge the fixed set of answers."""
    _readable(run, f"{model} eval_judgments", run.jsonl(model, "eval_judgments").rows())


def _readable(run: Run, label: str, judgments: list[Row]) -> dict[str, Any]:
    health, least = judging.judge_stats(judgments), run.cfg.checks.min_parse_rate
    if (health["parse_rate"] or 0.0) < least:
        remedy = "train M1 longer, or give it more judged rows"
        if health["cut_off"] > health["votes"] / 2:
            remedy = f"raise judge.max_new_tokens, {run.cfg.judge.max_new_tokens} tokens now, at which most votes were cut off"
        raise StageError(
            f"{label}: the judge is too weak, {health['parse_rate'] or 0:.0%} of its votes can be read and "
            f"checks.min_parse_rate is {least} ({health}): in a new --workdir {remedy}"
        )
    return health


def pairs(run: Run, t: int) -> None:
    """m_t/pairs.jsonl: best against worst answer of each prompt."""
    out = run.jsonl(f"m{t}", "pairs")
    if out.manifest is not None:
        return
    judgments = run.jsonl(f"m{t}", "judgments").rows()
    found = finished_responses(run.jsonl(f"m{t}", "responses").rows())
    health = _readable(run, f"m{t} judgments", judgments)
    rows, counts = build_pairs(join_scores(found, judgments), run.cfg.pairs.length_control_rho)
    if not rows:
        raise StageError(
            f"m{t} pairs: no prompt has two answers with different scores ({counts}; judge: "
            f"{health}); the judge cannot tell answers apart: in a new --workdir train it longer, give it more "
            "judged rows, or draw more votes (judge.num_samples)"
        )
    out.finish(rows, counts=counts, tokens=0)
    log_line(f"m{t} pairs: {counts}")
