"""Conversations of every kind as turns: roles and texts."""

import re
from typing import Any

from selfreward_jax.data.fields import is_empty
from selfreward_jax.method.rows import Row

USER_ROLES = {"user", "human", "prompter"}
ASSISTANT_ROLES = {"assistant", "gpt", "chatgpt", "bot", "model", "chatbot", "bing", "bard", "ai"}
SYSTEM_ROLES = {"system", "developer"}
TOOL_ROLES = {"tool", "function", "observation", "function_call", "ipython"}
# Names of a message's role and text; null means absent.
_ROLE_NAMES = ("role", "from")
_CONTENT_NAMES = ("content", "value", "parts", "message", "text")

Turns = list[tuple[str, Any]]  # the messages of a conversation as (role, text)
_MARK = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")  # no white space after a line break: linear time


class NoWeight:
    """Takes the place of the text of an answer that has the weight 0: it is not to be learned."""


def turns_of(value: Any, role: str) -> Turns | None:
    """Messages as (role, text), without those that only call a tool or hold its result.

    A text that is no string is as it was, for the caller's check.

    Args:
      value: a list of messages; one message; a list of objects {input, output}; an object with messages; a text, which
        is one turn of `role`, or several if it has the marks "Human:" and "Assistant:". None: no turns.
      role: "user" or "assistant".

    Returns:
      None if it is nothing of that kind.
    """
    if value is None or isinstance(value, str):
        return [] if value is None else marked_turns(value) or [(role, value)]
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    elif isinstance(value, dict) and any(name in value for name in _ROLE_NAMES) and not _is_table(value):
        value = [value]
    messages = as_objects(value)
    if messages is None:
        return None
    turns: Turns = []
    for message in messages:
        if "input" in message and "output" in message:
            turns += [("user", message["input"]), ("assistant", message["output"])]
        elif not _is_about_tools(message):
            turns.append((message_role(message), _message_text(message)))
    return turns


def _is_about_tools(message: Row) -> bool:
    calls = not is_empty(message.get("tool_calls")) or not is_empty(message.get("function_call"))
    return message_role(message) in TOOL_ROLES or (calls and is_empty(_content(message)))


def _message_text(message: Row) -> Any:
    weight = message.get("weight", message.get("loss_weight"))
    if weight == 0 and isinstance(weight, int | float) and message_role(message) in ASSISTANT_ROLES:
        return NoWeight()
    return _content(message)


def _content(message: Row) -> Any:
    names = [name for name in _CONTENT_NAMES if message.get(name) is not None]
    return text_of(message[next((n for n in names if not is_empty(message[n])), names[0])]) if names else None


def text_of(content: Any) -> Any:
    """The text of a message's content: of a list of parts, those that are text. What has other parts stays as it is."""
    if isinstance(content, dict) and "parts" in content:
        content = content["parts"]
    if not isinstance(content, list) or not content or not all(isinstance(part, dict) for part in content):
        return content
    spoken = [part for part in content if part.get("type") not in ("thinking", "reasoning")]
    texts = [next((part[n] for n in ("text", "value") if part.get(n) is not None), None) for part in spoken]
    return "\n".join(texts) if texts and all(isinstance(text, str) for text in texts) else content


def marked_turns(text: str) -> Turns | None:
    """The turns of a text with the marks "Human:" and "Assistant:"; None if it does not begin with the first."""
    if not text[:100].lstrip().startswith("Human:") or "\n\nAssistant:" not in text:
        return None
    parts = _MARK.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns: Turns = [(roles[mark], turn.strip()) for mark, turn in zip(parts[1::2], parts[2::2], strict=True)]
    return turns[:-1] if turns[-1] == ("assistant", "") else turns


def first_user_turn(turns: Turns) -> tuple[Any, str, Turns]:
    """The first user text; the system texts before it, if there are any; and the later turns. None if no user turn is
    first.

    A text that is not a string is returned as it is, for the caller's check.
    """
    start = next((i for i, (role, _) in enumerate(turns) if role not in SYSTEM_ROLES), len(turns))
    if len(turns) <= start or turns[start][0] not in USER_ROLES:
        return None, "", turns
    *system, user = (text for _, text in turns[: start + 1])
    not_strings = [text for text in (*system, user) if not isinstance(text, str)]
    if not_strings:
        return not_strings[0], "", turns[start + 1 :]
    return user, "\n\n".join(text for text in system if text.strip()), turns[start + 1 :]


def message_role(message: Row) -> str:
    """The role of a message in lower case; empty if it has none, the name of its type if it is no text."""
    role = next((message[name] for name in _ROLE_NAMES if message.get(name) is not None), None)
    if role is None:
        role = "" if not any(name in message for name in _ROLE_NAMES) else None
    return role.lower() if isinstance(role, str) else type(role).__name__


def _is_table(value: Row) -> bool:
    return all(isinstance(column, list) for column in value.values())


def as_objects(value: Any) -> list[Row] | None:
    """A list of objects; TFDS gives it as an object of equally long lists. None if it is neither."""
    if isinstance(value, dict) and value and _is_table(value):
        value = [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None
