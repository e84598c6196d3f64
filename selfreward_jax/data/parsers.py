"""Record formats: a raw record becomes a prompt with its answers."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from selfreward_jax.data.limits import MAX_ANSWERS, Malformed, shown
from selfreward_jax.data.unread import READ_KINDS
from selfreward_jax.method.rows import Row

# Names that a field of a flat row may have in user data; the first is ours.
FIELD_NAMES = {
    "prompt": ("prompt", "prompt_text", "instruction", "question"),
    "response": ("response", "response_text", "output", "answer"),
    "score": ("score", "quality_score"),
    "judgment": ("judgment", "judgement"),
}
# Fields of a record that its answers inherit, and others up to this number, which only a message names.
_INHERITED = {*FIELD_NAMES["prompt"], "input", "lang", "language", "deleted", "review_result"}
_INHERITED |= {"messages", "conversations", "chosen"}
_MAX_NAMED = 50
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
)
USER_ROLES, ASSISTANT_ROLES = {"user", "human", "prompter"}, {"assistant", "gpt", "chatgpt", "bot", "model"}
_SYSTEM_ROLES = {"system"}


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
    """

    response: str
    score: float | None = None
    judgment: str | None = None
    ranked: bool = False


class Dropped(NamedTuple):
    """Takes the place of an answer that is dropped.

    reason: one of DROP_REASONS.
    detail: a description of the fault, if the file itself is at fault.
    remedy: what to do about it.
    """

    reason: str
    detail: str = ""
    remedy: str = ROW_REMEDY


ParsedRecord = tuple[str, list[Answer | Dropped]]  # a record's prompt, and each answer or why it is dropped
Turns = list[tuple[str, Any]]  # the messages of a conversation as (role, text)


def parse_record(record: Any, language: str) -> ParsedRecord:
    """The prompt and the answers of one record.

    Args:
      record: in any of these formats: flat {prompt, response[, score | rank][, judgment]} under the names in
        FIELD_NAMES, with an Alpaca `input`; {prompt, answers: [...]}; {chosen, rejected}, texts or messages; {messages}
        or {conversations}; Self-Instruct's {instruction, instances}; an Open Assistant tree.
      language: as in `merge.read_prompts_with_responses`.
    """
    if isinstance(record, Malformed):
        return "", [Dropped("malformed", record.reason, record.remedy or f"files hold {READ_KINDS}; {ROW_REMEDY}")]
    if not isinstance(record, dict):
        return "", [Dropped("malformed", "not a JSON object")]
    if isinstance(record.get("prompt"), dict):
        return _parse_tree(record["prompt"], language)
    if "chosen" in record and "rejected" in record:
        return _parse_pair(record, language)
    if "instances" in record:
        return _parse_instances(record, language)
    if record.get("answers") is not None:
        return _parse_answers(record, language)
    if _first_present(record, "response") is None and ("messages" in record or "conversations" in record):
        return _parse_conversation(record, language)
    return _parse_flat([record], language)


def _parse_flat(rows: list[Row], language: str) -> ParsedRecord:
    """Flat rows with one prompt. The input of an Alpaca row follows its instruction."""
    prompt, alpaca_input = _first_present(rows[0], "prompt"), rows[0].get("input")
    if "instruction" in rows[0] and isinstance(prompt, str) and isinstance(alpaca_input, str) and alpaca_input.strip():
        prompt = f"{prompt}\n\n{alpaca_input}"
    return prompt, _parse_responses(prompt, rows, language)


def _parse_answers(record: Row, language: str) -> ParsedRecord:
    answers = _as_objects(record["answers"])
    if answers is None:
        return "", [Dropped("malformed", "answers is not a list of objects")]
    if len(answers) > MAX_ANSWERS:
        return "", [_too_many("answers", len(answers))]
    # Answers do not inherit these fields from the record.
    own_fields = {*FIELD_NAMES["response"], *FIELD_NAMES["score"], *FIELD_NAMES["judgment"], "rank"}
    inherited = (name for i, name in enumerate(record) if i < _MAX_NAMED or name in _INHERITED)
    shared = {name: record[name] for name in inherited if name not in own_fields}
    prompt, parsed = _parse_flat([{**shared, **answer} for answer in answers] or [record], language)
    return prompt, parsed if answers else [Dropped("no answer")]


