"""The answers of flat rows: their texts, scores and labels are checked here."""

import re
from itertools import islice
from typing import Any, NamedTuple

from selfreward_jax.data.fields import FIELD_NAMES, STRICT_SCORES, as_label, first_value, is_empty
from selfreward_jax.data.languages import is_other_language
from selfreward_jax.data.limits import shown
from selfreward_jax.data.messages import ASSISTANT_ROLES, NoWeight, turns_of
from selfreward_jax.method.rows import Row

MAX_CHARACTERS = 1_000_000  # of one text: more means a broken file, and would be tokenized before the length check
# Why an answer is dropped during reading. The first three are faults of the file itself.
DROP_REASONS = (
    "malformed",
    "empty text",
    "lone surrogate",
    "other language",
    "deleted",
    "rejected in review",
    "later turn",
    "later instance",
    "no answer",
    "no prompt",
    "pair of equal texts",
    "pair of equal scores",
    "prompt differs only in punctuation",
    "duplicate answer",
    "weight is 0",
)


ROW_REMEDY = "each row is a JSON object with prompt and response, or of another form that docs/data.md lists"
SCORE_REMEDY = (
    "a score is a number on any one scale, higher is better: write letters and words as numbers, such as A = 5 to "
    "E = 1; or give each answer a rank (a number, 0 is best)"
)


class Answer(NamedTuple):
    """An answer to a prompt, with its rating.

    response: the text.
    score: higher is better; a rank r becomes the score -r. None: not rated.
    judgment: a written judgment of the answer.
    ranked: the score only orders this prompt's answers (it comes from a rank, or from chosen and rejected).
    label: whether it is a good answer, as KTO labels it. None: no label.
    """

    response: str
    score: float | None = None
    judgment: str | None = None
    ranked: bool = False
    label: bool | None = None


class Dropped(NamedTuple):
    """Takes the place of an answer that is dropped.

    reason: one of DROP_REASONS.
    detail: a description of the fault, if the file itself is at fault.
    remedy: what to do about it.
    """

    reason: str
    detail: str = ""
    remedy: str = ROW_REMEDY


def parse_responses(prompt: Any, rows: list[Row], language: str) -> list[Answer | Dropped]:
    """The answers of flat rows with one prompt, which is checked once: it may be long, and they may be many."""
    prompt_fault = None if prompt is None else _text_fault("prompt", prompt)
    return [_parse_answer(prompt is None, prompt_fault, row, language) for row in rows]


def _parse_answer(no_prompt: bool, prompt_fault: Dropped | None, row: Row, language: str) -> Answer | Dropped:
    """The answer of a flat row, or why it is dropped."""
    response, judgment = _response(row), first_value(row, "judgment") or None
    if isinstance(response, Dropped):
        return response
    faults = (
        _missing("prompt", row) if no_prompt else prompt_fault,
        _missing("response", row) if response is None else _text_fault("response", response),
        judgment and _text_fault("judgment", judgment),
    )
    if dropped := unwanted_reason(row, language) or next(filter(None, faults), None):
        return dropped
    label = as_label(row.get("label"))
    name = _score_name(row)
    if name is None:
        return Answer(response, None, judgment, label=label)
    if fault := _number_fault(name, row[name]):
        return fault
    number = as_number(row[name])
    return Answer(response, float(-number if name == "rank" else number), judgment, name == "rank", label)


def _response(row: Row) -> Any:
    """The text of a row's answer. It may be the one message of a list, as TRL has it."""
    response = first_value(row, "response")
    if isinstance(response, list | dict) and (turns := turns_of(response, "assistant")):
        if len(turns) > 1:
            return Dropped("later turn")
        if turns[0][0] in ASSISTANT_ROLES:
            response = turns[0][1]
    return Dropped("weight is 0") if isinstance(response, NoWeight) else response


def _score_name(row: Row) -> str | None:
    """The field with a row's score or rank."""
    for name in (*FIELD_NAMES["score"], "rank"):
        value = row.get(name)
        if not is_empty(value) and (name in (*STRICT_SCORES, "rank") or as_number(value) is not None):
            return name
    return None


def _missing(field: str, row: Row) -> Dropped:
    """That a row has no prompt or response, and the keys that it has instead."""
    in_messages = any(name in row for name in (*FIELD_NAMES["messages"], *FIELD_NAMES["chosen"]))
    if field == "response" and in_messages:
        return Dropped("malformed", "an answer has neither content nor value", "give the text of each message")
    made_here = {"response", "score"} if any(name in row for name in FIELD_NAMES["chosen"]) else {}  # for a pair
    keys = ", ".join(
        k[:200] if value is not None else f"{k[:200]} (null)"
        for k, value in islice(row.items(), 200)
        if k not in made_here
    )
    *names, last = FIELD_NAMES[field]
    remedy = f"give one under the key {', '.join(names)} or {last}, or a list of messages; docs/data.md lists all forms"
    return Dropped("malformed", f"it has no {field}, its keys are {keys!r:.200}", remedy)


def as_number(value: Any) -> float | None:
    """A number, also one that is written as a text. None if it is neither."""
    if isinstance(value, str):
        return float(value) if len(value) < 60 and _NUMBER.fullmatch(value) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


_NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)


def _number_fault(name: str, value: Any) -> Dropped | None:
    """What is wrong with a score or rank, None if nothing is."""
    number = as_number(value)
    # The comparison excludes NaN, and the bound keeps the mapping of scores finite.
    if number is not None and -1e100 < number < 1e100:
        return None
    remedy = SCORE_REMEDY if number is None else "give a finite number"
    return Dropped("malformed", f"{name} is {shown(value)}, not a number", remedy)


def unwanted_reason(row: Row, language: str) -> Dropped | None:
    """Why a well-formed message is not wanted."""
    row_language = first_value(row, "language")
    if language and isinstance(row_language, str) and is_other_language(row_language, language):
        return Dropped("other language")
    if row.get("deleted") is True:
        return Dropped("deleted")
    return Dropped("rejected in review") if row.get("review_result") is False else None


def _text_fault(field: str, text: Any) -> Dropped | None:
    """What is wrong with a text, None if nothing is."""
    if not isinstance(text, str):
        return Dropped("malformed", f"{field} is {shown(text)}, not a string", "write it as one text in quotes")
    if not text.strip():
        return Dropped("empty text", f"{field} is {shown(text)}, an empty text", "fill it in, or leave the row out")
    if len(text) > MAX_CHARACTERS:
        fault = f"{field} has {len(text):,} characters, more than {MAX_CHARACTERS:,}"
        return Dropped("malformed", fault, "leave the row out, or divide it")
    try:
        text.encode()
    except UnicodeEncodeError:
        fault = f"{field} contains a lone surrogate (half of a character)"
        return Dropped("lone surrogate", fault, "write the whole character, or leave it out")
    return None
