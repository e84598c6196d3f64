"""The stages. Each makes one file or one model of the working directory from earlier ones: it does nothing if
what it makes is whole, and goes on from what is there if it is not."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax import storage
from selfreward_jax.generate.engine import Sampling
from selfreward_jax.llm import chat
from selfreward_jax.llm.llama import Llama, parameter_count
from selfreward_jax.llm.tokenizer import BOS, EOS, PAD, train_sentencepiece
from selfreward_jax.method import judge as judging
from selfreward_jax.method import new_prompts, seeds, templates
from selfreward_jax.method.candidates import answers as finished_answers
from selfreward_jax.method.candidates import candidates
from selfreward_jax.method.pairs import build_pairs, gather
from selfreward_jax.report.progress import Progress, say
from selfreward_jax.run import Run
from selfreward_jax.train import checkpoints, dpo, sft, trainer

Row = dict[str, Any]


class StageError(RuntimeError):
    """A stage cannot go on; the message says what is wrong and what to do. Nothing made so far is lost."""


def sampling(settings: Any) -> Sampling:
    """How a stage draws."""
    return Sampling(settings.get("samples", 1), settings.temperature, settings.top_p, settings.max_new)


# --- seeds and tokenizer ---------------------------------------------------------------------------------------


def check_templates(run: Run) -> None:
    """Reads the templates before any work: one that cannot be used shows now, not when its stage comes."""
    judge_template(run)
    prompt_template(run)


def seed(run: Run) -> None:
    """seed/*.jsonl: instruction rows, judged rows, held-out prompts and ranked answers, plain documents."""
    last = run.rows("seed", "documents")
    if last.manifest is not None:
        return
    progress = Progress("seed", 0)
    make = seeds.from_files if run.cfg.data.ift else seeds.from_world
    sets, report = make(run.cfg.data, run.cfg.seed)
    for name, rows in sets.items():
        if name != "documents":
            _write_seed(run, name, rows)
    shots = run.cfg.prompts.seed_shots + run.cfg.prompts.own_shots
    if (shown := len(shown_prompts(run))) <= shots:
        raise seeds.SeedError(
            f"{shown} instruction rows have prompts of {run.cfg.prompts.least_words} to {run.cfg.prompts.most_words} "
            f"words on one line, and each few-shot prompt shows {shots} others: give more rows, or lower "
            "prompts.seed_shots"
        )
    if report:
        storage.write_json(run.dir / "seed" / "report.json", report)
        say(f"seed files: {report}")
    _write_seed(run, "documents", sets["documents"], seconds=progress.seconds)
    progress.add(sum(map(len, sets.values())))
    progress.close(", ".join(f"{len(rows)} {name}" for name, rows in sets.items()))


def _write_seed(run: Run, name: str, rows: list[Row], **facts: Any) -> None:
    run.rows("seed", name).finish([{"id": f"{name}/{i}", **row} for i, row in enumerate(rows)], **facts)


def tokenizer(run: Run) -> None:
    """tokenizer/: a tokenizer trained on all training texts of the seeds, and our chat template."""
    path = run.dir / "tokenizer" / "tokenizer.model"
    if path.exists():
        return
    rows = [row for name in ("ift", "eft", "documents") for row in run.rows("seed", name).rows()]
    texts = [row[f] for row in rows for f in ("prompt", "response", "judgement", "text") if f in row]
    texts += [judge_template(run), prompt_template(run)]
    settings = run.cfg.tokenizer
    try:
        model = train_sentencepiece(texts, settings.vocab_size, settings.byte_fallback)
    except RuntimeError as error:  # SentencePiece says in its own words what is too small or too large
        raise StageError(f"tokenizer.vocab_size {settings.vocab_size} does not suit the seeds: {error}") from None
    storage.write_json(path.parent / "tokenizer_config.json", {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD})
    storage.write_atomic(path.parent / "chat_template.jinja", chat.our_template("control").encode())
    storage.write_atomic(path, model)  # last: it says that the folder is whole
    say(f"tokenizer: {run.chat.tokenizer.vocab_size} pieces")


# --- training --------------------------------------------------------------------------------------------------


def base(run: Run) -> None:
    """m0: a base model trained on plain documents, from random weights."""
    if not _is_trained(run, "m0"):
        texts = [row["text"] for row in run.rows("seed", "documents").rows()]
        width = run.cfg.base.width
        examples = [piece for text in texts for piece in chat.pieces(run.chat.document(text), width)]
        model = Llama(run.llama())
        say(f"model: {parameter_count(run.llama()):,} parameters, {run.mesh.size} device(s)")
        # Jitted with out_shardings: each device makes its own part.
        init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), int))["params"], out_shardings=run.shardings)
        start = init(run.key("m0", "init"))
        _train_packed(run, "m0", "base", examples, start)


def supervised(run: Run) -> None:
    """m1: the base model trained on IFT, EFT and few-shot prompt rows."""
    if not _is_trained(run, "m1"):
        examples = [e for rows in seed_examples(run, ("ift", "eft", "prompts")).values() for e in rows]
        _train_packed(run, "m1", "sft", examples, run.params("m0"))


def seed_examples(run: Run, names: Iterable[str]) -> dict[str, list[chat.Example]]:
    """Training texts of the seed sets: ift, eft (the judge's task), prompts (the prompt writer's task)."""
    ift = run.rows("seed", "ift").rows()
    rows: dict[str, list[Row]] = {}
    for name in names:
        if name == "ift":
            rows[name] = ift
        elif name == "eft":
            template = judge_template(run)
            rows[name] = seeds.judge_rows(run.rows("seed", "eft").rows(), partial(judging.judge_prompt, template))
        else:
            settings = run.cfg.prompts
            rows[name] = seeds.prompt_rows(
                shown_prompts(run),
                run.cfg.data.prompt_rows,
                settings.seed_shots + settings.own_shots,
                prompt_template(run),
                Random(f"{run.cfg.seed} prompt rows"),
            )
    return {name: [run.chat.example(r["prompt"], r["response"]) for r in of] for name, of in rows.items()}


def shown_prompts(run: Run) -> list[str]:
    """Seed prompts fit to be shown as examples: those in the form that a new prompt must have."""
    settings = run.cfg.prompts
    prompts = [row["prompt"] for row in run.rows("seed", "ift").rows()]
    return [p for p in prompts if not new_prompts.form_fault(p, settings.least_words, settings.most_words)]


def judge_template(run: Run) -> str:
    """The judge's template."""
    return templates.load(run.cfg.judge.template, {"prompt", "response"})


def prompt_template(run: Run) -> str:
    """The template that asks for a new prompt."""
    return templates.load(run.cfg.prompts.template, {"examples"})


def fitting(examples: list[chat.Example], width: int, what: str) -> list[chat.Example]:
    """The texts of at most `width` tokens; says how many are left out."""
    kept = [e for e in examples if len(e.ids) <= width]
    if len(kept) < len(examples):
        say(f"{what}: {len(examples) - len(kept)} of {len(examples)} texts are longer than {width} tokens, left out")
    if not kept:
        raise StageError(f"{what}: no text fits into {width} tokens; raise the width")
    return kept


def _is_trained(run: Run, model: str) -> bool:
    trained = (run.dir / model / "manifest.json").exists()
    if trained and (steps := run.dir / model / "steps").exists():
        steps.rmtree()  # a kill came between the manifest and this
    return trained


def _train_packed(run: Run, name: str, stage: str, examples: list[chat.Example], start: Any) -> None:
    settings = run.cfg[stage]
    examples = fitting(examples, settings.width, f"{name} {stage}")
    model = Llama(run.llama(settings.dropout))
    steps, batch_at = sft.batches_of(examples, settings, run.seed(name, stage), run.mesh)
    tokens = settings.batch * settings.width
    _train(run, name, stage, sft.loss_fn(model), steps, batch_at, start, tokens, rows=len(examples))


def preferences(run: Run, t: int) -> None:
    """m_t: DPO on the pairs of round t, started from m_(t-1), which is the reference."""
    name, previous = f"m{t}", f"m{t - 1}"
    if _is_trained(run, name):
        return
    settings = run.cfg.dpo
    pairs = [
        dpo.Pair(run.chat.example(r["prompt"], r["chosen"]), run.chat.example(r["prompt"], r["rejected"]))
        for r in run.rows(name, "pairs").rows()
    ]
    start = run.params(previous)
    reference = dpo.reference_logprobs(Llama(run.llama()), start, pairs, settings.batch, run.mesh)
    replay = [e for rows in seed_examples(run, settings.replay_sets).values() for e in rows]
    replay = fitting(replay, settings.replay_width, f"{name} replay") if settings.replay and replay else []
    steps, batch_at = dpo.batches_of(pairs, reference, replay, settings, run.seed(name, "dpo"), run.mesh)
    model = Llama(run.llama(settings.dropout))
    tokens = 2 * settings.batch * dpo.pair_width(pairs) + bool(replay) * settings.replay_batch * settings.replay_width
    _train(run, name, "dpo", dpo.loss_fn(model, settings), steps, batch_at, start, tokens, rows=len(pairs))


def _train(
    run: Run,
    name: str,
    stage: str,
    loss_fn: trainer.LossFn,
    steps: int,
    batch_at: Any,
    start: Any,
    tokens_a_step: int,
    rows: int,
) -> None:
    """Trains from `start` (or from the latest saved step) and leaves NAME/checkpoint and NAME/manifest.json."""
    settings = run.cfg[stage]
    rate = trainer.schedule(steps, settings.lr, settings.lr_end, settings.warmup)
    optimizer = trainer.make_optimizer(rate, run.cfg.optimizer)
    shardings = trainer.state_shardings(optimizer, run.abstract_params(), run.shardings, run.mesh)

    def fresh(params: Any) -> trainer.State:
        # A copy: the update donates its state, and `start` may still be held as the model it is.
        return trainer.State(jnp.int32(0), jax.tree.map(jnp.copy, params), optimizer.init(params))

    path = run.dir / name / "steps"
    if (step := checkpoints.latest_step(path)) is not None:
        state = checkpoints.restore(path / str(step), jax.eval_shape(fresh, start), shardings)
        say(f"{name} {stage}: going on from step {step}")
    else:
        state = jax.jit(fresh, out_shardings=shardings)(start)
    del start
    run.release()
    progress = Progress(f"{name} {stage}", steps, int(state.step), unit="steps")

    def report(step: int, metrics: dict[str, float]) -> None:
        run.log(model=name, stage=stage, step=step, **metrics)
        progress.add(1, tokens_a_step, note=f"loss {metrics['loss']:.3f}")

    state = trainer.fit(
        state,
        trainer.make_update(loss_fn, optimizer, shardings, run.mesh),
        batch_at,
        steps,
        run.key(name, stage),
        save_every=run.cfg.save_every,
        path=path,
        report=report,
    )
    checkpoints.save(run.dir / name / "checkpoint", state.params)
    facts = {"stage": stage, "rows": rows, "steps": steps, "tokens": steps * tokens_a_step}
    storage.write_json(run.dir / name / "manifest.json", {**facts, "seconds": progress.seconds})
    if path.exists():
        path.rmtree()
    progress.close()
    run.spent()


# --- self-instruction, answers, judgements, pairs --------------------------------------------------------------


def prompts(run: Run, t: int) -> None:
    """m_t/prompts.jsonl: new prompts by m_(t-1)."""
    out = run.rows(f"m{t}", "prompts")
    if out.manifest is not None:
        return
    settings = run.cfg.prompts
    begun = out.begun()
    # Only whole waves count: which prompts are new depends on all before them.
    begun = begun[: len(begun) // settings.wave * settings.wave]
    out.restart_from(begun)
    known = [row["prompt"] for name in ("ift", "eft") for row in run.rows("seed", name).rows()]
    earlier = [r["prompt"] for i in range(2, t) for r in run.rows(f"m{i}", "prompts").rows()]
    splits = ("validation", "heldout", "ranked_validation", "ranked_heldout")
    kept_out = [r["prompt"] for split in splits for r in run.rows("seed", split).rows()]
    accepted = sum(row["fault"] is None for row in begun)
    progress = Progress(f"m{t} prompts", settings.count, accepted)

    def keep(wave: list[Row]) -> None:
        out.append(wave)
        progress.add(sum(r["fault"] is None for r in wave), sum(r["tokens"] for r in wave))

    rows = new_prompts.write_prompts(
        run.engine(f"m{t - 1}"),
        settings,
        prompt_template(run),
        sampling(settings),
        run.key(f"m{t}", "prompts"),
        seeds=shown_prompts(run),
        own=earlier,
        forbidden=[*known, *earlier, *kept_out],
        name=f"m{t}",
        seed=run.cfg.seed,
        begun=begun,
        keep=keep,
    )
    faults = dict(Counter(row["fault"] for row in rows if row["fault"]))
    good = [{"id": r["id"], "prompt": r["prompt"]} for r in rows if r["fault"] is None]
    if not good:
        raise StageError(
            f"m{t} prompts: none of {len(rows)} attempts passed the filters ({faults}); the model does not write "
            "prompts yet: in a new --workdir train M1 longer, or loosen prompts.most_rouge and prompts.*_words"
        )
    tokens = sum(row["tokens"] for row in rows)
    out.finish(good, attempts=len(rows), faults=faults, tokens=tokens, seconds=progress.seconds)
    progress.close(f"of {len(rows)} attempts, turned down: {faults}")
    run.spent()


def _generated(run: Run, owner: str, stage: str, ids: list[str], stream: Any, **facts: Any) -> list[Row]:
    """OWNER/STAGE.jsonl: the rows of `stream(key, done)`, each batch kept as it comes; in the end in the order of
    `ids`."""
    out, label = run.rows(owner, stage), f"{owner} {stage}"
    begun = {row["id"]: row for row in out.begun()}
    progress = Progress(label, len(ids), len(begun))
    for batch in stream(run.key(owner, stage), begun.keys()):
        new = [row for row in batch if row["id"] not in begun]
        out.append(new)
        begun |= {row["id"]: row for row in new}
        progress.add(len(new), sum(row["tokens"] for row in new))
    rows = [begun[i] for i in ids]
    out.finish(rows, tokens=sum(row["tokens"] for row in rows), seconds=progress.seconds, **facts)
    progress.close()
    run.spent()
    return rows


def answer(run: Run, model: str, asked: list[Row], settings: Any, owner: str, stage: str) -> None:
    """OWNER/STAGE.jsonl: answers of `model` to the prompts `asked`."""
    if run.rows(owner, stage).manifest is not None:
        return
    kept = _short_enough(run, asked, settings.max_new, f"{owner} {stage}")
    stream = partial(candidates, run.engine(model), kept, sampling(settings))
    _generated(run, owner, stage, [row["id"] for row in kept], stream, left_out=len(asked) - len(kept))


def _short_enough(run: Run, asked: list[Row], max_new: int, label: str) -> list[Row]:
    room = run.cfg.model.max_length - max_new
    kept = [row for row in asked if len(run.chat.prompt_ids(row["prompt"])) <= room]
    if len(kept) < len(asked):
        say(f"{label}: {len(asked) - len(kept)} of {len(asked)} prompts are longer than {room} tokens, left out")
    if not kept:
        raise StageError(f"{label}: no prompt fits into {room} tokens: in a new --workdir raise model.max_length")
    return kept


def judge(run: Run, model: str, judged: list[Row], owner: str, stage: str) -> dict[str, Any] | None:
    """OWNER/STAGE.jsonl: judgements by `model` of the answers `judged`, rows {id, prompt, response}. Returns the
    judge's health, None if the file was whole."""
    if run.rows(owner, stage).manifest is not None:
        return None
    settings, template = run.cfg.judge, judge_template(run)
    as_prompts = [{**a, "prompt": judging.judge_prompt(template, a["prompt"], a["response"])} for a in judged]
    fit = {row["id"] for row in _short_enough(run, as_prompts, settings.max_new, f"{owner} {stage}")}
    kept = [a for a in judged if a["id"] in fit]
    ask = partial(judging.judge, run.engine(model), kept, template, sampling(settings))
    stream = partial(ask, least_votes=settings.least_votes)
    rows = _generated(run, owner, stage, [a["id"] for a in kept], stream, left_out=len(judged) - len(kept))
    health = judging.health(rows)
    say(f"{owner} {stage}: {health}")
    return health


def self_judge(run: Run, t: int) -> None:
    """m_t/judgements.jsonl: m_(t-1) judges its own answers."""
    found = finished_answers(run.rows(f"m{t}", "candidates").rows())
    judge(run, f"m{t - 1}", found, f"m{t}", "judgements")


def pairs(run: Run, t: int) -> None:
    """m_t/pairs.jsonl: best against worst answer of each prompt."""
    out = run.rows(f"m{t}", "pairs")
    if out.manifest is not None:
        return
    judgements = run.rows(f"m{t}", "judgements").rows()
    found = finished_answers(run.rows(f"m{t}", "candidates").rows())
    health, least = judging.health(judgements), run.cfg.judge.least_parse_rate
    if (health["parse_rate"] or 0.0) < least:
        raise StageError(
            f"m{t} judgements: the judge is too weak, {health['parse_rate'] or 0:.0%} of its votes can be read and "
            f"judge.least_parse_rate is {least} ({health}): in a new --workdir train M1 longer, or give it more "
            "judged rows"
        )
    rows, counts = build_pairs(gather(found, judgements))
    if not rows:
        raise StageError(
            f"m{t} pairs: no prompt has two answers with different scores ({counts}; judge: "
            f"{health}); the judge cannot tell answers apart: in a new --workdir train it longer, give it more "
            "judged rows, or draw more votes (judge.samples)"
        )
    out.finish(rows, counts=counts, tokens=0, seconds=0.0)
    say(f"m{t} pairs: {counts}")
