"""Records of a source merged by prompt; the best answer of a prompt; scores mapped to 0-5."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from selfreward_jax.data.answers import DROP_REASONS, ROW_REMEDY, Answer, Dropped
from selfreward_jax.data.fields import rename, unused_fields
from selfreward_jax.data.limits import DataError, Located
from selfreward_jax.data.messages import ASSISTANT_ROLES, USER_ROLES, message_role
from selfreward_jax.data.parsers import ParsedRecord, descendants, parse_record
from selfreward_jax.data.readers import read_records
from selfreward_jax.method.judge_parsing import PARSERS
from selfreward_jax.method.prompt_generation import normalize
from selfreward_jax.method.rows import Row

MAX_FAULTS = 10  # malformed rows of a source that are described


class PromptWithResponses(NamedTuple):
    """A prompt, its answers, the location of the record that it was first read from, and the system text that it begins
    with."""

    prompt: str
    answers: list[Answer]
    location: str
    system: str = ""


class ParsedSource(NamedTuple):
    """What a source holds.

    prompts: those with at least one answer, in order of first appearance.
    counts: "records", "read" (answers) and those of DROP_REASONS.
    faults: the location of each of the first MAX_FAULTS malformed rows, and what is wrong with it.
    notices: the fields that change what a row means and are not used, each with the first row that has it, and the
      columns that no row has.
    """

    prompts: list[PromptWithResponses]
    counts: Counter[str]
    faults: list[str]
    notices: list[str]


class _MergedPrompt(NamedTuple):
    """A prompt while records are merged: answers by their text.

    symbols: the prompt's; those of another record's prompt must be equal.
    """

    prompt: str
    symbols: str
    location: str
    system: str
    answers: dict[str, Answer]


def read_prompts_with_responses(
    source: str, language: str, max_malformed_frac: float, columns: Mapping[str, str] | None = None
) -> ParsedSource:
    """Prompts and answers of a source.

    Records whose prompts are equal after `normalize` are merged. An answer that the prompt already has is dropped.

    Args:
      source: as `read_records` takes it.
      language: language code such as "en"; rows that name another one are dropped. Empty: no row is.
      max_malformed_frac: fraction of faulty answers above which the source is refused.
      columns: the column of each field that has a name of the user's own, as `fields.rename` takes it.

    Raises:
      DataError: the source cannot be read, is empty or has too many faults.
    """
    counts: Counter[str] = Counter(records=0, read=0, **dict.fromkeys(DROP_REASONS, 0))
    merged: dict[str, _MergedPrompt] = {}
    faults: list[str] = []
    num_faults, remedy = 0, ""  # for the first fault
    unused: dict[str, str] = {}  # what is not used of a field, and the first row with it
    absent = dict(columns or {})
    for location, record in _records(source, counts, columns or {}, absent):
        for what in unused_fields(record):
            unused.setdefault(what, location)
        parsed = parse_record(record, language)
        counts["read"] += len(parsed.answers)
        for dropped in _merge(merged, location, parsed):
            counts[dropped.reason] += 1
            if dropped.detail:
                num_faults, remedy = num_faults + 1, remedy or dropped.remedy
                if len(faults) < MAX_FAULTS:
                    faults.append(f"{location}: {dropped.detail}")
    if not counts["records"]:
        raise DataError(f"{source} is empty, it holds no row: {ROW_REMEDY}")
    if num_faults > max_malformed_frac * counts["read"] or (faults and not merged):
        raise DataError(
            f"{faults[0]} ({num_faults:,} of {counts['read']:,} rows are malformed, data.max_malformed_frac allows "
            f"{max_malformed_frac:.0%}): {remedy}"
        )
    prompts = [PromptWithResponses(m.prompt, list(m.answers.values()), m.location, m.system) for m in merged.values()]
    notices = [f"{what} is not used, first in {location}" for what, location in unused.items()]
    notices += [f"no row has the column {column!r}, which data.columns names" for column in absent.values()]
    return ParsedSource(prompts, counts, faults, notices)


def _merge(merged: dict[str, _MergedPrompt], location: str, parsed: ParsedRecord) -> list[Dropped]:
    """Adds a record's answers to their prompt; returns why answers, or those they replace, are dropped."""
    dropped = [item for item in parsed.answers if isinstance(item, Dropped)]
    answers = [item for item in parsed.answers if isinstance(item, Answer)]
    if not answers:
        return dropped
    prompt, symbols = parsed.prompt, _symbols(parsed.prompt)
    entry = merged.setdefault(normalize(prompt), _MergedPrompt(prompt, symbols, location, parsed.system, {}))
    if entry.symbols != symbols:
        return dropped + [Dropped("prompt differs only in punctuation")] * len(answers)
    for answer in answers:
        known = entry.answers.get(answer.response)
        if known is None or (known.score is None and known.judgment is None and known.label is None):
            entry.answers[answer.response] = answer
        if known is not None:
            dropped.append(Dropped("duplicate answer"))
    return dropped


def _symbols(prompt: str) -> str:
    # `normalize` removes symbols, but 2 + 3 is another question than 2 * 3, and C another language than C++.
    return "".join(re.findall(r"[^\w\s.,;:!?()\[\]\"'`\u00b4\u2010-\u201e\u2026\xab\xbb-]|-(?=\s*\d)", prompt))


