"""Our chat format, made of token spans: which ids are a prompt, and which of them carry loss.

    <bos> <|user|> text <|end|> <|assistant|> text <|end|>

Text is encoded piece by piece between control ids, so no text can imitate them and nothing is searched for.
"""

from collections.abc import Sequence
from typing import NamedTuple

from selfreward_jax.llm.tokenizer import ASSISTANT, BOS, END, EOS, USER, Tokenizer


class Example(NamedTuple):
    """Token ids of one text and, for each, whether it is a target (carries loss)."""

    ids: list[int]
    target: list[bool]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids after which the model answers `prompt`."""
    c = tokenizer.control
    return [c(BOS), c(USER), *tokenizer.encode(prompt), c(END), c(ASSISTANT)]


def example(tokenizer: Tokenizer, prompt: str, response: str) -> Example:
    """A prompt and its response; the response and the <|end|> that closes it are the targets."""
    head = prompt_ids(tokenizer, prompt)
    tail = [*tokenizer.encode(response), tokenizer.control(END)]
    return Example(head + tail, [False] * len(head) + [True] * len(tail))


def document(tokenizer: Tokenizer, text: str) -> Example:
    """Plain text for a base model: everything after <bos> is a target."""
    ids = [tokenizer.control(BOS), *tokenizer.encode(text), tokenizer.control(EOS)]
    return Example(ids, [False] + [True] * (len(ids) - 1))


def pieces(text: Example, width: int) -> list[Example]:
    """A text cut into pieces of at most `width` tokens. Nothing in a piece foretells its first token, which so is no
    target."""
    starts = range(0, len(text.ids), width)
    return [Example(text.ids[i : i + width], [False, *text.target[i + 1 : i + width]]) for i in starts]


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end a generated response."""
    return tokenizer.control(END), tokenizer.control(EOS)


def response_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of generated ids, control ids left out."""
    return tokenizer.decode(ids).strip()
