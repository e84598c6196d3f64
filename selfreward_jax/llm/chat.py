"""One model's chat format, made of token spans: which ids are a prompt, and which of them carry loss.

The format is a chat template (Jinja, as Hugging Face folders carry it): the model's own, or one of ours. It is rendered
once with marks in place of what people and models say, and cut into control pieces, literal text, and places for what
is said. That is encoded as plain text, together with the literal text around it: it can imitate no control piece, the
pieces come out as they do for the whole text, and nothing is ever searched for.
"""

import itertools
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import jinja2.sandbox

from selfreward_jax.llm.tokenizer import Tokenizer


class ChatError(ValueError):
    """A chat template that cannot be used; the message says why."""


class Example(NamedTuple):
    """Token ids of one text and, for each, whether it is a target (carries loss)."""

    ids: list[int]
    target: list[bool]


class ContentSlot(NamedTuple):
    """The place of a message's text in a template, and whether the template keeps white space at its ends."""

    message: int
    keep_left: bool
    keep_right: bool


Part = int | str | ContentSlot  # a control id, literal text, what is said

# Private-use characters around the message's number; an em space on either side shows whether the template strips.
_MARK = "\u2003\ue000{}\ue001\u2003"
_MARKED = re.compile("(\u2003?)\ue000(\\d+)\ue001(\u2003?)")