def _records(
    source: str, counts: Counter[str], columns: Mapping[str, str], absent: dict[str, str]
) -> Iterator[Located]:
    """The records of a source, with our names. Rows that are single messages come last, joined into trees.

    Columns that a record has are taken out of `absent`.
    """
    messages = []
    for location, raw in read_records(source):
        counts["records"] += 1
        for field in [field for field, column in absent.items() if isinstance(raw, dict) and column in raw]:
            del absent[field]
        record = rename(raw, columns)
        if isinstance(record, dict) and {"message_id", "role", "text"} <= record.keys():
            messages.append((location, record))
        else:
            yield location, record
    yield from _message_trees(messages, counts)


def _message_trees(messages: Iterable[Located], counts: Counter[str]) -> Iterator[Located]:
    """Message rows with a parent_id as trees {prompt: {text, ..., replies}}, each at the location of its root."""
    nodes: dict[str, Row] = {}
    locations = {}
    unattached = 0  # answers in no tree
    for location, row in messages:
        message_id, is_answer = str(row["message_id"]), message_role(row) in ASSISTANT_ROLES
        if message_id in nodes:
            counts["read"] += is_answer
            counts["duplicate answer"] += is_answer
        else:
            unattached += is_answer
            nodes[message_id], locations[message_id] = {**row, "replies": []}, location
    for node in nodes.values():
        if (parent := node.get("parent_id")) and str(parent) in nodes:
            nodes[str(parent)]["replies"].append(node)
    for message_id, node in nodes.items():
        if not node.get("parent_id") and message_role(node) in USER_ROLES:
            unattached -= sum(message_role(n) in ASSISTANT_ROLES for n in descendants(node))
            yield locations[message_id], {"prompt": node}
    # The prompt of an answer that belongs to no root is in no row.
    counts["read"] += unattached
    counts["no prompt"] += unattached


def keep_best(prompts: Iterable[PromptWithResponses], counts: Counter[str]) -> dict[str, PromptWithResponses]:
    """Each prompt, by its normalized text, with its best answer; with all of them if none has a score.

    An answer whose label is false is no good answer.
    """
    best = {}
    for prompt in prompts:
        good = [a for a in prompt.answers if a.label is not False]
        counts["label is false"] += len(prompt.answers) - len(good)
        if not good:
            continue
        scored = [a for a in good if a.score is not None]
        answers = [max(scored, key=lambda a: a.score)] if scored else good
        counts["not the best answer"] += len(good) - len(answers)
        best[normalize(prompt.prompt)] = prompt._replace(answers=answers)
    return best


def normalize_scores(
    prompts: Sequence[PromptWithResponses], counts: Counter[str], source: str
) -> tuple[dict[str, PromptWithResponses], dict[str, float]]:
    """Maps the scores of all answers to 0-5, and drops the answers that have none.

    The score at the end of a written judgment is used as it is. Numeric scores are mapped linearly from their range in
    the file. The ranked answers of a prompt are equally spaced from 0 to 5; a single ranked answer is dropped. A
    label is 5 or 0.

    Returns:
      The prompts by their normalized text, and the range of the numeric scores.

    Raises:
      DataError: all numeric scores are equal.
    """
    numeric = [a.score for prompt in prompts for a in prompt.answers if _score_source(a) == "number"]
    low, high = (min(numeric), max(numeric)) if numeric else (0.0, 0.0)
    if numeric and low == high:
        raise DataError(
            f"data.eft {source}: every score is {low:g}, and a judge cannot learn from one score: give answers with "
            "different scores"
        )
    normalized = {}
    for prompt in prompts:
        ranks = {s: i for i, s in enumerate(sorted({a.score for a in prompt.answers if _score_source(a) == "rank"}))}
        answers = []
        for answer in prompt.answers:
            score_source = _score_source(answer)
            if score_source == "none":
                counts["no score"] += 1
                continue
            if score_source == "rank" and len(ranks) < 2:
                counts["single ranked answer"] += 1
                continue
            if score_source == "judgment":
                score = _judgment_score(answer)
            elif score_source == "label":
                score = 5.0 if answer.label else 0.0
            elif score_source == "rank":
                score = 5 * ranks[answer.score] / (len(ranks) - 1)
            else:
                score = 5 * (answer.score - low) / (high - low)
            answers.append(answer._replace(score=score))
        if answers:
            normalized[normalize(prompt.prompt)] = prompt._replace(answers=answers)
    return normalized, {"lowest": low, "highest": high} if numeric else {}


def _score_source(answer: Answer) -> str:
    """Where an answer's score comes from: judgment, rank, number, label or none."""
    if _judgment_score(answer) is not None:
        return "judgment"
    if answer.score is None:
        return "none" if answer.label is None else "label"
    return "rank" if answer.ranked else "number"


def _judgment_score(answer: Answer) -> float | None:
    """The score at the end of an answer's written judgment."""
    scores = (parse_score(answer.judgment) for parse_score in PARSERS.values()) if answer.judgment else ()
    return next((score for score in scores if score is not None), None)


def parseable_judgment(answer: Answer, output_format: str) -> str | None:
    """An answer's written judgment if it ends in a verdict of `output_format`, else None.

    A judge of that format can learn only from such a judgment.
    """
    return answer.judgment if answer.judgment and PARSERS[output_format](answer.judgment) is not None else None
