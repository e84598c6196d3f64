"""Answers that meet or break each of their instructions, made of the sentences that a person wrote.

No sentence is invented: an answer is a choice of the sentences, in a form. So what a model learns from it is language
of people, and that some answers keep to what was asked.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from selfreward_jax.worlds.checkable.phrasings import ENDINGS, NUMBERS
from selfreward_jax.worlds.checkable.tasks import Task, content_words

MAX_DRAFTS = 60


class Instruction(NamedTuple):
    """One instruction of a request.

    slot: what its phrasing names: a number in words, a word, a phrase; "" where it names nothing.
    text: the instruction as the request has it.
    """

    kind: str
    slot: str
    text: str


class Answer(NamedTuple):
    """An answer, and which of its instructions it meets, by kind."""

    text: str
    met: dict[str, bool]


def body(text: str) -> str:
    """An answer without its quotation marks, title and postscript."""
    text = text.strip().strip('"').strip()
    text = re.sub(r"^<<[^\n]*>>\s*", "", text)
    return re.split(r"\n\s*p\.\s?s\.", text, maxsplit=1, flags=re.IGNORECASE)[0].strip()


def sentences_of(text: str) -> list[str]:
    """The sentences of an answer's body: what ends in a full stop, a question mark or an exclamation mark."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", body(text))
    return [part for part in parts if re.search(r"\w", part)]


def bullets_of(text: str) -> list[str]:
    """The lines of an answer that begin with * or -."""
    return re.findall(r"^[ \t]*(?:\*(?=[^*\n])|-)[ \t]*(.*)$", text.strip(), re.MULTILINE)


_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "lowercase": lambda text, _: text.islower(),
    "capitals": lambda text, _: text.isupper(),
    "no_commas": lambda text, _: "," not in text,
    "bullets": lambda text, slot: len(bullets_of(text)) == NUMBERS[slot],
    "sentences": lambda text, slot: len(sentences_of(text)) == NUMBERS[slot],
    "keyword": lambda text, slot: slot.lower() in text.lower(),
    "ending": lambda text, slot: text.strip().strip('"').lower().endswith(slot.lower()),
    "title": lambda text, _: bool(re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", text)),
    "postscript": lambda text, _: bool(re.search(r"p\.\s?s\.", text.lower())),
    "quotation": lambda text, _: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
}


def is_met(instruction: Instruction, text: str) -> bool:
    """Whether an answer meets an instruction of a kind that seeds teach. An empty answer meets none."""
    return bool(text.strip()) and _CHECKS[instruction.kind](text, instruction.slot)


def possible_keywords(task: Task) -> list[str]:
    """Words that are in a few of the sentences, so that an answer with and one without them can be made."""
    lower = [s.lower() for s in task.sentences]
    words = (w for s in task.sentences for w in content_words(s) if w.isalpha() and 4 <= len(w) <= 10)
    return sorted(
        {w for w in words if 1 <= sum(w in s for s in lower) <= len(lower) - 2 and w not in task.request.lower()}
    )


def write_answer(
    task: Task, instructions: Sequence[Instruction], met_rate: float, rng: random.Random, wrong_case_rate: float = 0.0
) -> Answer:
    """An answer that meets each instruction with probability `met_rate`, independently, as nearly as the sentences
    allow. Where a case is asked for and not met, it has the other case with probability `wrong_case_rate`."""
    wanted = {i.kind: rng.random() < met_rate for i in instructions}
    best: Answer | None = None
    for _ in range(MAX_DRAFTS):
        text = _draft(task, {i.kind: i.slot for i in instructions}, wanted, rng, wrong_case_rate)
        answer = Answer(text, {i.kind: is_met(i, text) for i in instructions})
        if answer.met == wanted:
            return answer
        if best is None or _agreement(answer.met, wanted) > _agreement(best.met, wanted):
            best = answer
    assert best is not None  # there is at least one draft
    return best


def _agreement(met: Mapping[str, bool], wanted: Mapping[str, bool]) -> int:
    return sum(met[kind] == wanted[kind] for kind in wanted)


