"""What several stages read: templates, and the seed sets as training examples."""

from collections.abc import Iterable
from functools import partial
from random import Random

from selfreward_jax import storage
from selfreward_jax.config import ConfigError, InputError
from selfreward_jax.data import seed_sets
from selfreward_jax.llm import chat, hub
from selfreward_jax.llm.hf import SafetensorsFolder
from selfreward_jax.llm.hf_config import ModelFormatError, read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.method import hacks, prompt_generation, templates
from selfreward_jax.method import judge as judging
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.method.rows import InstructionRow, JudgeInput, Row, without_system
from selfreward_jax.runs.loading import check_meshes, resolve_model
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.endpoint_writer import open_endpoint

HELD_OUT_SETS = ("validation", "heldout", "ranked_validation", "ranked_heldout")


class StageError(InputError, RuntimeError):
    """A stage cannot continue; the message says why and what to do. Everything made so far is kept."""


def previous_model(model: str) -> str:
    """The model that a round starts from: "m1" for "m2"."""
    return f"m{int(model[1:]) - 1}"


def check_inputs(run: Run, weights: bool = True) -> None:
    """Reads the templates and the description of the pretrained model before any work, so that a fault shows now.

    Args:
      run: the run.
      weights: the names and shapes of a model of the hub are read too, for which its weights are downloaded.

    Raises:
      TemplateError, ModelFormatError, ConfigError, StageError: one of them cannot be used.
    """
    judge_template(run)
    prompt_template(run)
    pairwise_template(run)
    meta_template(run)
    if run.cfg.prompts.writer not in ("", "world"):
        _pin_writer(run)
    if run.cfg.model.init and not storage.exists(run.workdir / "m0" / "manifest.json"):
        folder = hub.resolve_model_dir(run.cfg.model.init, weights)
        pretrained, raw = read_config(folder)
        if weights or not hub.with_prefix(run.cfg.model.init).startswith(hub.HUB_PREFIX):
            SafetensorsFolder(folder).check(pretrained)
        run.models.check_divisible(pretrained)
        read_chat(folder, run.cfg.chat.thinking == "on")
        limit = raw.get("max_position_embeddings", run.cfg.model.max_length)
        if limit < run.cfg.model.max_length:
            raise ModelFormatError(
                f"model.max_length is {run.cfg.model.max_length}, but {folder} was made for {limit} tokens: lower "
                "model.max_length"
            )


def _pin_writer(run: Run) -> None:
    """Stores which model writes the prompts in the first round. Every later round must find the same one."""
    writer, path = run.cfg.prompts.writer, run.workdir / "prompts_writer.json"
    pinned = storage.read_json(path) or {}
    if writer == "endpoint":
        open_endpoint(run)
        model = digest = run.cfg.endpoint.model
    else:
        model, digest = resolve_model(writer, pinned.get("model", ""))
        try:
            check_meshes(writer, model, run)
        except ConfigError as error:
            raise ConfigError(f"prompts.writer {writer}: {error}") from None
    if pinned and pinned["digest"] != digest:
        raise StageError(
            f"prompts.writer {writer} is not the model of the earlier rounds ({pinned['model']}, {pinned['digest']}; "
            f"now {digest}): restore that model, or start in a new --workdir"
        )
    storage.write_json(path, {"writer": writer, "model": model, "digest": digest})


def judge_template(run: Run) -> str:
    """The judge's template."""
    return templates.load(run.cfg.judge.template, {"prompt", "response"})


def pairwise_template(run: Run) -> str:
    """The template that shows a judge two responses."""
    return templates.load(run.cfg.pairwise.template, {"prompt", "first", "second"})


def meta_template(run: Run) -> str:
    """The template that shows a judge two judgments of a response."""
    return templates.load(run.cfg.meta.template, {"prompt", "response", "first", "second"})


def _slots(row: Row) -> dict[str, str]:
    return {name: row[name] for name in ("prompt", "response", "first", "second") if name in row}


def prompt_template(run: Run) -> str:
    """The few-shot template for a new prompt."""
    return templates.load(run.cfg.prompts.template, {"examples"})


def eft_source_set(run: Run) -> str:
    """The seed set from which EFT comes: judged rows, or ranked answers that the SFT baseline is to judge."""
    return "eft_answers" if run.cfg.eft.source == "baseline" else "eft"


def held_out_prompts(run: Run) -> list[str]:
    """The prompts that no training may see, with and without their system texts."""
    rows = [row for name in HELD_OUT_SETS for row in run.files.jsonl("seed", name).rows()]
    return [*(row["prompt"] for row in rows), *(without_system(row) for row in rows if "system" in row)]


def few_shot_pool(run: Run) -> list[str]:
    """Seed prompts that may be few-shot examples: those in the form that a new prompt must have."""
    return filter_few_shot(run, run.files.jsonl("seed", "ift").rows())


def filter_few_shot(run: Run, rows: Iterable[InstructionRow]) -> list[str]:
    """Those prompts of instruction rows, without system texts."""
    return [p for p in map(without_system, rows) if not prompt_generation.rejection_reason(p, run.cfg.prompts)]


def planted_hacks(run: Run, model: str) -> list[JudgeInput]:
    """The hacks of a round, with the responses that they are made of: checks.num_hack_prompts prompts'."""
    responses = finished_responses(run.files.jsonl(model, "responses").rows())
    scores = {row["id"]: row["score"] for row in run.files.jsonl(model, "judgments").rows()}
    return hacks.planted(responses, scores, run.cfg.checks.num_hack_prompts, run.cfg.judge.output_format)


def seed_examples(run: Run, names: Iterable[str]) -> dict[str, list[chat.Example]]:
    """Training examples of the seed sets: ift; eft, comparisons and meta (the judge's tasks); prompts (the task of
    writing prompts)."""
    rows = {name: _task_rows(run, name) for name in names}
    example = run.models.chat.example
    return {name: [example(r["prompt"], r["response"], r.get("system", "")) for r in of] for name, of in rows.items()}


def _task_rows(run: Run, name: str) -> list[InstructionRow]:
    """A seed set as rows {prompt, response[, system]}."""
    if name == "ift":
        return run.files.jsonl("seed", "ift").rows()
    if name == "eft":
        as_prompt = partial(judging.judge_prompt, judge_template(run))
        return seed_sets.judge_rows(run.files.jsonl("seed", "eft").rows(), as_prompt)
    if name in ("comparisons", "meta"):
        template = pairwise_template(run) if name == "comparisons" else meta_template(run)
        rows = run.files.jsonl("seed", name).rows()
        return [{"prompt": templates.fill(template, **_slots(r)), "response": r["judgment"]} for r in rows]
    c = run.cfg.prompts
    num_examples = c.num_seed_examples + c.num_generated_examples
    rng = Random(f"{run.cfg.seed} prompt rows")
    few_shot_prompt = partial(prompt_generation.few_shot_prompt, prompt_template(run), multiline=c.multiline)
    return seed_sets.prompt_rows(few_shot_pool(run), run.cfg.data.prompt_rows, num_examples, few_shot_prompt, rng)
