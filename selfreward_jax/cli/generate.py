"""selfreward-jax generate: responses to a file of prompts.

The prompt file has rows {"prompt": ...} or {"messages": [...]}, with an optional "id". A prompt is a user message or a
conversation; with --raw it is a text to continue. With --format=alpaca_eval the prompts are a list of
{"instruction": ...}, and the output is AlpacaEval's model_outputs.json. With --format=mt_bench they are MT-Bench's
question.jsonl and its answers.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from selfreward_jax import foreign, storage
from selfreward_jax.cli.model import check_room, load_named, make_sampling_params
from selfreward_jax.config import ConfigError
from selfreward_jax.integrations import formats
from selfreward_jax.integrations.formats import PromptRecord
from selfreward_jax.method.rows import Row
from selfreward_jax.runs.loading import LoadedModel
from selfreward_jax.sampling import requests
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams
from selfreward_jax.sampling.requests import EnginePrompt
from selfreward_jax.storage.artifacts import MAX_BYTES, JsonlArtifact, decode_crc
from selfreward_jax.telemetry import compile_cache
from selfreward_jax.telemetry.progress import Progress


def main(options: argparse.Namespace) -> int:
    """Generates. Returns the exit code."""
    make_sampling_params(options, options.num_samples)  # a wrong option is refused before the model is loaded
    if options.format != "rows":
        if options.raw:
            raise ConfigError(f"--raw excludes --format={options.format}, whose prompts are messages: leave one out")
        formats.check_options(options.format, options.out, options.num_samples, options.logprobs)
    compile_cache.enable(options.compile_cache)
    generate_file(options)
    return 0


def generate_file(options: argparse.Namespace) -> None:
    """Generates responses to each prompt of the file, in the file's order.

    Raises:
      ConfigError: a row is not a prompt or too long, or the output exists already.
    """
    out = JsonlArtifact(epath.Path(options.out))
    if out.path.exists():
        raise ConfigError(f"--out {options.out} exists already: give another name, or move it away")
    _check_beside(out)
    prompts = formats.read_prompts(options.prompts, options.format)
    model = load_named(options)
    max_length = options.max_length or model.max_length
    engine = model.engine(options.max_concurrent, max_length, raw=options.raw, take_params=True)
    check_room(options, engine.max_length)
    checked = [_check_prompt(p, model, engine, options) for p in prompts]
    try:
        out.rewrite_partial([])  # an output that cannot be written fails before the work
    except (storage.StorageError, OSError) as error:
        raise ConfigError(
            f"--out {options.out} cannot be written: give a path in a folder that can ({error})"
        ) from None
    if options.format == "rows":
        _generate_rows(out, prompts, checked, model, engine, options)
    else:
        answers = generate_multi_turn(engine, prompts, make_sampling_params(options, options.num_samples), options)
        label = options.label or model.name
        storage.write_atomic(out.path, formats.encode_answers(options.format, prompts, answers, label, time.time()))
        out.partial_path.unlink()


def _check_beside(out: JsonlArtifact) -> None:
    """Raises ConfigError where a file beside the output, which would be overwritten, is not of such a command."""
    path = out.partial_path
    try:
        data = foreign.read_bytes(path, MAX_BYTES)
        rows, num_damaged = decode_crc(data)
        is_ours = not num_damaged and bool(rows) == bool(data)
    except OSError as error:
        is_ours = error.errno not in foreign.NO_FILE  # others are reported when it is written
    if is_ours:
        path = out.manifest_path
        try:
            storage.read_checksummed(path)
        except storage.CorruptionError:
            is_ours = False
    if not is_ours:
        raise ConfigError(
            f"--out {out.path}: {path} is not of this program and would be overwritten: rename one of them"
        )


def _check_prompt(p: PromptRecord, model: LoadedModel, engine: Engine, options: argparse.Namespace) -> EnginePrompt:
    """The first turn as the engine takes it.

    Raises:
      ConfigError: a turn is empty or no conversation, or the turns and their answers are too long.
    """
    name = f"{options.prompts}: prompt {p.id}"
    turns = [requests.to_engine_prompt(turn, name, model.chat, options.raw) for turn in p.turns]
    whole = turns[0] if len(turns) == 1 else p.to_messages([""] * (len(turns) - 1))
    _check_length(engine, options, p.id, whole, len(turns))
    return turns[0]


def _check_length(engine: Engine, options: argparse.Namespace, row_id: str, prompt: Any, num_turns: int = 1) -> None:
    length = len(engine.encode(prompt))
    if length + num_turns * options.max_new_tokens > engine.max_length:
        raise ConfigError(
            f"{options.prompts}: prompt {row_id} has {length} tokens; with --max_new_tokens {options.max_new_tokens}"
            + f" for each of {num_turns} turns" * (num_turns > 1)
            + f" it exceeds the model's {engine.max_length}: shorten it, or lower --max_new_tokens"
        )


def _generate_rows(
    out: JsonlArtifact,
    prompts: Sequence[PromptRecord],
    checked: Sequence[EnginePrompt],
    model: LoadedModel,
    engine: Engine,
    options: argparse.Namespace,
) -> None:
    """Writes a row {id, prompt, responses: [{text, finished}]} for each prompt."""
    rows: dict[str, Row] = {}
    sampling_params, progress = make_sampling_params(options, options.num_samples), Progress(model.name, len(prompts))
    engine_requests = [Request(p.id, prompt) for p, prompt in zip(prompts, checked, strict=True)]
    for batch in engine.stream(engine_requests, sampling_params, jax.random.key(options.seed)):
        for completion in batch:
            row = rows.setdefault(completion.id, {"id": completion.id, "responses": []})
            details = {"ids": completion.ids, "logprobs": completion.logprobs} if options.logprobs else {}
            row["responses"].append({"text": completion.text, "finished": completion.finished, **details})
        ids = list(dict.fromkeys(completion.id for completion in batch))
        out.append([rows[i] for i in ids])
        progress.add(len(ids), sum(len(completion.ids) for completion in batch))
    metadata = {"model": options.model, "name": model.name, "sampling": sampling_params._asdict(), "seed": options.seed}
    out.finish([{"id": p.id, "prompt": p.turns[0], **rows[p.id]} for p in prompts], **metadata)
    progress.close()


def generate_multi_turn(
    engine: Engine, prompts: Sequence[PromptRecord], sampling_params: SamplingParams, options: argparse.Namespace
) -> dict[str, list[list[str]]]:
    """For each id `num_samples` choices, each with the answer to every turn, given the conversation so far."""
    num_samples = sampling_params.num_samples
    choices: dict[str, list[list[str]]] = {p.id: [[] for _ in range(num_samples)] for p in prompts}
    progress = Progress(options.format, num_samples * sum(len(p.turns) for p in prompts))
    for turn in range(max(len(p.turns) for p in prompts)):
        pending = {
            f"{p.id}/{i}/{turn}": (p, choices[p.id][i])
            for p in prompts
            if len(p.turns) > turn
            for i in range(num_samples)
        }
        engine_requests = [Request(request_id, p.to_messages(answers)) for request_id, (p, answers) in pending.items()]
        for request in engine_requests:
            _check_length(engine, options, request.id, request.prompt)
        for batch in engine.stream(
            engine_requests, sampling_params._replace(num_samples=1), jax.random.key(options.seed)
        ):
            for completion in batch:
                pending[completion.id][1].append(completion.text)
            progress.add(len(batch), sum(len(completion.ids) for completion in batch))
    progress.close()
    return choices
