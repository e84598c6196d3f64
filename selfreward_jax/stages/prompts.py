"""New prompts of a round, by self-instruction."""

from collections import Counter
from itertools import count, takewhile
from typing import Any

from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.llm import hub
from selfreward_jax.method import prompt_generation
from selfreward_jax.method.rows import AttemptRow
from selfreward_jax.parallel import preemption
from selfreward_jax.runs.loading import load_model
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import (
    StageError,
    eft_source_set,
    few_shot_pool,
    held_out_prompts,
    previous_model,
    prompt_template,
)
from selfreward_jax.stages.endpoint_writer import EndpointWriter, open_endpoint
from selfreward_jax.stages.sampling import sampling_params
from selfreward_jax.telemetry.numbers import counted, counts
from selfreward_jax.telemetry.progress import Progress


def prompts(run: Run, model: str) -> None:
    """m_t/prompts.jsonl: new prompts by m_(t-1), or by the model that prompts.writer names."""
    made_by = "" if run.cfg.prompts.writer or run.cfg.prompts.source else previous_model(model)
    if run.files.is_complete(model, "prompts", made_by):
        return
    artifact, settings = run.files.jsonl(model, "prompts"), run.cfg.prompts.copy_and_resolve_references()
    if model != "m2" and settings.later_count:
        settings.count = settings.later_count
    partial = _whole_batches(artifact.load_partial(), model, settings)
    artifact.rewrite_partial(partial)
    rounds = [f"m{i}" for i in range(2, int(model[1:]))]
    earlier = [row["prompt"] for name in rounds for row in run.files.jsonl(name, "prompts").rows()]
    seeds = [row["prompt"] for name in ("ift", eft_source_set(run)) for row in run.files.jsonl("seed", name).rows()]
    writer, template = _writer(run, model, earlier), prompt_template(run)
    progress = Progress(f"{model} prompts", settings.count, _accepted(partial))

    def store(batch: list[AttemptRow]) -> None:
        artifact.append(batch)
        progress.add(_accepted(batch), sum(row["tokens"] for row in batch))
        run.log.note_time()
        preemption.raise_if_stopped()

    inputs = prompt_generation.PromptInputs(
        template=template,
        seed_prompts=_examples(run, writer, template, f"{model} prompts"),
        generated_prompts=earlier,
        forbidden=[*seeds, *earlier, *held_out_prompts(run)],
        id_prefix=model,
        seed=run.cfg.seed,
    )
    key = run.files.stage_key(model, "prompts")
    rows = prompt_generation.generate_prompts(writer, settings, sampling_params(settings), key, inputs, partial, store)
    rejected = dict(Counter(row["fault"] for row in rows if row["fault"]))
    summary = f"{counted(len(rows), 'attempt')}, rejected: {counts(rejected)}"
    accepted = [{"id": row["id"], "prompt": row["prompt"]} for row in rows if row["fault"] is None]
    if not accepted and settings.source:
        raise StageError(
            f"{model} prompts: prompts.source {settings.source} has no new prompt for this round ({summary}): in a new "
            "--workdir give more prompts, or lower prompts.count or iterations"
        )
    if not accepted:
        raise StageError(
            f"{model} prompts: none passed the filters ({summary}); the model cannot write "
            "prompts yet: in a new --workdir train M1 longer, or relax prompts.max_rouge and prompts.*_words"
        )
    metadata: dict[str, Any] = {"weights": run.files.weights_fingerprint(made_by)} if made_by else {}
    tokens = sum(row["tokens"] for row in rows)
    artifact.finish(accepted, attempts=len(rows), faults=rejected, tokens=tokens, **metadata)
    progress.close(f"of {summary}")
    run.log.flush()


def _accepted(rows: list[AttemptRow]) -> int:
    return sum(row["fault"] is None for row in rows)


def _whole_batches(rows: list[AttemptRow], model: str, settings: ConfigDict) -> list[AttemptRow]:
    """The rows of an interrupted run up to its last whole batch: which prompts are new depends on all before them."""
    numbers = count()
    in_order = list(takewhile(lambda row: row["id"] == f"{model}/{next(numbers)}", rows))
    return prompt_generation.whole_batches(in_order, settings)


def _examples(run: Run, writer: Any, template: str, label: str) -> list[str]:
    """The few-shot examples that leave the writer room for a new prompt.

    Raises:
      StageError: there are too few.
    """
    settings = run.cfg.prompts
    pool = [
        p
        for p in few_shot_pool(run)
        if writer.fits(prompt_generation.few_shot_prompt(template, [p], settings.multiline), settings.max_new_tokens)
    ]
    if len(pool) < settings.num_seed_examples + settings.num_generated_examples:
        raise StageError(
            f"{label}: only {len(pool)} seed prompts and prompts.max_new_tokens {settings.max_new_tokens} fit into the "
            "writer's length: in a new --workdir lower prompts.max_new_tokens or raise model.max_length"
        )
    return pool


def _writer(run: Run, model: str, earlier: list[str]) -> prompt_generation.Writer:
    """What writes the prompts of a round: m_(t-1), or what prompts.writer names, the same in every round. With
    prompts.source what is left of the file."""
    path = run.cfg.prompts.writer
    if run.cfg.prompts.source:
        used = set(earlier)
        left = [p for row in run.files.jsonl("seed", "pool").rows() if (p := row["prompt"]) not in used]
        return prompt_generation.PromptPool(left, f"{run.cfg.seed} {model} pool")
    if not path:
        return run.models.engine(previous_model(model))
    if path == "endpoint":
        return EndpointWriter(open_endpoint(run))
    if path == "world":
        return prompt_generation.ToyPromptSource(run.cfg.seed)
    run.models.drop_engine()
    name = storage.read_json(run.workdir / "prompts_writer.json")["model"]
    loaded = load_model(path, "" if path.startswith(hub.HUB_PREFIX) else name, mesh_from=run)
    return loaded.engine(run.cfg.sampling.max_concurrent, run.cfg.model.max_length, take_params=True)
