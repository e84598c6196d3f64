"""What raw records say, in whatever form they came: prompts and their answers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from selfreward_jax.data.readers import Malformed

Row = dict[str, Any]

# Names under which a field of a flat row may come; the first is ours.
NAMES = {
    "prompt": ("prompt", "prompt_text", "instruction", "question"),
    "response": ("response", "response_text", "output", "answer"),
    "score": ("score", "quality_score"),
}
MAX_CHARACTERS = 1_000_000  # of one text: more is a broken file, and would be tokenised before it is found too long
# Why an answer is left out while reading. The first three are faults of whoever wrote the file.
DROP_REASONS = (
    "malformed/with an empty text/with half of a character/in another language/deleted/rejected in review/"
    "in a later turn/in a later instance/without an answer/without a prompt/in a pair of equal texts/"
    "in a pair of equal scores/under a prompt that differs in signs alone/repeated answer"
).split("/")
USER, ASSISTANT, _SYSTEM = {"user", "human", "prompter"}, {"assistant", "gpt", "chatgpt", "bot", "model"}, {"system"}


class Answer(NamedTuple):
    """An answer, and what was thought of it.

    score: higher is better; a rank r is -r. None: nobody gave one.
    judgment: what a judge wrote of it.
    ranked: the score is only a place among this prompt's answers (of a rank, or of chosen and rejected).
    """

    response: str
    score: float | None = None
    judgment: str | None = None
    ranked: bool = False


class Dropped(NamedTuple):
    """Stands where an answer is left out.

    filter: one of FILTERS.
    fault: what is wrong, in words, where the file itself is at fault.
    """

    reason: str
    detail: str = ""


ParsedRecord = tuple[str, list[Answer | Dropped]]  # a record's prompt; its answers, or why they are left out


def parse(record: Any, language: str) -> ParsedRecord:
    """What one record says.

    Args:
      record: of any of the forms: flat {prompt, response[, score | rank][, judgment]} under the names in NAMES, with
        an Alpaca `input`; {prompt, answers: [...]}; {chosen, rejected}, texts or messages; {messages} or
        {conversations}; Self-Instruct's {instruction, instances}; an Open Assistant tree.
      language: as in `read_asked`.
    """
    if isinstance(record, Malformed):
        return "", [Dropped("malformed", record.reason)]
    if not isinstance(record, dict):
        return "", [Dropped("malformed", "not a JSON object")]
    if isinstance(record.get("prompt"), dict):
        return _tree(record["prompt"], language)
    if "chosen" in record and "rejected" in record:
        return _pair(record, language)
    if "instances" in record:
        return _instances(record, language)
    if record.get("answers") is not None:
        return _answers(record, language)
    if _first_present(record, "response") is None and ("messages" in record or "conversations" in record):
        return _conversation(record, language)
    return _flat([record], language)


def _flat(rows: list[Row], language: str) -> ParsedRecord:
    """Flat rows with one prompt. An Alpaca row's input stands below its instruction."""
    prompt, given = _first_present(rows[0], "prompt"), rows[0].get("input")
    if "instruction" in rows[0] and isinstance(prompt, str) and isinstance(given, str) and given.strip():
        prompt = f"{prompt}\n\n{given}"
    return prompt, [_answer(prompt, row, language) for row in rows]


def _answers(record: Row, language: str) -> ParsedRecord:
    answers = _as_objects(record["answers"])
    if answers is None:
        return "", [Dropped("malformed", "answers is not a list of objects")]
    own = {*NAMES["response"], *NAMES["score"], "rank", "judgment"}  # an answer has these of itself or not at all
    shared = {name: value for name, value in record.items() if name not in own}
    prompt, said = _flat([{**shared, **answer} for answer in answers] or [record], language)
    return prompt, said if answers else [Dropped("without an answer")]


def _instances(record: Row, language: str) -> ParsedRecord:
    instances = _as_objects(record["instances"])
    if instances is None:
        return "", [Dropped("malformed", "instances is not a list of objects")]
    if not instances:
        return "", [Dropped("without an answer")]
    prompt, said = _flat([{**record, **instances[0]}], language)
    return prompt, said + [Dropped("in a later instance")] * (len(instances) - 1)


def _pair(record: Row, language: str) -> ParsedRecord:
    """A chosen and a rejected answer; where these are conversations, what both begin with is the prompt."""
    lead, chosen = _turns(record.get("prompt"), "user"), _turns(record["chosen"], "assistant")
    rejected = _turns(record["rejected"], "assistant")
    if lead is None or not chosen or not rejected:
        return "", [Dropped("malformed", "chosen and rejected are neither texts nor lists of messages")] * 2
    if chosen[0][0] not in ASSISTANT:
        most = min(len(chosen), len(rejected)) - 1
        shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
        lead, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    prompt, more = _first_user_turn(lead)
    if more or len(chosen) > 1 or len(rejected) > 1:
        return "", [Dropped("in a later turn")] * 2
    texts = chosen[0][1], rejected[0][1]
    if texts[0] == texts[1]:
        return "", [Dropped("in a pair of equal texts")] * 2
    given = record.get("metadata")
    scores = next((s for s in map(_pair_scores, (record, given)) if s), None)
    if scores and scores[0] == scores[1]:
        return "", [Dropped("in a pair of equal scores")] * 2
    rows = [{**record, "response": t, "score": s} for t, s in zip(texts, scores or (1, 0), strict=True)]
    said = [_answer(prompt, row, language) for row in rows]
    return prompt, [one._replace(ranked=not scores) if isinstance(one, Answer) else one for one in said]


