"""Generates responses to a file of prompts, or chats in the terminal.

    python -m selfreward_jax generate --model=FOLDER_OR_WORKDIR --prompts=FILE.jsonl --out=FILE.jsonl [--chat]
    python -m selfreward_jax generate --model=FOLDER_OR_WORKDIR --interactive

The prompt file has rows {"prompt": ...}, with an optional "id". With --chat a prompt is a user message, else it is a
text to continue. With --format=alpaca_eval the prompts are a list of {"instruction": ...}, and the output is
AlpacaEval's model_outputs.json. With --format=mt_bench they are MT-Bench's question.jsonl and its answer file.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import jax
from etils import epath

from selfreward_jax import storage
from selfreward_jax.cli import args
from selfreward_jax.config import ConfigError
from selfreward_jax.data.readers import DataError
from selfreward_jax.integrations import formats
from selfreward_jax.integrations.formats import PromptRecord
from selfreward_jax.llm.chat import ChatError
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.method.rows import Row
from selfreward_jax.runs.loading import LoadedModel, load_model
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams
from selfreward_jax.storage.artifacts import JsonlArtifact
from selfreward_jax.telemetry import compile_cache
from selfreward_jax.telemetry.progress import Progress


def main(argv: list[str]) -> int:
    """Generates. Returns the exit code: 0, or 2 after a one-line error message."""
    try:
        options = _parse_options(argv)
        compile_cache.enable(options.compile_cache)
        if options.interactive:
            chat(load_model(options.model, options.name), options)
        else:
            generate_file(options)
    except (ConfigError, DataError, ModelFormatError, ChatError, storage.StorageError, OSError) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    return 0


def _parse_options(argv: list[str]) -> argparse.Namespace:
    parser = args.make_parser("generate", __doc__, compiles=True)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, or a working directory")
    parser.add_argument("--name", default="", help="model of a working directory, such as m1 (default: the last one)")
    parser.add_argument("--prompts", help="prompt file: JSON lines, or a JSON list")
    parser.add_argument("--out", help="file to write; it must not exist")
    parser.add_argument("--format", default="rows", choices=formats.FORMATS, help="of both files; all but rows chat")
    parser.add_argument("--label", default="", help="model name in a benchmark's file (default: the model's own)")
    parser.add_argument("--chat", action="store_true", help="prompts are user messages")
    parser.add_argument("--interactive", action="store_true", help="chat in the terminal")
    parser.add_argument("--num_samples", type=int, default=1, help="responses per prompt")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--top_p", type=float, default=0.9, help="probability mass of nucleus sampling")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="maximum tokens of a response")
    parser.add_argument(
        "--max_length", type=int, default=0, help="maximum tokens of prompt and response (default: the model's)"
    )
    parser.add_argument("--max_concurrent", type=int, default=32, help="responses decoded at once")
    parser.add_argument("--logprobs", action="store_true", help="also write the sampled token ids and their log-probs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv[1:])
    if not options.interactive and not (options.prompts and options.out):
        args.raise_config_error("--prompts and --out are missing: give both, or --interactive")
    minimums = {"num_samples": 1, "max_new_tokens": 1, "max_concurrent": 1, "max_length": 0, "temperature": 0}
    for name, minimum in minimums.items():
        if not getattr(options, name) >= minimum:
            args.raise_config_error(f"--{name} is {getattr(options, name)}; it must be at least {minimum}")
    if not 0 < options.top_p <= 1:
        args.raise_config_error(f"--top_p is {options.top_p}; it must be above 0 and at most 1")
    if options.format != "rows":
        options.chat = True
        formats.check_options(options.format, options.out or "", options.num_samples, options.logprobs)
    return options


def _engine(model: LoadedModel, options: argparse.Namespace, max_concurrent: int) -> Engine:
    raw = not (options.chat or options.interactive)
    return model.engine(max_concurrent, options.max_length or model.max_length, raw=raw)


def _sampling_params(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(options.num_samples, options.temperature, options.top_p, options.max_new_tokens)


def generate_file(options: argparse.Namespace) -> None:
    """Generates responses to each prompt of the file, in the file's order.

    Raises:
      ConfigError: a row is not a prompt or too long, or the output exists already.
    """
    out = JsonlArtifact(epath.Path(options.out))
    if out.path.exists():
        raise ConfigError(f"--out {options.out} exists already: give another name, or move it away")
    prompts = formats.read_prompts(options.prompts, options.format)
    model = load_model(options.model, options.name)
    engine = _engine(model, options, options.max_concurrent)
    for p in prompts:
        prompt = p.turns[0] if options.format == "rows" else p.to_messages([""] * (len(p.turns) - 1))
        _check_length(engine, options, p.id, prompt, len(p.turns))
    out.rewrite_partial([])  # an output that cannot be written fails before the work
    if options.format == "rows":
        _generate_rows(out, prompts, model, engine, options)
    else:
        answers = generate_multi_turn(engine, prompts, _sampling_params(options), options)
        label = options.label or model.name
        storage.write_atomic(out.path, formats.encode_answers(options.format, prompts, answers, label, time.time()))
        out.partial_path.unlink()


def _check_length(engine: Engine, options: argparse.Namespace, row_id: str, prompt: Any, num_turns: int = 1) -> None:
    length = len(engine.encode(prompt))
    if length + num_turns * options.max_new_tokens > engine.max_length:
        raise ConfigError(
            f"{options.prompts}: prompt {row_id} has {length} tokens; with --max_new_tokens {options.max_new_tokens}"
            + f" for each of {num_turns} turns" * (num_turns > 1)
            + f" it exceeds the model's {engine.max_length}: shorten it, or lower --max_new_tokens"
        )


def _generate_rows(
    out: JsonlArtifact, prompts: Sequence[PromptRecord], model: LoadedModel, engine: Engine, options: argparse.Namespace
) -> None:
    """Writes a row {id, prompt, responses: [{text, finished}]} for each prompt."""
    rows: dict[str, Row] = {}
    sampling_params, progress = _sampling_params(options), Progress(model.name, len(prompts))
    requests = [Request(p.id, p.turns[0]) for p in prompts]
    for batch in engine.stream(requests, sampling_params, jax.random.key(options.seed)):
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
        requests = [Request(request_id, p.to_messages(answers)) for request_id, (p, answers) in pending.items()]
        for request in requests:
            _check_length(engine, options, request.id, request.prompt)
        for batch in engine.stream(requests, sampling_params._replace(num_samples=1), jax.random.key(options.seed)):
            for completion in batch:
                pending[completion.id][1].append(completion.text)
            progress.add(len(batch), sum(len(completion.ids) for completion in batch))
    progress.close()
    return choices


def chat(model: LoadedModel, options: argparse.Namespace, source: TextIO = sys.stdin) -> None:
    """A conversation in the terminal: an empty line starts a new one, the end of input ends the program."""
    engine = _engine(model, options, max_concurrent=1)
    sampling_params = _sampling_params(options)._replace(num_samples=1)
    messages: list[tuple[str, str]] = []
    print(f"{model.name}: an empty line starts a new conversation, Ctrl-D ends", file=sys.stderr)
    for number, line in enumerate(_lines(source)):
        if not line:
            messages = []
            continue
        messages.append(("user", line))
        while len(messages) > 1 and not engine.fits(messages, sampling_params.max_new_tokens):
            messages = messages[2:]  # drop the oldest turn
        if not engine.fits(messages, sampling_params.max_new_tokens):
            print(f"(too long: message and answer may have {engine.max_length} tokens together)", file=sys.stderr)
            messages = []
            continue
        (completion,) = engine.generate(
            [Request(f"turn {number}", messages)], sampling_params, jax.random.key(options.seed)
        )
        messages.append(("assistant", completion.text))
        print(completion.text, flush=True)


def _lines(source: TextIO) -> Iterator[str]:
    while True:
        if source.isatty():
            print("> ", end="", flush=True)
        line = source.readline()
        if not line:
            return
        yield line.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
