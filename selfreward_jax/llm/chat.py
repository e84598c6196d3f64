"""One model's chat format as token spans: the ids of a prompt, and the ids of a response, which carry loss.

The format is a chat template (Jinja, as in Hugging Face folders): the model's own, or a built-in one. The template is
rendered once with a placeholder for the content of each message. The result is cut into special tokens, literal text
and content slots. A message's content is encoded as plain text, together with the literal text around it. So content
cannot imitate a special token, the tokens are the same as those of the full text, and no span must be searched for.
"""

import itertools
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from selfreward_jax.config import InputError
from selfreward_jax.config.errors import brief
from selfreward_jax.console.escape import escape
from selfreward_jax.llm import rendering, worker_process
from selfreward_jax.llm.tokenizer import PrecededBy, Tokenizer

MAX_LITERAL = 200_000  # characters that a template adds to the texts of a conversation
BUILTIN_TEMPLATES = ("control", "plain")  # roles are special tokens, or words


class ChatError(InputError, ValueError):
    """A chat template cannot be used; the message gives the reason."""


class Example(NamedTuple):
    """Token ids of one text and, for each, whether it is a target (carries loss)."""

    ids: list[int]
    target: list[bool]


class ContentSlot(NamedTuple):
    """Where a message's content goes in a template, and whether the template keeps white space at its ends."""

    message: int
    keep_left: bool
    keep_right: bool


Part = int | str | ContentSlot  # the id of a special token, literal text, the content of a message

# Private-use characters around the message's index. An em space on either side shows whether the template strips.
_PLACEHOLDER = "\u2003\ue000{}\ue001\u2003"
_PLACEHOLDER_PATTERN = re.compile("(\u2003?)\ue000([0-9]{1,9})\ue001(\u2003?)")


class Chat:
    """The chat format of a model.

    Args:
      tokenizer: its tokenizer.
      template: Jinja source.
      bos, eos: the special tokens that begin and end a text; None if the model has none.
      stop_ids: ids that end a response. The special token that closes a response in the template is added to them.

    Raises:
      ChatError: the template cannot be rendered, or does not end a response.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: str, bos: str | None, eos: str | None, stop_ids: Sequence[int] = ()
    ) -> None:
        self.tokenizer, self.template, self.bos, self.eos = tokenizer, template, bos, eos
        self._token_variables = {"bos_token": bos or "", "eos_token": eos or ""}
        longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._prompt_parts: dict[tuple[str, ...], list[Part]] = {}  # by roles
        self._response_parts, closing_id = self._parse_response(set(stop_ids))
        self.stop_ids = tuple(sorted({*stop_ids, closing_id}))

    # --- the format ---

    def _parse(self, roles: tuple[str, ...], add_generation_prompt: bool) -> list[Part]:
        """The parts of a conversation of these roles; with `add_generation_prompt`, up to the assistant's content."""
        messages = [{"role": role, "content": _PLACEHOLDER.format(i)} for i, role in enumerate(roles)]
        parts: list[Part] = []
        text = render(
            self.template, messages=messages, add_generation_prompt=add_generation_prompt, **self._token_variables
        )
        if len(text) > MAX_LITERAL:
            raise ChatError(f"the chat template writes {len(text):,} characters, at most {MAX_LITERAL:,} are read")
        start = 0
        for match in _PLACEHOLDER_PATTERN.finditer(text):
            parts += self._parse_literal(text[start : match.start()])
            parts.append(ContentSlot(int(match[2]), bool(match[1]), bool(match[3])))
            start = match.end()
        parts += self._parse_literal(text[start:])
        rendered = [p.message for p in parts if isinstance(p, ContentSlot)]
        if rendered != list(range(len(roles))):
            raise ChatError(
                f"the chat template renders messages {brief(rendered)} of {len(roles)} ({', '.join(roles)}): it must "
                "render each message once, in order"
            )
        return parts

    def _parse_literal(self, text: str) -> list[Part]:
        """Literal text of the template as ids of special tokens and text."""
        parts: list[Part] = []
        start = 0
        for match in self._special_pattern.finditer(text):
            parts += [text[start : match.start()], self.tokenizer.special_tokens[match[0]]]
            start = match.end()
        return [p for p in [*parts, text[start:]] if p != ""]

    def _parse_response(self, stop_ids: set[int]) -> tuple[list[Part], int]:
        """The parts that a response adds to a prompt, up to the special token that closes it; and that token's id."""
        prompt, conversation = self._parse(("user",), True), self._parse(("user", "assistant"), False)
        response = _remove_prefix(conversation, prompt)
        content = next(i for i, p in enumerate(response) if isinstance(p, ContentSlot))
        for i, part in enumerate(response[content:], content):
            if isinstance(part, int):
                return response[: i + 1], part
        if self.eos is None and not stop_ids:
            raise ChatError(
                "the chat template does not end a response, and the model has no end-of-text token: give a template "
                "with a special token after the response"
            )
        closing_id = self.tokenizer.special_tokens[self.eos] if self.eos else min(stop_ids)
        return [*response[: content + 1], closing_id], closing_id

    # --- texts to ids ---

    def has_system_role(self) -> bool:
        """Whether the template renders a system message, and not as if the assistant had written it."""
        try:
            rendered = self._parse(("system", "user"), True)
        except ChatError:
            return False
        try:
            return rendered != self._parse(("assistant", "user"), True)
        except ChatError:  # it knows that an assistant does not begin
            return True

    def message_ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Prompt ids of a conversation of (role, text) messages, with roles "user" and "assistant", and "system" for
        the first one where the template has that role."""
        roles = tuple(role for role, _ in messages)
        if roles not in self._prompt_parts:
            self._prompt_parts[roles] = self._parse(roles, True)
        return self._fill(self._prompt_parts[roles], [text for _, text in messages])

    def prompt_ids(self, prompt: str) -> list[int]:
        """Prompt ids of a conversation with the single user message `prompt`."""
        return self.message_ids([("user", prompt)])

    def example(self, prompt: str, response: str) -> Example:
        """A prompt and its response. The response and the id that closes it are the targets."""
        prompt_ids = self.prompt_ids(prompt)
        preceded_by = "control" if isinstance(self._prompt_parts[("user",)][-1], int) else "text"
        response_ids = self._fill(self._response_parts, ["", response], preceded_by)
        return Example(prompt_ids + response_ids, [False] * len(prompt_ids) + [True] * len(response_ids))

    def _fill(self, parts: Sequence[Part], contents: Sequence[str], preceded_by: PrecededBy = "nothing") -> list[int]:
        """Ids of the parts, with the contents in their slots."""
        ids: list[int] = []
        for is_special, group in itertools.groupby(parts, lambda p: isinstance(p, int)):
            if is_special:
                ids += group
            else:
                text = "".join(p if isinstance(p, str) else _strip(p, contents[p.message]) for p in group)
                ids += self.tokenizer.encode(text, preceded_by) if text else []
            preceded_by = "control"
        return ids

    def render_text(self, prompt: str, response: str) -> str:
        """The full text of a prompt and its response, with special tokens."""
        token_of = {i: token for token, i in self.tokenizer.special_tokens.items()}
        parts = [*self._parse(("user",), True), *self._response_parts]
        contents = (prompt, response)
        return "".join(
            token_of[p] if isinstance(p, int) else p if isinstance(p, str) else contents[p.message] for p in parts
        )

    def encode_prefix(self, text: str) -> list[int]:
        """Ids of plain text that the model shall continue.

        Raises:
          ChatError: the text is empty and the model has no token that begins a text.
        """
        ids = [self.tokenizer.special_tokens[self.bos]] if self.bos else []
        ids += self.tokenizer.encode(text, "nothing") if text else []
        if not ids:
            raise ChatError("the text is empty, and the model has no begin-of-text token: give a text to continue")
        return ids

    def document(self, text: str) -> Example:
        """Plain text for a base model: everything after the first id is a target."""
        ids = self.encode_prefix(text) + ([self.tokenizer.special_tokens[self.eos]] if self.eos else [])
        return Example(ids, [False] + [True] * (len(ids) - 1))

    def response_text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without stop ids and special tokens."""
        return self.tokenizer.decode([i for i in ids if i not in self.stop_ids]).strip()


