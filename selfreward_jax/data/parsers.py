"""Record forms: a raw record becomes a prompt with its answers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from selfreward_jax.data.answers import DROP_REASONS as DROP_REASONS
from selfreward_jax.data.answers import MAX_CHARACTERS as MAX_CHARACTERS
from selfreward_jax.data.answers import (
    ROW_REMEDY,
    Answer,
    Dropped,
    as_number,
    parse_responses,
    unwanted_reason,
)
from selfreward_jax.data.fields import FIELD_NAMES, first_name, first_value, has, is_empty
from selfreward_jax.data.limits import MAX_ANSWERS, Malformed
from selfreward_jax.data.messages import (
    ASSISTANT_ROLES,
    USER_ROLES,
    Turns,
    as_objects,
    first_user_turn,
    message_role,
    text_of,
    turns_of,
)
from selfreward_jax.data.unread import READ_KINDS
from selfreward_jax.method.rows import Row

# Fields of an answer, which it does not inherit from the record.
_OWN_FIELDS = {
    name for field in ("response", "score", "judgment", "rank", "label", "weight") for name in FIELD_NAMES[field]
}
# Fields of a record that its answers inherit, and others up to this number, which only a message names.
_INHERITED = {
    *(name for field in ("prompt", "system", "context", "history", "language") for name in FIELD_NAMES[field]),
    *(name for field in ("messages", "chosen") for name in FIELD_NAMES[field]),
    *("deleted", "review_result"),
}
_MAX_NAMED = 50
# Fields of the forms that are not flat.
_STRUCTURED = {"human_ref_A"}.union(
    *(FIELD_NAMES[field] for field in ("chosen", "rejected", "instances", "answers", "messages"))
)


class ParsedRecord(NamedTuple):
    """A record's prompt; each answer, or why it is dropped; and the system text that the prompt begins with."""

    prompt: Any
    answers: list[Answer | Dropped]
    system: str = ""


class ReadPrompt(NamedTuple):
    """A record's prompt, the system text that it begins with, why the record cannot be used ("" if it can), and what
    follows the prompt."""

    prompt: Any
    system: str = ""
    reason: str = ""
    later: Turns = []


def parse_record(record: Any, language: str) -> ParsedRecord:
    """The prompt and the answers of one record.

    Args:
      record: in any of these forms, with the names of FIELD_NAMES: flat {prompt, response[, score | rank | label]
        [, judgment]}, with an Alpaca `input`, a context, a system text and a history; {prompt, answers: [...]};
        {chosen, rejected}, texts or messages; {messages}; Self-Instruct's {instruction, instances}; SHP's
        {history, human_ref_A, human_ref_B}; an Open Assistant tree. A field that is null or empty is absent.
      language: as in `merge.read_prompts_with_responses`.
    """
    if isinstance(record, Malformed):
        return ParsedRecord(
            "", [Dropped("malformed", record.reason, record.remedy or f"files hold {READ_KINDS}; {ROW_REMEDY}")]
        )
    if not isinstance(record, dict):
        return ParsedRecord("", [Dropped("malformed", "not a JSON object")])
    if isinstance(record.get("prompt"), str) and _STRUCTURED.isdisjoint(record):
        return _parse_flat([record], language)  # as below, for most records
    if _is_tree(prompt := record.get("prompt")):
        return _parse_tree(prompt, language)
    if "human_ref_A" in record and "human_ref_B" in record:
        return _parse_pair(_shp_pair(record), language)
    if has(record, "chosen") and has(record, "rejected"):
        return _parse_pair(record, language)
    if has(record, "instances"):
        return _parse_instances(record, language)
    if has(record, "answers"):
        return _parse_answers(record, language)
    if has(record, "response"):
        return _parse_flat([record], language)
    if has(record, "messages"):
        return _parse_conversation(record, language)
    return _parse_empty(record, language)


def _parse_empty(record: Row, language: str) -> ParsedRecord:
    """A record in which no answer is filled in, read as the form that its fields name: that names what is missing."""
    if first_name(record, "chosen") and first_name(record, "rejected"):
        return _parse_pair(record, language)
    if has(record, "chosen") or has(record, "rejected"):
        return ParsedRecord("", [Dropped("malformed", "only one of chosen and rejected is given")] * 2)
    if "instances" in record:
        return _parse_instances(record, language)
    if first_name(record, "answers"):
        return _parse_answers(record, language)
    if not first_name(record, "response") and any(name in record for name in FIELD_NAMES["messages"]):
        return _parse_conversation(record, language)
    return _parse_flat([record], language)