def _draft(
    task: Task, slots: Mapping[str, str], wanted: Mapping[str, bool], rng: random.Random, wrong_case_rate: float
) -> str:
    """An answer in which most of what is wanted holds. Which sentences it has is drawn."""
    ending = _ending(slots, wanted, rng)
    chosen = _choose_sentences(task, slots, wanted, rng, num_added=bool(ending) and "bullets" not in slots)
    rest = [s for s in task.sentences if s not in chosen]
    if wanted.get("no_commas"):
        chosen, rest = ([s.replace(",", "") for s in part] for part in (chosen, rest))
    as_list = "bullets" in slots and (wanted["bullets"] or rng.random() < 0.6)
    text = "\n".join(f"* {s}" for s in chosen) if as_list else " ".join(chosen)
    if ending:
        text += f"\n{ending}" if as_list else f" {ending}"
    if "title" in slots:
        text = _title(task, wanted["title"], rng) + text
    if wanted.get("postscript") and rest:
        text += f"\nP.S. {rng.choice(rest)}"
    text = _in_case(text, slots, wanted, rng, wrong_case_rate)
    if "quotation" in slots:
        opening = '"' + "\n" * as_list  # a line that begins with a quotation mark is no bullet point
        text = f'{opening}{text}"' if wanted["quotation"] else rng.choice(["", "", opening]) + text
    return text


def _choose_sentences(
    task: Task, slots: Mapping[str, str], wanted: Mapping[str, bool], rng: random.Random, num_added: int
) -> list[str]:
    """Sentences of the task in their order: as many as are wanted, with or without the keyword and commas."""
    form = next((kind for kind in ("bullets", "sentences") if kind in slots), None)
    most = len(task.sentences) - ("postscript" in slots)
    number = rng.randint(2, 4)
    if form:
        target = NUMBERS[slots[form]]
        number = target if wanted[form] else rng.choice([n for n in (1, 2, 3, 4, 5) if n != target])
    number = max(1, min(most, number - num_added))
    chosen = rng.sample(task.sentences, number)
    keyword = slots.get("keyword", "").lower()
    if keyword:
        with_it = [s for s in task.sentences if keyword in s.lower()]
        without = [s for s in task.sentences if keyword not in s.lower()]
        chosen = rng.sample(without, min(number, len(without)))
        if wanted["keyword"] and with_it:  # the sentences may be those of another task
            chosen[rng.randrange(len(chosen))] = rng.choice(with_it)
    return sorted(chosen, key=task.sentences.index)


def _ending(slots: Mapping[str, str], wanted: Mapping[str, bool], rng: random.Random) -> str:
    """The words that close an answer: those asked for; or at times others, where these are not wanted; or none."""
    if "ending" not in slots:
        return ""
    if wanted["ending"]:
        return slots["ending"]
    return rng.choice([e for e in ENDINGS if e != slots["ending"]]) if rng.random() < 0.4 else ""


def _title(task: Task, wanted: bool, rng: random.Random) -> str:
    """A title of words of the request; one without brackets, or none, where it is not wanted."""
    words = " ".join(w.capitalize() for w in content_words(task.request)[:3]) or "Answer"
    return f"<<{words}>>\n" if wanted else rng.choice(["", "", f"{words}\n"])


def _in_case(
    text: str, slots: Mapping[str, str], wanted: Mapping[str, bool], rng: random.Random, wrong_case_rate: float
) -> str:
    """The text in the case asked for, or where that is not wanted, at times a part of it, or all in the other case."""
    for kind, change, other in (("lowercase", str.lower, str.upper), ("capitals", str.upper, str.lower)):
        if kind in slots:
            if wanted[kind]:
                return change(text)
            if wrong_case_rate and rng.random() < wrong_case_rate:
                return other(text)
            cut = text.find(" ", len(text) // 2) if rng.random() < 0.3 else 0
            return change(text[:cut]) + text[cut:]
    return text
