"""Answers a file of prompts, or you.

    python -m selfreward_jax generate --model=FOLDER_OR_WORKDIR --prompts=FILE.jsonl --out=FILE.jsonl [--chat]
    python -m selfreward_jax generate --model=FOLDER_OR_WORKDIR --interactive

FILE.jsonl has rows {"prompt": ...}, with an "id" if you like. With --chat a prompt is what a user says, else it is a
text to be continued. With --format=alpaca_eval the prompts are a list of {"instruction": ...} and the answers
AlpacaEval's model_outputs.json; with --format=mt_bench they are MT-Bench's question.jsonl and its file of answers.
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
from selfreward_jax.runs.loading import LoadedModel, load_model
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams
from selfreward_jax.storage.artifacts import JsonlArtifact
from selfreward_jax.telemetry import compile_cache
from selfreward_jax.telemetry.progress import Progress

Row = dict[str, Any]


def main(argv: list[str]) -> int:
    """Generates. Returns the exit code: 0, or 2 after one line that says what to mend."""
    try:
        options = _options(argv)
        compile_cache.enable(options.compile_cache)
        if options.interactive:
            chat(load_model(options.model, options.name), options)
        else:
            generate_file(options)
    except (ConfigError, DataError, ModelFormatError, ChatError, storage.StorageError, OSError) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = args.parser("generate", __doc__, compiles=True)
    parser.add_argument("--model", required=True, help="a Hugging Face folder, or a working directory")
    parser.add_argument("--name", default="", help="which model of a working directory, such as m1; else the last")
    parser.add_argument("--prompts", help="JSON lines, or a JSON list, with a prompt each")
    parser.add_argument("--out", help="the file to write")
    parser.add_argument("--format", default="rows", choices=formats.FORMATS, help="of both files; all but rows chat")
    parser.add_argument("--label", default="", help="the model's name in the file of a benchmark; else its own")
    parser.add_argument("--chat", action="store_true", help="prompts are what a user says")
    parser.add_argument("--interactive", action="store_true", help="a conversation in the terminal")
    parser.add_argument("--samples", type=int, default=1, help="answers a prompt")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token")
    parser.add_argument("--top_p", type=float, default=0.9, help="mass of the nucleus")
    parser.add_argument("--max_new", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--max_length", type=int, default=0, help="most tokens of prompt and answer; else the model's")
    parser.add_argument("--rows", type=int, default=32, help="answers drawn together")
    parser.add_argument("--logprobs", action="store_true", help="the drawn ids and their log-probs too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv[1:])
    if not options.interactive and not (options.prompts and options.out):
        args.raise_config_error("give --prompts and --out, or --interactive")
    for name, least in (("samples", 1), ("max_new", 1), ("rows", 1), ("max_length", 0), ("temperature", 0)):
        if not getattr(options, name) >= least:
            args.raise_config_error(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    if not 0 < options.top_p <= 1:
        args.raise_config_error(f"--top_p is {options.top_p}; it must be above 0 and at most 1")
    if options.format != "rows":
        options.chat = True
        formats.check_use(options.format, options.out or "", options.samples, options.logprobs)
    return options


def _engine(model: LoadedModel, options: argparse.Namespace, rows: int) -> Engine:
    return model.engine(rows, options.max_length or model.max_length, raw=not (options.chat or options.interactive))


def _sampling(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(options.samples, options.temperature, options.top_p, options.max_new)


def generate_file(options: argparse.Namespace) -> None:
    """Answers each prompt of the file, in its order.

    Raises:
      ConfigError: a row is no prompt or too long, or the output is there already.
    """
    out = JsonlArtifact(epath.Path(options.out))
    if out.path.exists():
        raise ConfigError(f"--out {options.out} is there already: give another name, or move it away")
    asked = formats.read_prompts(options.prompts, options.format)
    model = load_model(options.model, options.name)
    engine, how = _engine(model, options, options.rows), _sampling(options)
    for a in asked:
        prompt = a.turns[0] if options.format == "rows" else a.to_messages([""] * (len(a.turns) - 1))
        _check_room(engine, options, a.id, prompt, len(a.turns))
    out.rewrite_partial([])  # what cannot be written is known before the work
    if options.format == "rows":
        _answer_rows(out, asked, model, engine, options)
    else:
        answers, label = generate_multi_turn(engine, asked, how, options), options.label or model.name
        storage.write_atomic(out.path, formats.encode_answers(options.format, asked, answers, label, time.time()))
        out.partial.unlink()


def _check_room(engine: Engine, options: argparse.Namespace, name: str, prompt: Any, answers: int = 1) -> None:
    length = len(engine.encode(prompt))
    if length + answers * options.max_new > engine.max_length:
        raise ConfigError(
            f"{options.prompts}: prompt {name} has {length} tokens, which with --max_new {options.max_new}"
            + f" for each of {answers} turns" * (answers > 1)
            + f" pass the {engine.max_length} of the model: shorten it, or lower --max_new"
        )


def _answer_rows(
    out: JsonlArtifact, asked: Sequence[PromptRecord], model: LoadedModel, engine: Engine, options: argparse.Namespace
) -> None:
    """Writes a row {id, prompt, responses: [{text, finished}]} for each prompt."""
    made: dict[str, Row] = {}
    how, progress = _sampling(options), Progress(model.name, len(asked))
    requests = [Request(a.id, a.turns[0]) for a in asked]
    for batch in engine.stream(requests, how, jax.random.key(options.seed)):
        for c in batch:
            row = made.setdefault(c.id, {"id": c.id, "responses": []})
            details = {"ids": c.ids, "logprobs": c.logprobs} if options.logprobs else {}
            row["responses"].append({"text": c.text, "finished": c.finished, **details})
        out.append([made[i] for i in dict.fromkeys(c.id for c in batch)])
        progress.add(len({c.id for c in batch}), sum(len(c.ids) for c in batch))
    facts = {"model": options.model, "name": model.name, "sampling": how._asdict(), "seed": options.seed}
    out.finish([{"id": a.id, "prompt": a.turns[0], **made[a.id]} for a in asked], **facts)
    progress.close()


def generate_multi_turn(
    engine: Engine, asked: Sequence[PromptRecord], how: SamplingParams, options: argparse.Namespace
) -> dict[str, list[list[str]]]:
    """For each id `how.samples` choices, each with the answer to every turn, given the conversation so far."""
    said: dict[str, list[list[str]]] = {a.id: [[] for _ in range(how.num_samples)] for a in asked}
    progress = Progress(options.format, how.num_samples * sum(len(a.turns) for a in asked))
    for turn in range(max(len(a.turns) for a in asked)):
        now = {
            f"{a.id}/{i}/{turn}": (a, said[a.id][i])
            for a in asked
            if len(a.turns) > turn
            for i in range(how.num_samples)
        }
        requests = [Request(name, a.to_messages(answers)) for name, (a, answers) in now.items()]
        for request in requests:
            _check_room(engine, options, request.id, request.prompt)
        for batch in engine.stream(requests, how._replace(num_samples=1), jax.random.key(options.seed)):
            for c in batch:
                now[c.id][1].append(c.text)
            progress.add(len(batch), sum(len(c.ids) for c in batch))
    progress.close()
    return said


def chat(model: LoadedModel, options: argparse.Namespace, source: TextIO = sys.stdin) -> None:
    """A conversation in the terminal: an empty line begins a new one, the end of input ends it all."""
    engine, how = _engine(model, options, rows=1), _sampling(options)._replace(num_samples=1)
    turns: list[tuple[str, str]] = []
    print(f"{model.name}: an empty line begins a new conversation, Ctrl-D ends", file=sys.stderr)
    for number, line in enumerate(_lines(source)):
        if not line:
            turns = []
            continue
        turns.append(("user", line))
        while len(turns) > 1 and not engine.fits(turns, how.max_new_tokens):
            turns = turns[2:]  # the oldest turns make room
        if not engine.fits(turns, how.max_new_tokens):
            print(f"(too long: {engine.max_length} tokens hold what you say and the answer)", file=sys.stderr)
            turns = []
            continue
        (said,) = engine.generate([Request(f"turn {number}", turns)], how, jax.random.key(options.seed))
        turns.append(("assistant", said.text))
        print(said.text, flush=True)


def _lines(source: TextIO) -> Iterator[str]:
    while True:
        if source.isatty():
            print("> ", end="", flush=True)
        line = source.readline()
        if not line:
            return
        yield line.strip()