def _is_tree(prompt: Any) -> bool:
    """Whether a prompt is the root of a tree, not messages in an object."""
    if not isinstance(prompt, dict) or not prompt:
        return False
    return "content" not in prompt and "messages" not in prompt and as_objects(prompt) is None


def read_prompt(record: Row, turns: Turns | None = None) -> ReadPrompt:
    """A record's prompt.

    An Alpaca input and a context are below the prompt, a system text is above it, as a system message is.

    Args:
      record: any.
      turns: the conversation that begins with the prompt; None: the record's field with the prompt is read.
    """
    name = first_name(record, "prompt")
    value = record[name] if name else None
    from_field = turns is None
    if from_field:
        turns = turns_of(value, "user")
    if turns is None:
        return ReadPrompt(value)  # no text: the check of the prompt says so
    if not turns:
        return ReadPrompt(None)
    prompt, system, later = first_user_turn(turns)
    if prompt is None:
        return ReadPrompt(None, reason="no prompt", later=later)
    if isinstance(prompt, str) and prompt.strip():
        alpaca_input, context = record.get("input"), record.get("context")
        if from_field and "instruction" in record and name != "input" and _is_filled(alpaca_input):
            prompt = f"{prompt}\n\n{alpaca_input}"
        if from_field and _is_filled(context):
            prompt = f"{prompt}\n\n{context}"
        system = "\n\n".join(dict.fromkeys(filter(_is_filled, (text_of(first_value(record, "system")), system))))
        if system and not prompt.startswith(f"{system}\n\n"):
            prompt = f"{system}\n\n{prompt}"
    elif system:
        prompt, system = system, ""
    has_history = isinstance(record.get("history"), list) and not is_empty(record["history"])
    return ReadPrompt(prompt, system, "later turn" if has_history or (later and from_field) else "", later)


