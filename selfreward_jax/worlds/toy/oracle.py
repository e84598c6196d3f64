"""The embedded world's exact oracle: reads a request and an answer as text and awards five points.

It measures and nothing else: only evaluate/ imports it, so nothing of it can reach training, judging, the
building of pairs or the choice of a model. It is written apart from the generator, from the rules alone.
"""

import re

from selfreward_jax.worlds.toy.vocabulary import KIND_OPENINGS, NUMBERS, TOPICS

CRITERIA = ("kind", "name", "occasion", "topic", "count")

_TOPIC_OF_PLURAL = {plural: topic for topic, (plural, _) in TOPICS.items()}
_WORDS = {topic: frozenset(words.split()) for topic, (_, words) in TOPICS.items()}
_ASKED = re.compile(rf"\b({'|'.join(NUMBERS)}) ({'|'.join(_TOPIC_OF_PLURAL)})\b")
_NAME = re.compile(r"(?:I am |This is )?(\w+)(?: here)?\. ")
_OCCASION = re.compile(r"\bmy (\w+)")
_ANSWER = re.compile(r"(?P<opening>\w+), (?P<name>\w+)! (?P<purpose>[^:!]+): (?P<items>[^:!.]+)\.")


def points(prompt: str, response: str) -> dict[str, bool]:
    """Which of the five points an answer earns; one whose form cannot be read earns none.

    Raises:
      ValueError: the prompt is not a request of this world.
    """
    name, asked, occasion = _NAME.match(prompt), _ASKED.search(prompt), _OCCASION.search(prompt)
    if not name or not asked or not occasion:
        raise ValueError(f"not a request of this world: {prompt!r}")
    answer = _ANSWER.fullmatch(response)
    if not answer:
        return dict.fromkeys(CRITERIA, False)
    numbers, items = zip(*(item.partition(" ")[::2] for item in answer["items"].split(", ")), strict=True)
    wanted = _WORDS[_TOPIC_OF_PLURAL[asked[2]]]
    return {
        "kind": answer["opening"] in KIND_OPENINGS,
        "name": answer["name"] == name[1],
        "occasion": answer["purpose"] == f"For your {occasion[1]}",
        "topic": all(item in wanted for item in items),
        "count": list(numbers) == [str(i + 1) for i in range(NUMBERS.index(asked[1]))],
    }


def repeats(response: str) -> bool:
    """Whether an answer names something twice. No point hangs on it; it is watched because none does."""
    answer = _ANSWER.fullmatch(response)
    items = [item.partition(" ")[2] for item in answer["items"].split(", ")] if answer else []
    return len(set(items)) < len(items)
