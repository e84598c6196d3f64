"""What several stages start from: templates, and seed rows as prompts and as training texts."""

from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any

from selfreward_jax import storage
from selfreward_jax.data import seed_sets
from selfreward_jax.llm import chat, hub
from selfreward_jax.llm.hf_config import ModelFormatError, read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.method import judge as judging
from selfreward_jax.method import prompt_generation, templates
from selfreward_jax.runs.loading import resolve_model
from selfreward_jax.runs.run import Run

Row = dict[str, Any]


class StageError(RuntimeError):
    """A stage cannot go on; the message says what is wrong and what to do. Nothing made so far is lost."""


def check_inputs(run: Run) -> None:
    """Reads the templates and the description of the model before any work: what cannot be used shows now, not when its
    stage comes."""
    judge_template(run)
    prompt_template(run)
    pairwise_template(run)
    if run.cfg.prompts.writer not in ("", "world"):
        _pin_writer(run)
    if run.cfg.model.init and not storage.exists(run.workdir / "m0" / "manifest.json"):
        folder = hub.resolve_model_dir(run.cfg.model.init)
        found, raw = read_config(folder)
        run.check_layouts(found)
        read_chat(folder)
        if (most := raw.get("max_position_embeddings", run.cfg.model.max_length)) < run.cfg.model.max_length:
            raise ModelFormatError(
                f"model.max_length is {run.cfg.model.max_length}, but {folder} was made for {most} tokens: lower "
                "model.max_length"
            )


def _pin_writer(run: Run) -> None:
    """Notes which model writes the prompts, the first time, and holds every later round to it."""
    path, pinned = run.cfg.prompts.writer, run.workdir / "prompts_writer.json"
    known = storage.read_json(pinned) or {}
    name, digest = resolve_model(path, known.get("model", ""))
    if known and known["digest"] != digest:
        raise StageError(
            f"prompts.writer {path} is not the model that it was ({known['model']}, {known['digest']}; now {digest}): "
            "put that model back, or begin in a new --workdir"
        )
    storage.write_json(pinned, {"writer": path, "model": name, "digest": digest})


def judge_template(run: Run) -> str:
    """The judge's template."""
    return templates.load(run.cfg.judge.template, {"prompt", "response"})


def pairwise_template(run: Run) -> str:
    """The template that shows a judge two answers."""
    return templates.load(run.cfg.pairwise.template, {"prompt", "first", "second"})


def prompt_template(run: Run) -> str:
    """The template that asks for a new prompt."""
    return templates.load(run.cfg.prompts.template, {"examples"})


def eft_source_set(run: Run) -> str:
    """The set that the seed stage makes for EFT: judged rows, or answers that the SFT baseline is to judge."""
    return "eft_answers" if run.cfg.eft.source == "baseline" else "eft"


def few_shot_pool(run: Run) -> list[str]:
    """Seed prompts fit to be shown as examples: those in the form that a new prompt must have."""
    return filter_few_shot(run, run.jsonl("seed", "ift").rows())


def filter_few_shot(run: Run, rows: Iterable[Row]) -> list[str]:
    """Those prompts of instruction rows."""
    settings = run.cfg.prompts
    prompts = (row["prompt"] for row in rows)
    return [p for p in prompts if not prompt_generation.rejection_reason(p, settings.min_words, settings.max_words)]


def seed_examples(run: Run, names: Iterable[str]) -> dict[str, list[chat.Example]]:
    """Training texts of the seed sets: ift, eft (the judge's task), prompts (the prompt writer's task)."""
    ift = run.jsonl("seed", "ift").rows()
    rows: dict[str, list[Row]] = {}
    for name in names:
        if name == "ift":
            rows[name] = ift
        elif name == "eft":
            template = judge_template(run)
            rows[name] = seed_sets.judge_rows(run.jsonl("seed", "eft").rows(), partial(judging.judge_prompt, template))
        else:
            settings = run.cfg.prompts
            rows[name] = seed_sets.prompt_rows(
                few_shot_pool(run),
                run.cfg.data.prompt_rows,
                settings.num_seed_examples + settings.num_generated_examples,
                prompt_template(run),
                Random(f"{run.cfg.seed} prompt rows"),
            )
    return {name: [run.chat.example(r["prompt"], r["response"]) for r in of] for name, of in rows.items()}