def _is_filled(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _parse_flat(rows: list[Row], language: str) -> ParsedRecord:
    """Flat rows with one prompt. Two answers in a list are a pair, the better one first."""
    outputs = rows[0].get("output")
    if len(rows) == 1 and isinstance(outputs, list) and len(outputs) == 2 and all(map(_is_filled, outputs)):
        return _parse_pair({**rows[0], "chosen": outputs[0], "rejected": outputs[1]}, language)
    prompt, system, reason, _ = read_prompt(rows[0])
    if reason:
        return ParsedRecord("", [Dropped(reason)] * len(rows))
    return ParsedRecord(prompt, parse_responses(prompt, rows, language), system)


def _parse_answers(record: Row, language: str) -> ParsedRecord:
    name = first_name(record, "answers")
    answers = as_objects(record[name])
    if answers is None:
        return ParsedRecord("", [Dropped("malformed", f"{name} is not a list of objects")])
    if len(answers) > MAX_ANSWERS:
        return ParsedRecord("", [_too_many(name, len(answers))])
    inherited = (name for i, name in enumerate(record) if i < _MAX_NAMED or name in _INHERITED)
    shared = {name: record[name] for name in inherited if name not in _OWN_FIELDS}
    parsed = _parse_flat([{**shared, **answer} for answer in answers] or [record], language)
    return parsed if answers else parsed._replace(answers=[Dropped("no answer")])


def _parse_instances(record: Row, language: str) -> ParsedRecord:
    instances = as_objects(record["instances"])
    if instances is None:
        return ParsedRecord("", [Dropped("malformed", "instances is not a list of objects")])
    if not instances:
        return ParsedRecord("", [Dropped("no answer")])
    parsed = _parse_flat([{**record, **instances[0]}], language)
    return parsed._replace(answers=parsed.answers + [Dropped("later instance")] * (len(instances) - 1))


def _parse_pair(record: Row, language: str) -> ParsedRecord:
    """A chosen and a rejected answer. If they are whole conversations, their common beginning is the prompt."""
    chosen, rejected = (turns_of(first_value(record, field), "assistant") for field in ("chosen", "rejected"))
    if not chosen or not rejected:
        return ParsedRecord(
            "", [Dropped("malformed", "chosen and rejected are neither strings nor lists of messages")] * 2
        )
    context = None
    if chosen[0][0] not in ASSISTANT_ROLES:
        limit = min(len(chosen), len(rejected)) - 1
        shared = next((i for i in range(limit) if chosen[i] != rejected[i]), limit)
        context, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif not has(record, "prompt"):
        context = turns_of(first_value(record, "messages"), "user") or None
    prompt, system, reason, later_turns = read_prompt(record, context)
    if later_turns or len(chosen) > 1 or len(rejected) > 1:
        reason = "later turn"
    if reason:
        return ParsedRecord("", [Dropped(reason)] * 2)
    texts = chosen[0][1], rejected[0][1]
    if texts[0] == texts[1]:
        return ParsedRecord("", [Dropped("pair of equal texts")] * 2)
    scores = next((s for s in map(_pair_scores, (record, record.get("metadata"))) if s), None)
    if scores and (scores[0] == scores[1] or as_number(scores[0]) == as_number(scores[1]) is not None):
        return ParsedRecord("", [Dropped("pair of equal scores")] * 2)
    shared_fields = {name: value for name, value in record.items() if name not in _OWN_FIELDS}
    rows = [{**shared_fields, "response": t, "score": s} for t, s in zip(texts, scores or (1, 0), strict=True)]
    parsed = parse_responses(prompt, rows, language)
    if isinstance(parsed[0], Dropped) and isinstance(parsed[1], Answer):
        parsed[1] = parsed[1]._replace(label=False)  # alone it would be the prompt's best answer
    answers = [a._replace(ranked=not scores) if isinstance(a, Answer) else a for a in parsed]
    return ParsedRecord(prompt, answers, system)


def _pair_scores(fields: Any) -> tuple[Any, Any] | None:
    for names in zip(FIELD_NAMES["chosen_score"], FIELD_NAMES["rejected_score"], strict=True):
        if isinstance(fields, dict) and all(not is_empty(fields.get(name)) for name in names):
            return fields[names[0]], fields[names[1]]
    return None


def _shp_pair(record: Row) -> Row:
    """A row of SHP as a pair. Its votes are those of one thread, so they only order its two answers."""
    answers = record["human_ref_A"], record["human_ref_B"]
    votes = as_number(record.get("score_A")), as_number(record.get("score_B"))
    label = as_number(record.get("labels"))
    if label is None and None not in votes:
        label = 0 if votes[0] < votes[1] else 1
    chosen, rejected = answers if label == 1 else answers[::-1]
    prompt = record.get("history") if isinstance(record.get("history"), str) else record.get("post")
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if label is None or votes[0] == votes[1] is not None:
        pair |= {"score_chosen": 0, "score_rejected": 0}  # nothing orders them
    return pair | {name: record[name] for name in ("lang", "language") if name in record}


def _parse_conversation(record: Row, language: str) -> ParsedRecord:
    """The first user turn of a conversation and the answer to it."""
    name = first_name(record, "messages") or next(name for name in FIELD_NAMES["messages"] if name in record)
    turns = turns_of(record[name], "user")
    if not turns or isinstance(record[name], str):
        return ParsedRecord("", [Dropped("malformed", f"{name} is not a list of messages")])
    prompt, system, reason, later_turns = read_prompt(record, turns)
    num_answers = sum(role in ASSISTANT_ROLES for role, _ in later_turns)
    if reason:
        return ParsedRecord("", [Dropped(reason)] * max(1, num_answers))
    if not later_turns or later_turns[0][0] not in ASSISTANT_ROLES:
        return ParsedRecord("", [Dropped("no answer")] + [Dropped("later turn")] * num_answers)
    row = {field: value for field, value in record.items() if field not in FIELD_NAMES["response"]}
    first = parse_responses(prompt, [{**row, "response": later_turns[0][1]}], language)
    return ParsedRecord(prompt, first + [Dropped("later turn")] * (num_answers - 1), system)


def _parse_tree(root: Row, language: str) -> ParsedRecord:
    """The prompt of an Open Assistant tree and the answers to it. Deeper answers belong to later turns."""
    replies = as_objects(root.get("replies") or [])
    if replies is None or message_role(root) not in USER_ROLES | {""}:
        return ParsedRecord(
            "", [Dropped("malformed", "the tree's prompt is not a user message with a list of replies")]
        )
    rows = [{**reply, "response": reply.get("text")} for reply in replies if message_role(reply) in ASSISTANT_ROLES]
    if len(rows) > MAX_ANSWERS:
        return ParsedRecord("", [_too_many("replies", len(rows))])
    prompt, root_dropped = root.get("text"), unwanted_reason(root, language)
    parsed = [root_dropped] * len(rows) if root_dropped else parse_responses(prompt, rows, language)
    parsed = parsed or [Dropped("no answer")]
    later = sum(message_role(node) in ASSISTANT_ROLES for node in descendants(root)) - len(rows)
    return ParsedRecord(prompt, parsed + [Dropped("later turn")] * later)


def descendants(root: Row) -> Iterator[Row]:
    """All messages below `root` in a tree."""
    stack = [root]
    while stack:
        replies = as_objects(stack.pop().get("replies") or []) or []
        yield from replies
        stack += replies


def _too_many(field: str, count: int) -> Dropped:
    return Dropped("malformed", f"{field} has {count:,} items, more than {MAX_ANSWERS:,}", "divide the record")