def _parse_instances(record: Row, language: str) -> ParsedRecord:
    instances = _as_objects(record["instances"])
    if instances is None:
        return "", [Dropped("malformed", "instances is not a list of objects")]
    if not instances:
        return "", [Dropped("no answer")]
    prompt, parsed = _parse_flat([{**record, **instances[0]}], language)
    return prompt, parsed + [Dropped("later instance")] * (len(instances) - 1)


def _parse_pair(record: Row, language: str) -> ParsedRecord:
    """A chosen and a rejected answer. If they are whole conversations, their common beginning is the prompt."""
    context, chosen = _turns(record.get("prompt"), "user"), _turns(record["chosen"], "assistant")
    rejected = _turns(record["rejected"], "assistant")
    if context is None or not chosen or not rejected:
        return "", [Dropped("malformed", "chosen and rejected are neither strings nor lists of messages")] * 2
    if chosen[0][0] not in ASSISTANT_ROLES:
        limit = min(len(chosen), len(rejected)) - 1
        shared = next((i for i in range(limit) if chosen[i] != rejected[i]), limit)
        context, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    prompt, later_turns = _first_user_turn(context)
    if later_turns or len(chosen) > 1 or len(rejected) > 1:
        return "", [Dropped("later turn")] * 2
    texts = chosen[0][1], rejected[0][1]
    if texts[0] == texts[1]:
        return "", [Dropped("pair of equal texts")] * 2
    scores = next((s for s in map(_pair_scores, (record, record.get("metadata"))) if s), None)
    if scores and scores[0] == scores[1]:
        return "", [Dropped("pair of equal scores")] * 2
    rows = [{**record, "response": t, "score": s} for t, s in zip(texts, scores or (1, 0), strict=True)]
    parsed = _parse_responses(prompt, rows, language)
    return prompt, [a._replace(ranked=not scores) if isinstance(a, Answer) else a for a in parsed]


def _pair_scores(fields: Any) -> tuple[Any, Any] | None:
    for names in ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"):
        if isinstance(fields, dict) and all(fields.get(name) is not None for name in names):
            return fields[names[0]], fields[names[1]]
    return None


def _parse_conversation(record: Row, language: str) -> ParsedRecord:
    """The first user turn of a conversation and the answer to it."""
    name = "messages" if "messages" in record else "conversations"
    turns = _turns(record[name], "user")
    if not turns or isinstance(record[name], str):
        return "", [Dropped("malformed", f"{name} is not a list of messages")]
    prompt, later_turns = _first_user_turn(turns)
    num_answers = sum(role in ASSISTANT_ROLES for role, _ in later_turns)
    if prompt is None:
        return "", [Dropped("no prompt")] * max(1, num_answers)
    if not later_turns or later_turns[0][0] not in ASSISTANT_ROLES:
        return "", [Dropped("no answer")] + [Dropped("later turn")] * num_answers
    first = _parse_responses(prompt, [{**record, "response": later_turns[0][1]}], language)
    return prompt, first + [Dropped("later turn")] * (num_answers - 1)


def _parse_tree(root: Row, language: str) -> ParsedRecord:
    """The prompt of an Open Assistant tree and the answers to it. Deeper answers belong to later turns."""
    replies = _as_objects(root.get("replies") or [])
    if replies is None or message_role(root) not in USER_ROLES | {""}:
        return "", [Dropped("malformed", "the tree's prompt is not a user message with a list of replies")]
    rows = [{**reply, "response": reply.get("text")} for reply in replies if message_role(reply) in ASSISTANT_ROLES]
    if len(rows) > MAX_ANSWERS:
        return "", [_too_many("replies", len(rows))]
    prompt, root_dropped = root.get("text"), _unwanted_reason(root, language)
    parsed = [root_dropped] * len(rows) if root_dropped else _parse_responses(prompt, rows, language)
    parsed = parsed or [Dropped("no answer")]
    later = sum(message_role(node) in ASSISTANT_ROLES for node in descendants(root)) - len(rows)
    return prompt, parsed + [Dropped("later turn")] * later


def descendants(root: Row) -> Iterator[Row]:
    """All messages below `root` in a tree."""
    stack = [root]
    while stack:
        replies = _as_objects(stack.pop().get("replies") or []) or []
        yield from replies
        stack += replies


