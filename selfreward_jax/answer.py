"""Answers a file of prompts, or you.

    python -m selfreward_jax.generate --model=FOLDER_OR_WORKDIR --prompts=FILE.jsonl --out=FILE.jsonl [--chat]
    python -m selfreward_jax.generate --model=FOLDER_OR_WORKDIR --interactive

FILE.jsonl has rows {"prompt": ...}, with an "id" if you like. With --chat a prompt is what a user says, else it is a
text to be continued.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import jax
from etils import epath

from selfreward_jax import storage
from selfreward_jax.config import ConfigError
from selfreward_jax.generate.engine import Engine, Request, Sampling
from selfreward_jax.llm.chat import ChatError
from selfreward_jax.llm.hf_config import HubError
from selfreward_jax.report.progress import Progress
from selfreward_jax.saved import Saved, open_model

Row = dict[str, Any]


def main(argv: list[str]) -> int:
    """Generates. Returns the exit code: 0, or 2 after one line that says what to mend."""
    try:
        options = _options(argv)
        if options.interactive:
            converse(open_model(options.model, options.name), options)
        else:
            answer_file(options)
    except (ConfigError, HubError, ChatError, OSError) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "selfreward_jax.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a Hugging Face folder, or a working directory")
    parser.add_argument("--name", default="", help="which model of a working directory, such as m1; else the last")
    parser.add_argument("--prompts", help="JSON lines with a prompt each")
    parser.add_argument("--out", help="JSON lines to write")
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
    parser.error = _refuse
    options = parser.parse_args(argv[1:])
    if not options.interactive and not (options.prompts and options.out):
        _refuse("give --prompts and --out, or --interactive")
    for name, least in (("samples", 1), ("max_new", 1), ("rows", 1), ("max_length", 0), ("temperature", 0)):
        if not getattr(options, name) >= least:
            _refuse(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    if not 0 < options.top_p <= 1:
        _refuse(f"--top_p is {options.top_p}; it must be above 0 and at most 1")
    return options


def _refuse(message: str) -> None:
    raise ConfigError(message)


def _engine(model: Saved, options: argparse.Namespace, rows: int) -> Engine:
    longest = min(options.max_length or model.max_length, model.max_length)
    return Engine(
        model.cfg,
        model.params,
        model.chat,
        model.mesh,
        rows=rows,
        max_length=longest,
        raw=not (options.chat or options.interactive),
    )


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(options.samples, options.temperature, options.top_p, options.max_new)


def answer_file(options: argparse.Namespace) -> None:
    """Writes a row {id, prompt, responses: [{text, finished}]} for each prompt of the file, in its order.

    Raises:
      ConfigError: a row is no prompt or too long, or the output is there already.
    """
    out = storage.RowFile(epath.Path(options.out))
    if out.path.exists():
        raise ConfigError(f"--out {options.out} is there already: give another name, or move it away")
    rows = list(read_prompts(options.prompts))
    model = open_model(options.model, options.name)
    engine, how = _engine(model, options, options.rows), _sampling(options)
    for row in rows:
        if not engine.fits(row["prompt"], how.max_new):
            raise ConfigError(
                f"{options.prompts}: prompt {row['id']} has {len(engine.ids(row['prompt']))} tokens, which with "
                f"--max_new {how.max_new} pass the {engine.max_length} of the model: shorten it, or lower --max_new"
            )
    made: dict[str, Row] = {}
    out.restart_from([])
    progress = Progress(f"{model.name}", len(rows))
    for batch in engine.stream([Request(r["id"], r["prompt"]) for r in rows], how, jax.random.key(options.seed)):
        for c in batch:
            row = made.setdefault(c.id, {"id": c.id, "responses": []})
            details = {"ids": c.ids, "logprobs": c.logprobs} if options.logprobs else {}
            row["responses"].append({"text": c.text, "finished": c.finished, **details})
        out.append([made[i] for i in dict.fromkeys(c.id for c in batch)])
        progress.add(len({c.id for c in batch}), sum(len(c.ids) for c in batch))
    facts = {"model": options.model, "name": model.name, "sampling": how._asdict(), "seed": options.seed}
    out.finish([{"id": r["id"], "prompt": r["prompt"], **made[r["id"]]} for r in rows], **facts)
    progress.close()


def read_prompts(path: str) -> Iterator[Row]:
    """Rows {id, prompt} of a file; a row without an id gets its line's number.

    Raises:
      ConfigError: the file cannot be read, a row is malformed, or two rows share an id.
    """
    try:
        lines = epath.Path(path).read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {path} cannot be read ({error})") from None
    seen = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path} line {number} is not JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ConfigError(f'{path} line {number} is no object with a "prompt" that is text')
        name = str(row.get("id", number))
        if name in seen:
            raise ConfigError(f"{path} line {number}: the id {name!r} has been used before")
        seen.add(name)
        yield {"id": name, "prompt": row["prompt"]}
    if not seen:
        raise ConfigError(f"{path} has no prompts")


def converse(model: Saved, options: argparse.Namespace, source: TextIO = sys.stdin) -> None:
    """A conversation in the terminal: an empty line begins a new one, the end of input ends it all."""
    engine, how = _engine(model, options, rows=1), _sampling(options)._replace(samples=1)
    turns: list[tuple[str, str]] = []
    print(f"{model.name}: an empty line begins a new conversation, Ctrl-D ends", file=sys.stderr)
    for number, line in enumerate(_lines(source)):
        if not line:
            turns = []
            continue
        turns.append(("user", line))
        while len(turns) > 1 and not engine.fits(turns, how.max_new):
            turns = turns[2:]  # the oldest turns make room
        if not engine.fits(turns, how.max_new):
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
