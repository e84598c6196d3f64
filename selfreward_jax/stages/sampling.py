"""Resumable sampling with a model of the run: responses to prompts, and judgments of responses."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from selfreward_jax.method import judge as judging
from selfreward_jax.method.responses import finished_responses, generate_responses
from selfreward_jax.method.rows import JudgeInput, JudgmentRow, PromptRow, ResponsesRow
from selfreward_jax.parallel import preemption
from selfreward_jax.runs.run import Run
from selfreward_jax.sampling.engine import Engine, SamplingParams
from selfreward_jax.stages.common import StageError, judge_template
from selfreward_jax.telemetry.numbers import three_digits
from selfreward_jax.telemetry.progress import Progress
from selfreward_jax.telemetry.terminal import log_line


class RowStream(Protocol):
    """Makes rows in batches, with the random key of the stage, leaving out the ids that are done."""

    def __call__(self, key: jax.Array, done: Collection[str]) -> Iterator[list[Any]]:
        """The batches."""


def sampling_params(settings: ConfigDict) -> SamplingParams:
    """The sampling parameters of a section of the settings."""
    return SamplingParams(settings.get("num_samples", 1), settings.temperature, settings.top_p, settings.max_new_tokens)


def run_resumable(
    run: Run,
    folder: str,
    stage: str,
    ids: Sequence[str],
    stream: RowStream,
    engine: Engine,
    made_by: str = "",
    **metadata: Any,
) -> list[Any]:
    """Makes FOLDER/STAGE.jsonl of the rows of `stream`, and continues where an interrupted run ended.

    Args:
      run: the run.
      folder, stage: the artifact.
      ids: the ids of all rows, in the order in which they are written at the end.
      stream: makes the rows. Each batch is stored as it comes.
      engine: what `stream` samples with.
      made_by: the model whose weights the manifest names; "" for none.
      **metadata: further fields of the manifest.

    Returns:
      The rows.
    """
    artifact, label = run.files.jsonl(folder, stage), f"{folder} {stage}"
    rows = {row["id"]: row for row in artifact.load_partial()}
    progress = Progress(label, len(ids), len(rows))
    for batch in stream(run.files.stage_key(folder, stage), rows.keys()):
        new = [row for row in batch if row["id"] not in rows]
        artifact.append(new)
        rows |= {row["id"]: row for row in new}
        scores = [row["score"] for row in new if row.get("score") is not None]
        note = f"mean score {three_digits(fmean(scores))}" if scores else ""
        progress.add(len(new), sum(row["tokens"] for row in new), note)
        run.log.note_time()
    if len(rows) < len(ids):
        preemption.raise_if_stopped()
    ordered = [rows[i] for i in ids]
    metadata |= {"weights": run.files.weights_fingerprint(made_by)} if made_by else {}
    artifact.finish(ordered, tokens=sum(row["tokens"] for row in ordered), **metadata)
    progress.close(f"{engine.slot_use.share:.0%} of the slots in use" if engine.slot_use.slot_tokens else "")
    run.log.flush()
    return ordered


def sample_responses(
    run: Run, model: str, prompts: Sequence[PromptRow], settings: ConfigDict, folder: str, stage: str
) -> None:
    """FOLDER/STAGE.jsonl: responses of a finished model to prompts."""
    if not run.files.is_complete(folder, stage, model):
        sample_with_engine(run, run.models.engine(model), prompts, settings, folder, stage, model)


def sample_with_engine(
    run: Run,
    engine: Engine,
    prompts: Sequence[PromptRow],
    settings: ConfigDict,
    folder: str,
    stage: str,
    made_by: str = "",
) -> None:
    """The same with an engine of any parameters; those of the model `made_by`, if it is named."""
    if run.files.is_complete(folder, stage, made_by):
        return
    short = drop_long_prompts(engine, prompts, settings.max_new_tokens, f"{folder} {stage}")
    stream = partial(generate_responses, engine, short, sampling_params(settings))
    ids = [row["id"] for row in short]
    run_resumable(run, folder, stage, ids, stream, engine, made_by, left_out=len(prompts) - len(short))


def sample_best_of_n(
    run: Run, model: str, prompts: Sequence[PromptRow], settings: ConfigDict, folder: str, stage: str
) -> None:
    """FOLDER/STAGE.jsonl: for each response wanted, the best of `settings.best_of` samples by the model's own judgment;
    of equal scores the first. With best_of 1 the samples as they are."""
    artifact, wanted = run.files.jsonl(folder, stage), settings.num_samples
    if settings.best_of == 1 or run.files.is_complete(folder, stage):
        sample_responses(run, model, prompts, settings, folder, stage)
        return
    all_samples = settings.copy_and_resolve_references()
    all_samples.num_samples = wanted * settings.best_of
    sample_responses(run, model, prompts, all_samples, folder, f"{stage}_drawn")
    drawn = run.files.jsonl(folder, f"{stage}_drawn").rows()
    judge(run, model, finished_responses(drawn), folder, f"{stage}_judged")
    scores = {row["id"]: row["score"] for row in run.files.jsonl(folder, f"{stage}_judged").rows()}

    def best(row: ResponsesRow, group: int) -> Any:
        """The best response of a group of samples; one without a score comes last."""
        members = range(group * settings.best_of, (group + 1) * settings.best_of)
        score = {i: scores.get(f"{row['id']}/{i}") for i in members}
        return row["responses"][max(members, key=lambda i: -1.0 if score[i] is None else score[i])]

    rows = [{**row, "responses": [best(row, group) for group in range(wanted)]} for row in drawn]
    artifact.finish(rows, tokens=0, best_of=settings.best_of, weights=run.files.weights_fingerprint(model))


def drop_long_prompts(engine: Engine, rows: Sequence[Any], max_new_tokens: int, label: str) -> list[Any]:
    """The rows {prompt} whose prompt leaves room for the new tokens. Logs how many are left out.

    Raises:
      StageError: none does.
    """
    room = engine.max_length - max_new_tokens
    request = engine.chat.with_system
    short = [r for r in rows if engine.fits(request(r["prompt"], r.get("system", "")), max_new_tokens)]
    if len(short) < len(rows):
        log_line(f"{label}: {len(rows) - len(short)} of {len(rows)} prompts have more than {room} tokens: left out")
    if rows and not short:
        raise StageError(f"{label}: no prompt fits into {room} tokens: in a new --workdir raise model.max_length")
    return short


def judge_shots(run: Run, template: str) -> str:
    """judge.shots judged seed rows, the same for all responses of a run; "" for none."""
    if not run.cfg.judge.shots:
        return ""
    rows = run.files.jsonl("seed", "eft").rows()
    return judging.few_shot(template, judging.choose_shots(rows, run.cfg.judge.shots, f"{run.cfg.seed} shots"))


def judge(
    run: Run, model: str, responses: Sequence[JudgeInput], folder: str, stage: str, num_samples: int = 0
) -> list[JudgmentRow]:
    """FOLDER/STAGE.jsonl: judgments of responses by a finished model.

    Args:
      run: the run.
      model: the judge.
      responses: what to judge.
      folder, stage: the artifact.
      num_samples: votes for each response; 0: judge.num_samples.

    Returns:
      The judgments.

    Raises:
      StageError: there is nothing to judge.
    """
    if run.files.is_complete(folder, stage, model):
        return run.files.jsonl(folder, stage).rows()
    if not responses:
        raise StageError(
            f"{folder} {stage}: there is no finished response to judge: in a new --workdir raise max_new_tokens of the "
            "responses, or train the model longer"
        )
    settings, template, engine = run.cfg.judge, judge_template(run), run.models.engine(model)
    shots = judge_shots(run, template)
    as_prompts = [
        {**r, "prompt": shots + judging.judge_prompt(template, r["prompt"], r["response"])} for r in responses
    ]
    short = {row["id"] for row in drop_long_prompts(engine, as_prompts, settings.max_new_tokens, f"{folder} {stage}")}
    judged = [r for r in responses if r["id"] in short]
    params = sampling_params(settings)._replace(num_samples=num_samples or settings.num_samples)
    stream = partial(judging.judge, engine, judged, template, params, settings, shots=shots)
    left_out = len(responses) - len(judged)
    rows = run_resumable(run, folder, stage, [r["id"] for r in judged], stream, engine, model, left_out=left_out)
    stats = judging.judge_stats(rows)
    for line in (f"  {folder} {stage}: {judging.format_stats(stats)}", *judging.format_histogram(stats)):
        log_line(line)
    return rows