def _pair_scores(fields: Any) -> tuple[Any, Any] | None:
    for names in ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"):
        if isinstance(fields, dict) and all(fields.get(name) is not None for name in names):
            return fields[names[0]], fields[names[1]]
    return None


def _conversation(record: Row, language: str) -> ParsedRecord:
    """A conversation's first turn."""
    name = "messages" if "messages" in record else "conversations"
    turns = _turns(record[name], "user")
    if not turns or isinstance(record[name], str):
        return "", [Dropped("malformed", f"{name} is not a list of messages")]
    prompt, rest = _first_user_turn(turns)
    answers = sum(role in ASSISTANT for role, _ in rest)
    if prompt is None:
        return "", [Dropped("without a prompt")] * max(1, answers)
    if not rest or rest[0][0] not in ASSISTANT:
        return "", [Dropped("without an answer")] + [Dropped("in a later turn")] * answers
    first = _answer(prompt, {**record, "response": rest[0][1]}, language)
    return prompt, [first] + [Dropped("in a later turn")] * (answers - 1)


def _tree(root: Row, language: str) -> ParsedRecord:
    """An Open Assistant tree's prompt and the answers to it; deeper ones belong to later turns."""
    replies = _as_objects(root.get("replies") or [])
    if replies is None or role_of(root) not in USER | {""}:
        return "", [Dropped("malformed", "the tree's prompt is no user's message with a list of replies")]
    rows = [{**reply, "response": reply.get("text")} for reply in replies if role_of(reply) in ASSISTANT]
    prompt, left = root.get("text"), _unwanted_reason(root, language)
    said = [left or _answer(prompt, row, language) for row in rows] or [Dropped("without an answer")]
    later = sum(role_of(node) in ASSISTANT for node in descendants(root)) - len(rows)
    return prompt, said + [Dropped("in a later turn")] * later


def descendants(root: Row) -> Iterator[Row]:
    """All messages under one."""
    waiting = [root]
    while waiting:
        replies = _as_objects(waiting.pop().get("replies") or []) or []
        yield from replies
        waiting += replies


def _first_user_turn(turns: list[tuple[str, Any]]) -> tuple[Any, list[tuple[str, Any]]]:
    """The user's first text, below the system's; and the turns after it. None where no user begins."""
    start = 1 if turns and turns[0][0] in _SYSTEM else 0
    if len(turns) <= start or turns[start][0] not in USER:
        return None, turns
    texts = [text for _, text in turns[: start + 1]]
    odd = [text for text in texts if not isinstance(text, str)]
    return odd[0] if odd else "\n\n".join(t for t in texts if t.strip()), turns[start + 1 :]


def _turns(value: Any, role: str) -> list[tuple[str, Any]] | None:
    """Messages as (role, text); a text alone is one of `role`. None where they are no messages."""
    if value is None or isinstance(value, str):
        return [] if value is None else [(role, value)]
    messages = _as_objects(value)
    return None if messages is None else [(role_of(m), m.get("content", m.get("value"))) for m in messages]


def role_of(message: Row) -> str:
    """Who says a message, in lower case; empty if it does not say."""
    return str(message.get("role", message.get("from", ""))).lower()


def _as_objects(value: Any) -> list[Row] | None:
    """A list of objects; from TFDS it comes as an object of equally long lists. None where it is neither."""
    if isinstance(value, dict) and value and all(isinstance(of, list) for of in value.values()):
        value = [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    return value if isinstance(value, list) and all(isinstance(one, dict) for one in value) else None


def _first_present(row: Row, field: str) -> Any:
    return next((row[name] for name in NAMES[field] if row.get(name) is not None), None)


def _answer(prompt: Any, row: Row, language: str) -> Answer | Dropped:
    """The answer that a flat row holds, if it is wanted and nothing is wrong with it."""
    response, judgment = _first_present(row, "response"), row.get("judgment") or None
    faults = (_fault("prompt", prompt), _fault("response", response), judgment and _fault("judgment", judgment))
    if left := _unwanted_reason(row, language) or next(filter(None, faults), None):
        return left
    score, rank = _first_present(row, "score"), row.get("rank")
    name, number = ("rank", rank) if score is None else ("score", score)
    if number is None:
        return Answer(response, None, judgment)
    # No NaN lies between two numbers, and the bound keeps the mapping of scores finite.
    if isinstance(number, bool) or not isinstance(number, int | float) or not -1e100 < number < 1e100:
        return Dropped("malformed", f"{name} is {number!r:.60}, not a number")
    return Answer(response, float(number if name == "score" else -number), judgment, ranked=name == "rank")


def _unwanted_reason(row: Row, language: str) -> Dropped | None:
    """Why a message is not wanted, though nothing is wrong with its form."""
    own = row.get("lang", row.get("language"))
    if language and isinstance(own, str) and own:
        tag, wanted = own.lower().replace("_", "-"), language.lower().replace("_", "-")
        if tag != wanted and not tag.startswith(f"{wanted}-"):
            return Dropped("in another language")
    if row.get("deleted") is True:
        return Dropped("deleted")
    return Dropped("rejected in review") if row.get("review_result") is False else None


def _fault(field: str, text: Any) -> Dropped | None:
    """What is wrong with a text."""
    if not isinstance(text, str):
        return Dropped("malformed", f"{field} is {text!r:.60}, not a text")
    if not text.strip():
        return Dropped("with an empty text", f"{field} is {text!r:.60}, not a text")
    if len(text) > MAX_CHARACTERS:
        return Dropped("malformed", f"{field} has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return Dropped("with half of a character", f"{field} holds half of a character (a lone surrogate)")
    return None
