"""selfreward-jax chat: a conversation in the terminal, or with the lines of standard input."""

import argparse
import sys
from collections.abc import Iterator
from itertools import count
from typing import TextIO

import jax

from selfreward_jax.cli.model import check_room, load_named, make_sampling_params
from selfreward_jax.config import ConfigError
from selfreward_jax.console import streams
from selfreward_jax.data.parsers import MAX_CHARACTERS
from selfreward_jax.runs.loading import LoadedModel
from selfreward_jax.sampling.engine import Request
from selfreward_jax.telemetry import compile_cache


def main(options: argparse.Namespace) -> int:
    """Chats. Returns the exit code."""
    make_sampling_params(options)  # a wrong option is refused before the model is loaded
    compile_cache.enable(options.compile_cache)
    chat(load_named(options), options)
    return 0


def chat(model: LoadedModel, options: argparse.Namespace, source: TextIO = sys.stdin) -> None:
    """A conversation: an empty line starts a new one, the end of input ends the program."""
    engine = model.engine(1, options.max_length or model.max_length, take_params=True)
    check_room(options, engine.max_length)
    sampling_params = make_sampling_params(options)
    messages: list[tuple[str, str]] = []
    streams.message(f"{model.name}: an empty line starts a new conversation, Ctrl-D ends")
    for number, line in enumerate(_lines(source)):
        if not line:
            messages = []
            continue
        messages.append(("user", line))
        while len(messages) > 1 and not engine.fits(messages, sampling_params.max_new_tokens):
            messages = messages[2:]  # drop the oldest turn
        if not engine.fits(messages, sampling_params.max_new_tokens):
            streams.message(f"(too long: message and answer may have {engine.max_length} tokens together)")
            messages = []
            continue
        (completion,) = engine.generate(
            [Request(f"turn {number}", messages)], sampling_params, jax.random.key(options.seed)
        )
        messages.append(("assistant", completion.text))
        streams.result(*completion.text.split("\n"))


def _lines(source: TextIO) -> Iterator[str]:
    """The lines of a source, without white space around them.

    Raises:
      ConfigError: a line is too long or not UTF-8.
    """
    for number in count(1):
        if source.isatty():
            streams.prompt("> ")
        try:
            line = source.readline(MAX_CHARACTERS + 2)
            line.encode()
        except UnicodeError:
            raise ConfigError(f"line {number} of the input is not UTF-8: correct it") from None
        if not line:
            return
        if len(line.removesuffix("\n")) > MAX_CHARACTERS:
            raise ConfigError(f"line {number} of the input has more than {MAX_CHARACTERS:,} characters: shorten it")
        yield line.strip()
