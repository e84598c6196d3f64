"""One model's chat format as token spans: the ids of a prompt, and the ids of a response, which carry loss.

The format is a chat template (Jinja, as in Hugging Face folders): the model's own, or a built-in one. The template is
rendered once with a placeholder for the content of each message. The result is cut into special tokens, literal text
and content slots. A message's content is encoded as plain text, together with the literal text around it. So content
cannot imitate a special token, the tokens are the same as those of the full text, and no span must be searched for.

A response is what is read back from its ids: text that the template writes around an answer is taken off again. Where
the template knows thinking blocks, the answer alone is read (`thinking.py`).
"""

import functools
import itertools
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from selfreward_jax.config.errors import brief
from selfreward_jax.llm import thinking
from selfreward_jax.llm.chat_templates import ChatError as ChatError
from selfreward_jax.llm.chat_templates import builtin_template as builtin_template
from selfreward_jax.llm.chat_templates import render as render
from selfreward_jax.llm.tokenizer import PrecededBy, Tokenizer

MAX_LITERAL = 200_000  # characters that a template adds to the texts of a conversation
# Text that is meant to be one token: <|im_end|>, <start_of_turn>, [INST].
_MARK = re.compile(r"<[^\s<>]{1,60}>|\[[^\s\[\]]{1,60}\]")
_IS_MARK = re.compile(r"<[|\uff5c].*[|\uff5c]>|<(start|end)_of_turn>")
_THINKING = 2  # the index of a response's reasoning, after its prompt and its answer


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
      tokenizer: its tokenizer. Its words that are marks of the template, such as <|im_end|>, become special.
      template: Jinja source.
      bos, eos: the special tokens that begin and end a text; None if the model has none.
      stop_ids: ids that end a response. The special token that closes a response in the template is added to them.
      thinks: whether the model thinks before it answers, if its template knows thinking blocks. If not, the prompt
        closes the block, and answers alone are taught.

    Raises:
      ChatError: the template cannot be rendered, or does not end a response.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        bos: str | None,
        eos: str | None,
        stop_ids: Sequence[int] = (),
        thinks: bool = False,
    ) -> None:
        self.tokenizer, self.template, self.bos, self.eos = tokenizer, template, bos, eos
        self.has_thinking = thinking.has_block(template)
        self.thinks = thinks and self.has_thinking
        self._variables = {"bos_token": bos or "", "eos_token": eos or ""}
        if self.has_thinking:  # both names are in use
            self._variables |= {"enable_thinking": thinks, "thinking": thinks}
        prompt, conversation = self._render(("user",), True), self._render(("user", "assistant"), False)
        names = {*_MARK.findall(prompt), *_MARK.findall(conversation)} - {*thinking.TAGS}
        if names - tokenizer.special_tokens.keys():
            tokenizer.reserve(names)
        # The template's marks that are no tokens: they are encoded as text.
        self.spelled_marks = sorted(n for n in names if n not in tokenizer.special_tokens and _IS_MARK.fullmatch(n))
        longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._prompt_parts: dict[tuple[str, ...], list[Part]] = {}  # by roles
        self._layout = self._find_layout(prompt, conversation)
        self._response_parts, closing_id = self._parse_response(conversation, set(stop_ids))
        self._around = self._find_around()
        self.stop_ids = tuple(sorted({*stop_ids, closing_id}))

    # --- the format ---

    def render(self, messages: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
        """The text of a conversation of (role, text) messages, as the template writes it."""
        as_dicts = [{"role": role, "content": text} for role, text in messages]
        text = render(self.template, messages=as_dicts, add_generation_prompt=add_generation_prompt, **self._variables)
        if len(text) > MAX_LITERAL + sum(len(text) for _, text in messages):
            raise ChatError(f"the chat template writes {len(text):,} characters, at most {MAX_LITERAL:,} are read")
        return text

    def prompt_text(self, messages: Sequence[tuple[str, str]]) -> str:
        """The text of a conversation up to the assistant's answer, as the model reads it."""
        return self.render(messages, add_generation_prompt=True) + self._layout.prompt_end

    def _render(self, roles: tuple[str, ...], add_generation_prompt: bool) -> str:
        """The text of a conversation of these roles, with placeholders for the contents."""
        return self.render([(role, _PLACEHOLDER.format(i)) for i, role in enumerate(roles)], add_generation_prompt)

    def _cut(self, text: str) -> list[Part]:
        """The parts of a rendered text."""
        parts: list[Part] = []
        start = 0
        for match in _PLACEHOLDER_PATTERN.finditer(text):
            parts += self._cut_literal(text[start : match.start()])
            parts.append(ContentSlot(int(match[2]), bool(match[1]), bool(match[3])))
            start = match.end()
        return parts + self._cut_literal(text[start:])

    def _cut_literal(self, text: str) -> list[Part]:
        """Literal text of the template as ids of special tokens and text."""
        parts: list[Part] = []
        start = 0
        for match in self._special_pattern.finditer(text):
            parts += [text[start : match.start()], self.tokenizer.special_tokens[match[0]]]
            start = match.end()
        return [p for p in [*parts, text[start:]] if p != ""]

    def _check_messages(self, parts: Sequence[Part], roles: tuple[str, ...]) -> None:
        rendered = [p.message for p in parts if isinstance(p, ContentSlot)]
        if rendered != list(range(len(roles))):
            raise ChatError(
                f"the chat template renders messages {brief(rendered)} of {len(roles)} ({', '.join(roles)}): it must "
                "render each message once, in order"
            )

    def _parse_prompt(self, roles: tuple[str, ...]) -> list[Part]:
        """The parts of a conversation of these roles, up to the assistant's answer."""
        parts = self._cut(self._render(roles, True) + self._layout.prompt_end)
        self._check_messages(parts, roles)
        return parts

    def _find_layout(self, prompt: str, conversation: str) -> thinking.Layout:
        for text, roles in ((prompt, ("user",)), (conversation, ("user", "assistant"))):
            self._check_messages(self._cut(text), roles)
        answer = list(_PLACEHOLDER_PATTERN.finditer(conversation))[1]
        layout = thinking.find_layout(
            prompt, self._render(("user",), False), conversation[: answer.start()], self.thinks
        )
        if layout is None:
            raise ChatError(
                "the chat template begins an assistant message differently with add_generation_prompt: give a "
                "template that begins both alike"
            )
        return layout

    def _parse_response(self, conversation: str, stop_ids: set[int]) -> tuple[list[Part], int]:
        """The parts that a response adds to a prompt, up to the special token that closes it; and that token's id."""
        answer = list(_PLACEHOLDER_PATTERN.finditer(conversation))[1]
        before, close, lead = self._layout.before, self._layout.close, self._layout.lead
        if close:
            before += _PLACEHOLDER.format(_THINKING)
        response = self._cut(before + close + lead + conversation[answer.start() :])
        content = next(i for i, p in enumerate(response) if isinstance(p, ContentSlot) and p.message == 1)
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

    def _find_around(self) -> tuple[list[str], list[str]]:
        """The template's texts before and after an answer that are part of a response."""
        content = next(i for i, p in enumerate(self._response_parts) if isinstance(p, ContentSlot) and p.message == 1)
        lead = self._cut_literal(self._layout.lead)
        sides = lead, self._response_parts[content + 1 :]
        before, after = ([p.strip() for p in side if isinstance(p, str) and p.strip()] for side in sides)
        return before, after

    def exported_template(self) -> str:
        """The template with which other programs write the same prompts: thinking is switched as here where they do not
        say, and a generation prompt is complete."""
        switch, end = "", self._layout.prompt_end
        if self.has_thinking:
            switch = "".join(
                f"{{% if {name} is not defined %}}{{% set {name} = {str(self.thinks).lower()} %}}{{% endif %}}"
                for name in ("enable_thinking", "thinking")
            )
            switch *= not self.template.startswith(switch)
        if end:
            end = f"{{% if add_generation_prompt %}}{{{{ {json.dumps(end)} }}}}{{% endif %}}"
        return f"{switch}{self.template}{end}"

    # --- texts to ids ---

    @functools.cached_property
    def has_system_role(self) -> bool:
        """Whether the template renders a system message, and not as if the assistant had written it."""
        try:
            rendered = self._parse_prompt(("system", "user"))
        except ChatError:
            return False
        try:
            return rendered != self._parse_prompt(("assistant", "user"))
        except ChatError:  # it knows that an assistant does not begin
            return True

    def message_ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Prompt ids of a conversation of (role, text) messages, with roles "user" and "assistant", and "system" for
        the first one where the template has that role."""
        roles = tuple(role for role, _ in messages)
        if roles not in self._prompt_parts:
            self._prompt_parts[roles] = self._parse_prompt(roles)
        texts = [self._split(text).answer if role == "assistant" else text for role, text in messages]
        return self._fill(self._prompt_parts[roles], texts)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Prompt ids of a conversation with the single user message `prompt`."""
        return self.message_ids([("user", prompt)])

    def with_system(self, prompt: str, system: str) -> list[tuple[str, str]]:
        """A prompt as messages. The system text that it begins with is one of its own if the template has that role."""
        text = prompt.removeprefix(f"{system}\n\n")
        if not system or text == prompt or not self.has_system_role:
            return [("user", prompt)]
        return [("system", system), ("user", text)]

    def example(self, prompt: str, response: str, system: str = "") -> Example:
        """A prompt, which begins with the system text if there is one, and its response. The response and the id that
        closes it are the targets. A thinking block at the beginning of the response is taught as reasoning if the model
        thinks, and else left out."""
        messages = self.with_system(prompt, system)
        prompt_ids = self.message_ids(messages)
        last = self._prompt_parts[tuple(role for role, _ in messages)][-1]
        preceded_by = "control" if isinstance(last, int) else "text"
        reply = self._split(response)
        if self.thinks and not self._layout.close:  # the template leaves the block to the response
            reply = thinking.Reply("", response)
        response_ids = self._fill(self._response_parts, ["", reply.answer, reply.thinking], preceded_by)
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
        parts = [*self._parse_prompt(("user",)), *self._response_parts]
        reply = self._split(response)
        contents = (prompt, reply.answer, reply.thinking)
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

    def split_response(self, ids: Sequence[int]) -> thinking.Reply:
        """The reasoning and the answer of generated ids, without stop ids, special tokens, and what the template writes
        around an answer."""
        text = self.tokenizer.decode([i for i in ids if i not in self.stop_ids]).strip()
        reply = thinking.split_reply(text, self._layout.opened) if self.has_thinking else thinking.Reply("", text)
        answer, (before, after) = reply.answer, self._around
        for literal in before:
            answer = answer.removeprefix(literal).lstrip()
        for literal in reversed(after):
            answer = answer.removesuffix(literal).rstrip()
        return reply._replace(answer=answer)

    def response_text(self, ids: Sequence[int]) -> str:
        """The answer of generated ids, as `split_response`."""
        return self.split_response(ids).answer

    def _split(self, response: str) -> thinking.Reply:
        """A given response. A block that is not closed is no reasoning."""
        if not self.has_thinking or thinking.CLOSE not in response:
            return thinking.Reply("", response)
        return thinking.split_reply(response)


def _strip(slot: ContentSlot, text: str) -> str:
    text = text if slot.keep_left else text.lstrip()
    return text if slot.keep_right else text.rstrip()


def chunk_document(document: Example, seq_len: int) -> list[Example]:
    """A text cut into chunks of at most `seq_len` tokens. A chunk's first token has no context, so it is no target."""
    starts = range(0, len(document.ids), seq_len)
    return [Example(document.ids[i : i + seq_len], [False, *document.target[i + 1 : i + seq_len]]) for i in starts]