class Chat:
    """The chat format of a model.

    Args:
      tokenizer: its tokenizer.
      template: Jinja source.
      bos, eos: the control pieces that begin and end a text; None if the model has none.
      stop_ids: ids that end a response. The control piece that closes a response in the template is added to them.

    Raises:
      ChatError: the template cannot be rendered, or never ends a response.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: str, bos: str | None, eos: str | None, stop_ids: Sequence[int] = ()
    ) -> None:
        self.tokenizer, self.template, self.bos, self.eos = tokenizer, template, bos, eos
        self._named = {"bos_token": bos or "", "eos_token": eos or ""}
        special_tokens = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, special_tokens)) or r"(?!)")
        self._formats: dict[tuple[str, ...], list[Part]] = {}
        self._tail, closing = self._response_format(set(stop_ids))
        self.stop_ids = tuple(sorted({*stop_ids, closing}))

    # --- the format ---

    def _format(self, roles: tuple[str, ...], answer: bool) -> list[Part]:
        """The parts of a conversation of these roles; with `answer`, up to where the assistant begins."""
        messages = [{"role": role, "content": _MARK.format(i)} for i, role in enumerate(roles)]
        parts: list[Part] = []
        text = render(self.template, messages=messages, add_generation_prompt=answer, **self._named)
        at = 0
        for mark in _MARKED.finditer(text):
            parts += self._literal(text[at : mark.start()])
            parts.append(ContentSlot(int(mark[2]), bool(mark[1]), bool(mark[3])))
            at = mark.end()
        parts += self._literal(text[at:])
        said = [p.message for p in parts if isinstance(p, ContentSlot)]
        if said != list(range(len(roles))):
            raise ChatError(f"the chat template renders messages {said} of {len(roles)} ({', '.join(roles)})")
        return parts

    def _literal(self, text: str) -> list[Part]:
        """Literal text of the template as control ids and text."""
        parts: list[Part] = []
        at = 0
        for piece in self._control.finditer(text):
            parts += [text[at : piece.start()], self.tokenizer.special_tokens[piece[0]]]
            at = piece.end()
        return [p for p in [*parts, text[at:]] if p != ""]

    def _response_format(self, stops: set[int]) -> tuple[list[Part], int]:
        """What a response adds to a prompt, up to the control id that closes it; and that id."""
        prompt, whole = self._format(("user",), True), self._format(("user", "assistant"), False)
        tail = _after(whole, prompt)
        said = next(i for i, p in enumerate(tail) if isinstance(p, ContentSlot))
        for i, part in enumerate(tail[said:], said):
            if isinstance(part, int):
                return tail[: i + 1], part
        if self.eos is None and not stops:
            raise ChatError("the chat template does not end a response, and the model has no end-of-text token")
        closing = self.tokenizer.special_tokens[self.eos] if self.eos else min(stops)
        return [*tail[: said + 1], closing], closing

    # --- texts to ids ---

    def message_ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids after which the model answers a conversation of (role, text), roles "user" and "assistant"."""
        roles = tuple(role for role, _ in messages)
        if roles not in self._formats:
            self._formats[roles] = self._format(roles, True)
        return self._fill(self._formats[roles], [text for _, text in messages])

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids after which the model answers `prompt`."""
        return self.message_ids([("user", prompt)])

    def example(self, prompt: str, response: str) -> Example:
        """A prompt and its response; the response and the id that closes it are the targets."""
        head = self.prompt_ids(prompt)
        begins = "control" if isinstance(self._formats[("user",)][-1], int) else "text"
        tail = self._fill(self._tail, ["", response], begins)
        return Example(head + tail, [False] * len(head) + [True] * len(tail))

    def _fill(self, parts: Sequence[Part], said: Sequence[str], preceded_by: Any = "nothing") -> list[int]:
        ids: list[int] = []
        for is_control, run in itertools.groupby(parts, lambda p: isinstance(p, int)):
            if is_control:
                ids += run
            else:
                text = "".join(p if isinstance(p, str) else _trim(p, said[p.message]) for p in run)
                ids += self.tokenizer.encode(text, preceded_by) if text else []
            preceded_by = "control"
        return ids

    def render_text(self, prompt: str, response: str) -> str:
        """A prompt and its response as they are written, control pieces too."""
        piece_of = {i: piece for piece, i in self.tokenizer.special_tokens.items()}
        parts = [*self._format(("user",), True), *self._tail]
        said = (prompt, response)
        return "".join(
            piece_of[p] if isinstance(p, int) else p if isinstance(p, str) else said[p.message] for p in parts
        )

    def encode_prefix(self, text: str) -> list[int]:
        """Ids of plain text that goes on."""
        ids = [self.tokenizer.special_tokens[self.bos]] if self.bos else []
        ids += self.tokenizer.encode(text, "nothing") if text else []
        if not ids:
            raise ChatError("a model without a token that begins a text cannot go on from an empty one")
        return ids

    def document(self, text: str) -> Example:
        """Plain text for a base model: everything after the first id is a target."""
        ids = self.encode_prefix(text) + ([self.tokenizer.special_tokens[self.eos]] if self.eos else [])
        return Example(ids, [False] + [True] * (len(ids) - 1))

    def response_text(self, ids: Sequence[int]) -> str:
        """Text of generated ids: stop ids and control ids left out."""
        return self.tokenizer.decode([i for i in ids if i not in self.stop_ids]).strip()


def _trim(place: ContentSlot, text: str) -> str:
    text = text if place.keep_left else text.lstrip()
    return text if place.keep_right else text.rstrip()


def _after(whole: list[Part], head: list[Part]) -> list[Part]:
    """`whole` without `head`, whose last text may be the beginning of a longer one."""
    same = len(head) - 1
    last, rest = head[-1], whole[same:]
    if whole[:same] == head[:same] and rest:
        if rest[0] == last:
            return rest[1:]
        if isinstance(last, str) and isinstance(rest[0], str) and rest[0].startswith(last):
            return [rest[0][len(last) :], *rest[1:]]
    raise ChatError("the chat template's generation prompt is not how its assistant's turns begin")


def chunk_document(text: Example, width: int) -> list[Example]:
    """A text cut into pieces of at most `width` tokens. Nothing in a piece foretells its first token, which so is no
    target."""
    starts = range(0, len(text.ids), width)
    return [Example(text.ids[i : i + width], [False, *text.target[i + 1 : i + width]]) for i in starts]


def builtin_template(name: str) -> str:
    """A template of ours: "control" (roles are control pieces) or "plain" (roles are words)."""
    return resources.files(__package__).joinpath("templates", f"{name}.jinja").read_text().rstrip("\n")


def render(template: str, **values: Any) -> str:
    """The template's text. It runs in Jinja's immutable sandbox: it is data that came with a model.

    There is no clock in it: a template that would write today's date writes what it writes without one.

    Raises:
      ChatError: it cannot be rendered.
    """

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(**values)
    except Exception as error:  # a template is a program: it can fail in any way
        line = " ".join(str(error).split())
        raise ChatError(f"the chat template cannot be rendered: {type(error).__name__}: {line}") from None
