"""The toy world's exact oracle: parses a request and an answer and awards up to five points.

It only evaluates. Only evaluate/ imports it, so it cannot influence training, judging, the building of pairs or the
choice of a model. It is independent of the generator's code and written from the rules alone.
"""

import re

from selfreward_jax.worlds.toy.vocabulary import KIND_OPENINGS, NUMBERS, TOPICS

CRITERIA = ("kind", "name", "occasion", "topic", "count")

_TOPIC_BY_PLURAL = {plural: topic for topic, (plural, _) in TOPICS.items()}
_TOPIC_WORDS = {topic: frozenset(words.split()) for topic, (_, words) in TOPICS.items()}
_COUNT_AND_TOPIC = re.compile(rf"\b({'|'.join(NUMBERS)}) ({'|'.join(_TOPIC_BY_PLURAL)})\b")
_NAME = re.compile(r"(?:I am |This is )?(\w+)(?: here)?\. ")
_OCCASION = re.compile(r"\bmy (\w+)")
_JUDGMENT = re.compile(
    r"[^.]* is (?P<kind>kind|gruff)[^.]*\. Asked by [^.]*, (?P<name>same|different)[^.]*\. "
    r"Asked for [^.]*, (?P<occasion>same|different)[^.]*\. Wanted [^.]*\. (?P<topic>All fit|Not all fit)[^.]*\. "
    r"Asked [^.]*, (?P<count>same|different)"
)
_ANSWER = re.compile(r"(?P<opening>\w+), (?P<name>\w+)! (?P<purpose>[^:!]+): (?P<items>[^:!.]+)\.")


def points(prompt: str, response: str) -> dict[str, bool]:
    """Which of the five points an answer earns; an answer that cannot be parsed earns none.

    Raises:
      ValueError: the prompt is not a request of this world.
    """
    name, wanted, occasion = _NAME.match(prompt), _COUNT_AND_TOPIC.search(prompt), _OCCASION.search(prompt)
    if not name or not wanted or not occasion:
        raise ValueError(f"not a request of this world: {prompt!r}")
    answer = _ANSWER.fullmatch(response)
    if not answer:
        return dict.fromkeys(CRITERIA, False)
    numbers, items = zip(*(item.partition(" ")[::2] for item in answer["items"].split(", ")), strict=True)
    topic_words = _TOPIC_WORDS[_TOPIC_BY_PLURAL[wanted[2]]]
    return {
        "kind": answer["opening"] in KIND_OPENINGS,
        "name": answer["name"] == name[1],
        "occasion": answer["purpose"] == f"For your {occasion[1]}",
        "topic": all(item in topic_words for item in items),
        "count": list(numbers) == [str(i + 1) for i in range(NUMBERS.index(wanted[1]))],
    }


def verdicts(prompt: str, judgment: str) -> dict[str, bool]:
    """What a written judgment says of each criterion; empty if it cannot be read."""
    match = _JUDGMENT.match(judgment)
    return {c: match[c] in ("kind", "same", "All fit") for c in CRITERIA} if match else {}


def repeats(response: str) -> bool:
    """Whether an answer names an item twice. It costs no point, and is reported for that reason."""
    answer = _ANSWER.fullmatch(response)
    items = [item.partition(" ")[2] for item in answer["items"].split(", ")] if answer else []
    return len(set(items)) < len(items)