def _first_user_turn(turns: Turns) -> tuple[Any, Turns]:
    """The first user text, after the system text if there is one; and the later turns. None if no user turn is first.

    A text that is not a string is returned as it is, for the caller's check.
    """
    start = 1 if turns and turns[0][0] in _SYSTEM_ROLES else 0
    if len(turns) <= start or turns[start][0] not in USER_ROLES:
        return None, turns
    texts = [text for _, text in turns[: start + 1]]
    not_strings = [text for text in texts if not isinstance(text, str)]
    return not_strings[0] if not_strings else "\n\n".join(t for t in texts if t.strip()), turns[start + 1 :]


def _turns(value: Any, role: str) -> Turns | None:
    """Messages as (role, text). A single text is one turn of `role`. None if they are not messages."""
    if value is None or isinstance(value, str):
        return [] if value is None else [(role, value)]
    messages = _as_objects(value)
    return None if messages is None else [(message_role(m), m.get("content", m.get("value"))) for m in messages]


def message_role(message: Row) -> str:
    """The role of a message in lower case; empty if it has none, the name of its type if it is no text."""
    role = message.get("role", message.get("from", ""))
    return role.lower() if isinstance(role, str) else type(role).__name__


def _as_objects(value: Any) -> list[Row] | None:
    """A list of objects; TFDS gives it as an object of equally long lists. None if it is neither."""
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None


def _first_present(row: Row, field: str) -> Any:
    return next((row[name] for name in FIELD_NAMES[field] if row.get(name) is not None), None)


def _too_many(field: str, count: int) -> Dropped:
    return Dropped("malformed", f"{field} has {count:,} items, more than {MAX_ANSWERS:,}", "divide the record")


def _parse_responses(prompt: Any, rows: list[Row], language: str) -> list[Answer | Dropped]:
    """The answers of flat rows with one prompt, which is checked once: it may be long, and they may be many."""
    prompt_fault = None if prompt is None else _text_fault("prompt", prompt)
    return [_parse_answer(prompt is None, prompt_fault, row, language) for row in rows]


def _parse_answer(no_prompt: bool, prompt_fault: Dropped | None, row: Row, language: str) -> Answer | Dropped:
    """The answer of a flat row, or why it is dropped."""
    response, judgment = _first_present(row, "response"), _first_present(row, "judgment") or None
    faults = (
        _missing("prompt", row) if no_prompt else prompt_fault,
        _missing("response", row) if response is None else _text_fault("response", response),
        judgment and _text_fault("judgment", judgment),
    )
    if dropped := _unwanted_reason(row, language) or next(filter(None, faults), None):
        return dropped
    name = next((n for n in (*FIELD_NAMES["score"], "rank") if row.get(n) is not None), None)
    if name is None:
        return Answer(response, None, judgment)
    if fault := _number_fault(name, row[name]):
        return fault
    return Answer(response, float(-row[name] if name == "rank" else row[name]), judgment, ranked=name == "rank")


def _missing(field: str, row: Row) -> Dropped:
    """That a row has no prompt or response, and the keys that it has instead."""
    if field == "response" and any(name in row for name in ("messages", "conversations", "chosen")):
        return Dropped("malformed", "an answer has neither content nor value", "give the text of each message")
    made_here = {"response", "score"} if "chosen" in row else {}  # by `_parse_pair`
    keys = ", ".join(
        k[:200] if value is not None else f"{k[:200]} (null)"
        for k, value in islice(row.items(), 200)
        if k not in made_here
    )
    *names, last = FIELD_NAMES[field]
    remedy = f"give one under the key {', '.join(names)} or {last}, or a list of messages; docs/data.md lists all forms"
    return Dropped("malformed", f"it has no {field}, its keys are {keys!r:.200}", remedy)


def _number_fault(name: str, number: Any) -> Dropped | None:
    """What is wrong with a score or rank, None if nothing is."""
    # The comparison excludes NaN, and the bound keeps the mapping of scores finite.
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if is_number and -1e100 < number < 1e100:
        return None
    if is_number:
        remedy = "give a finite number"
    elif isinstance(number, str) and re.fullmatch(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)\s*", number[:60]):
        remedy = "write the number without quotes"
    else:
        remedy = SCORE_REMEDY
    return Dropped("malformed", f"{name} is {shown(number)}, not a number", remedy)


def _unwanted_reason(row: Row, language: str) -> Dropped | None:
    """Why a well-formed message is not wanted."""
    row_language = row.get("lang", row.get("language"))
    if language and isinstance(row_language, str) and row_language:
        tag, wanted = row_language[:100].lower().replace("_", "-"), language.lower().replace("_", "-")
        if tag != wanted and not tag.startswith(f"{wanted}-"):
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
