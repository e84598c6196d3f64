"""All records of a source as prompts with their answers: merged by prompt, the best answer chosen, scores mapped."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from selfreward_jax.data.parsers import ASSISTANT, DROP_REASONS, USER, Answer, Dropped, descendants, parse, role_of
from selfreward_jax.data.readers import DataError, Located, read
from selfreward_jax.method.judge_parsing import PARSERS
from selfreward_jax.method.prompt_generation import normalize

Row = dict[str, Any]

MAX_REPORTED = 10  # faults named one by one


class PromptWithResponses(NamedTuple):
    """A prompt, its answers, and the place of the record that it was first read from."""

    prompt: str
    answers: list[Answer]
    place: str


def read_prompts_with_responses(
    source: str, language: str, max_malformed_frac: float
) -> tuple[list[PromptWithResponses], Counter[str]]:
    """Prompts and answers of a source (data/readers.py), in order of first appearance.

    Records with the same prompt after `normalise` are one, and an answer that it has already is dropped.

    Args:
      source: what `read` takes.
      language: code of the language wanted, as in "en"; empty: any.
      most_bad: share of faulty answers above which the source is refused.

    Returns:
      The prompts with at least one answer, and counts: "records", "read" (answers) and those of FILTERS.

    Raises:
      SeedError: the source cannot be read, is empty or has too many faults.
    """
    counts: Counter[str] = Counter(records=0, read=0, **dict.fromkeys(DROP_REASONS, 0))
    merged: dict[str, tuple[str, str, dict[str, Answer]]] = {}
    faults = []
    for place, record in _records(source, counts):
        prompt, said = parse(record, language)
        counts["read"] += len(said)
        for one in said:
            if isinstance(one, Answer):
                one = _merge(merged, prompt, place, one)
            if isinstance(one, Dropped):
                counts[one.reason] += 1
                faults += [f"{place}: {one.detail}"] if one.detail else []
    if not counts["records"]:
        raise DataError(f"{source} is empty: each row is a JSON object with prompt and response")
    if len(faults) > max_malformed_frac * counts["read"] or (faults and not merged):
        raise DataError(
            f"{faults[0]} ({len(faults)} of {counts['read']} rows are malformed, data.max_malformed_frac allows {max_malformed_frac:.0%}); "
            "each row is a JSON object with prompt and response, or has another form of those in data/parsers.py"
        )
    for fault in faults[:MAX_REPORTED]:
        print(f"left out: {fault}", flush=True)
    if len(faults) > MAX_REPORTED:
        print(f"left out: ... and {len(faults) - MAX_REPORTED} more", flush=True)
    return [
        PromptWithResponses(prompt, list(answers.values()), place) for prompt, place, answers in merged.values()
    ], counts


def _merge(merged: dict[str, tuple[str, str, dict[str, Answer]]], prompt: str, place: str, answer: Answer) -> Any:
    """Puts an answer under its prompt; `Left` where it has no place there."""
    first, _, answers = merged.setdefault(normalize(prompt), (prompt, place, {}))
    if _signs(first) != _signs(prompt):
        return Dropped("under a prompt that differs in signs alone")
    known = answers.get(answer.response)
    if known is None or (known.score is None and known.judgment is None):
        answers[answer.response] = answer
    return answer if known is None else Dropped("repeated answer")


def _signs(prompt: str) -> list[str]:
    # `normalise` sees no signs, but 2 + 3 is another question than 2 * 3, and C another language than C++.
    return re.findall(r"[^\w\s.,;:!?()\[\]\"'`\u00b4\u2010-\u201e\u2026\xab\xbb-]|-(?=\s*\d)", prompt)


def _records(source: str, counts: Counter[str]) -> Iterator[Located]:
    """The records of a source; messages that stand in rows of their own come last, as the trees that they make."""
    messages = []
    for place, record in read(source):
        counts["records"] += 1
        if isinstance(record, dict) and {"message_id", "role", "text"} <= record.keys():
            messages.append((place, record))
        else:
            yield place, record
    yield from _trees(messages, counts)


def _trees(messages: Iterable[Located], counts: Counter[str]) -> Iterator[Located]:
    """Message rows with a parent_id -> trees {prompt: {text, ..., replies}}, each at the place of its root."""
    nodes: dict[str, Row] = {}
    places = {}
    answers = Counter[str]()
    for place, row in messages:
        name, of = str(row["message_id"]), "assistant" if role_of(row) in ASSISTANT else "other"
        answers[of] += 1
        if name in nodes:
            counts["read"] += of == "assistant"
            counts["repeated answer"] += of == "assistant"
            answers[of] -= 1
        else:
            nodes[name], places[name] = {**row, "replies": []}, place
    for node in nodes.values():
        if (parent := node.get("parent_id")) and str(parent) in nodes:
            nodes[str(parent)]["replies"].append(node)
    for name, node in nodes.items():
        if not node.get("parent_id") and role_of(node) in USER:
            answers["assistant"] -= sum(role_of(n) in ASSISTANT for n in descendants(node))
            yield places[name], {"prompt": node}
    # What hangs on no root: its prompt stands in no row.
    counts["read"] += answers["assistant"]
    counts["without a prompt"] += answers["assistant"]


def keep_best(asked: Iterable[PromptWithResponses], counts: Counter[str]) -> dict[str, PromptWithResponses]:
    """Each prompt with its best answer alone; with all of them where none has a score."""
    found = {}
    for one in asked:
        rated = [a for a in one.answers if a.score is not None]
        answers = [max(rated, key=lambda a: a.score)] if rated else one.answers
        counts["not the best answer"] += len(one.answers) - len(answers)
        found[normalize(one.prompt)] = one._replace(answers=answers)
    return found


def normalize_scores(
    asked: Sequence[PromptWithResponses], counts: Counter[str], source: str
) -> tuple[dict[str, PromptWithResponses], dict[str, float]]:
    """Each prompt with its answers' scores from 0 to 5, without the answers that have none; and the range of scores.

    The score that a written judgment ends in counts as it is. Scores given as numbers are mapped linearly from their
    range in the file. Ranked answers of a prompt lie equally spaced from 0 to 5; one alone has no place.
    """
    given = [a.score for one in asked for a in one.answers if _origin(a) == "given"]
    low, high = (min(given), max(given)) if given else (0.0, 0.0)
    if given and low == high:
        raise DataError(f"data.eft {source}: every score is {low:g}; a judge cannot learn from one score")
    found = {}
    for one in asked:
        places = sorted({a.score for a in one.answers if _origin(a) == "ranked"})
        answers = []
        for answer in one.answers:
            origin = _origin(answer)
            if origin == "none" or (origin == "ranked" and len(places) < 2):
                counts["without a score" if origin == "none" else "ranked alone"] += 1
                continue
            if origin == "written":
                score = _written_score(answer)
            elif origin == "ranked":
                score = 5 * places.index(answer.score) / (len(places) - 1)
            else:
                score = 5 * (answer.score - low) / (high - low)
            answers.append(answer._replace(score=score))
        if answers:
            found[normalize(one.prompt)] = one._replace(answers=answers)
    return found, {"lowest": low, "highest": high} if given else {}


def _origin(answer: Answer) -> str:
    """Where an answer's score comes from."""
    if _written_score(answer) is not None:
        return "written"
    return "none" if answer.score is None else "ranked" if answer.ranked else "given"


def _written_score(answer: Answer) -> float | None:
    """The score that an answer's written judgment ends in."""
    found = (parse(answer.judgment) for parse in PARSERS.values()) if answer.judgment else ()
    return next((score for score in found if score is not None), None)


def parseable_judgment(answer: Answer, form: str) -> str | None:
    """An answer's written judgment, if a judge of this form can learn from it: if it ends in a verdict of the form."""
    return answer.judgment if answer.judgment and PARSERS[form](answer.judgment) is not None else None