def _strip(slot: ContentSlot, text: str) -> str:
    text = text if slot.keep_left else text.lstrip()
    return text if slot.keep_right else text.rstrip()


def _remove_prefix(parts: list[Part], prefix: list[Part]) -> list[Part]:
    """`parts` without `prefix`. The last text of the prefix may be the beginning of a longer text in `parts`."""
    same = len(prefix) - 1
    last, rest = prefix[-1], parts[same:]
    if parts[:same] == prefix[:same] and rest:
        if rest[0] == last:
            return rest[1:]
        if isinstance(last, str) and isinstance(rest[0], str) and rest[0].startswith(last):
            return [rest[0][len(last) :], *rest[1:]]
    raise ChatError(
        "the chat template begins an assistant message differently with add_generation_prompt: give a template that "
        "begins both alike"
    )


def chunk_document(document: Example, seq_len: int) -> list[Example]:
    """A text cut into chunks of at most `seq_len` tokens. A chunk's first token has no context, so it is no target."""
    starts = range(0, len(document.ids), seq_len)
    return [Example(document.ids[i : i + seq_len], [False, *document.target[i + 1 : i + seq_len]]) for i in starts]


@cache
def builtin_template(name: str) -> str:
    """A built-in template, one of BUILTIN_TEMPLATES."""
    return resources.files(__package__).joinpath("templates", f"{name}.jinja").read_text().rstrip("\n")


def render(template: str, **values: Any) -> str:
    """The rendered text of a template: in this process if it is ours, in one that can be ended if it came with a model.

    Raises:
      ChatError: the template cannot be rendered, or takes too long.
    """
    try:
        if template in map(builtin_template, BUILTIN_TEMPLATES):
            return rendering.render(template, values)
        return worker_process.render(template, values)
    except ValueError as error:
        line = escape(" ".join(str(error).split()))[:1000]
        raise ChatError(f"the chat template cannot be rendered: {line}") from None
