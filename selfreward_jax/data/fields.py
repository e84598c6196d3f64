"""The fields of a record, and the names that each has in the data sets that people have."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from selfreward_jax.method.rows import Row

# The first name is ours. Where a record has several, the first that is neither null nor empty counts.
FIELD_NAMES = {
    "prompt": ("prompt", "prompt_text", "instruction", "question", "query", "input"),
    "system": ("system", "system_prompt", "system_message", "system_instruction", "systemInstruction"),
    "context": ("context",),
    "history": ("history",),
    "messages": ("messages", "conversations", "conversation", "contents"),
    "response": ("response", "response_text", "output", "answer", "completion"),
    "answers": ("answers", "completions"),
    "chosen": ("chosen", "chosen_messages", "preferred_output"),
    "rejected": ("rejected", "rejected_messages", "non_preferred_output"),
    "chosen_score": ("score_chosen", "chosen_score", "chosen_rating"),
    "rejected_score": ("score_rejected", "rejected_score", "rejected_rating"),
    "score": ("score", "quality_score", "rating", "fine-grained_score", "overall_score", "helpfulness"),
    "rank": ("rank",),
    "label": ("label",),
    "weight": ("weight", "loss_weight"),
    "judgment": ("judgment", "judgement"),
    "language": ("lang", "language"),
    "instances": ("instances",),
}
KNOWN_NAMES = frozenset(name for names in FIELD_NAMES.values() for name in names)
# A score under the other names counts only if it is a number: text under them may mean something else.
STRICT_SCORES = ("score", "quality_score")
# Fields that change what a row means, and that no form uses.
_NEVER_USED = ("tools", "functions", "images", "image")
# Fields of which something may not be used. Most records have none of them.
_DOUBTFUL = {"input", *_NEVER_USED}.union(
    *(FIELD_NAMES[field] for field in ("context", "system", "history", "label", "weight", "chosen", "messages"))
)


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, white space, or a list or object without items."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, list | dict) and not value)


def first_name(row: Row, field: str) -> str | None:
    """The name under which a row has a field: the first that is not empty, or else the first that is not null."""
    empty_name = None
    for name in FIELD_NAMES[field]:
        if (value := row.get(name)) is not None:
            if not is_empty(value):
                return name
            empty_name = empty_name or name
    return empty_name


def first_value(row: Row, field: str) -> Any:
    """The value of a field under any of its names, as `first_name` chooses it. None if the row has none."""
    name = first_name(row, field)
    return None if name is None else row[name]


def has(row: Row, field: str) -> bool:
    """Whether a row has a field that is not empty."""
    name = first_name(row, field)
    return name is not None and not is_empty(row[name])


def rename(record: Any, columns: Mapping[str, str]) -> Any:
    """A record whose columns have our names, and the answers in it.

    Args:
      record: a record of any kind.
      columns: the column of each field of FIELD_NAMES that has a name of the user's own.
    """
    if not columns or not isinstance(record, dict):
        return record
    own = {FIELD_NAMES[field][0]: record[column] for field, column in columns.items() if column in record}
    renamed = {name: value for name, value in record.items() if name not in columns.values()} | own
    answers = renamed.get("answers")
    if isinstance(answers, list):
        renamed["answers"] = [rename(a, {f: c for f, c in columns.items() if f != "answers"}) for a in answers]
    return renamed


def unused_fields(record: Any) -> Iterator[str]:
    """The fields of a record that change what it means, and are not used, each with what is not used of it."""
    if not isinstance(record, dict) or _DOUBTFUL.isdisjoint(record):
        return
    prompt = first_name(record, "prompt")
    if not is_empty(record.get("input")) and "instruction" not in record and prompt != "input":
        yield "input (it follows an instruction only)"
    if not is_empty(context := record.get("context")):
        if not isinstance(context, str):
            yield "context (it is no text)"
        elif has(record, "messages") and not has(record, "prompt"):
            yield "context (the prompt is in messages)"
    system = first_value(record, "system")
    if not isinstance(system, str | dict) and not is_empty(system):
        yield "system (it is no text)"
    if isinstance(record.get("history"), str) and not is_empty(record["history"]) and "human_ref_A" not in record:
        yield "history (it is no list of turns)"
    if not is_empty(label := record.get("label")) and as_label(label) is None:
        yield "label (it is neither true nor false)"
    if not is_empty(record.get("weight")) and record["weight"] != 1:
        yield "weight (all rows count alike)"
    if has(record, "response") and (has(record, "chosen") or has(record, "messages")) and not has(record, "answers"):
        yield "response" if has(record, "chosen") else "messages"
    yield from (name for name in _NEVER_USED if not is_empty(record.get(name)))
    if any(map(_has_tools, _messages(record))):
        yield "tool_calls (of messages)"


def _messages(record: Row) -> Iterable[Any]:
    messages = first_value(record, "messages")
    return messages[:100] if isinstance(messages, list) else ()


def _has_tools(message: Any) -> bool:
    return isinstance(message, dict) and not is_empty(message.get("tool_calls"))


def as_label(value: Any) -> bool | None:
    """A label of KTO, also as CSV writes it. None if it is no such label."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower()) if len(value) < 20 else None
    return value if isinstance(value, bool) else None
