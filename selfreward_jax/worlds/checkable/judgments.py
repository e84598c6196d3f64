"""Written judgments of answers: each criterion in turn, a short look-up before each verdict, points added as they go.

A look-up copies from the answer what decides the criterion: the first letter in the wrong case, the first word of each
sentence. A small model learns to copy before it learns to compare.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from selfreward_jax.worlds.checkable.answers import Instruction, bullets_of, is_met, sentences_of
from selfreward_jax.worlds.checkable.tasks import content_words, rarest

MAX_COUNTED = 6  # sentences or bullets that a look-up numbers


def write_judgment(
    request: str,
    instructions: Sequence[Instruction],
    text: str,
    fits: bool,
    word_counts: Counter[str],
    form: str,
    wrong: Collection[int] = (),
) -> tuple[str, int]:
    """A judgment of an answer with some content, and its points, 0 to 5.

    Args:
      request: the request without its instructions.
      instructions: at most four.
      text: the answer.
      fits: whether it answers this request, and is whole.
      word_counts: in how many tasks each word is; the rarest are what a text is about.
      form: config.judge.output_format, "points" or "choice".
      wrong: the numbers of the verdicts that are the wrong ones, 0 for the subject, as a careless judge gives them.
    """
    fits ^= 0 in wrong
    points, reasons = int(fits), []
    of_request, of_answer = (rarest(content_words(t), word_counts, 2) for t in (request, text))
    shared = [w for w in of_request if w in content_words(text)]
    of_answer = [*shared, *(w for w in of_answer if w not in shared)][:2]
    last = " ".join(text.split()[-2:])
    subject = f"asked {' '.join(of_request)}, told {' '.join(of_answer) or 'nothing'}, ends {last}"
    reasons.append(_reason("Subject", subject, fits, points, form))
    for number, instruction in enumerate(instructions, 1):
        met = is_met(instruction, text) ^ (number in wrong)
        points += met
        reasons.append(
            _reason(_heading(instruction), _LOOK_UPS[instruction.kind](text, instruction.slot), met, points, form)
        )
    return f"{' '.join(reasons)}\n{_verdict(points, form)}", points


def write_dismissal(form: str) -> tuple[str, int]:
    """A judgment of an answer that says nothing, and its points."""
    return f"Nothing is said.\n{_verdict(0, form)}", 0


def _verdict(points: int, form: str) -> str:
    return f"Score: {points}" if form == "points" else f"Choice: {'AABCDE'[points]}"


def _reason(heading: str, look_up: str, met: bool, points: int, form: str) -> str:
    return f"{heading}: {look_up}, {'yes' if met else 'no'}" + (f": {points}." if form == "points" else ".")


def _heading(instruction: Instruction) -> str:
    """An instruction in a few words."""
    slot = instruction.slot
    if instruction.kind in ("bullets", "sentences"):
        return f"{slot.capitalize()} {instruction.kind}"
    if instruction.kind in ("keyword", "ending"):
        return f'{"Word" if instruction.kind == "keyword" else "End"} "{slot}"'
    return instruction.kind.replace("_", " ").capitalize()


def _first_of(pattern: str) -> Callable[[str, str], str]:
    """A look-up of the first word that a pattern finds; "none" if there is none."""

    def look_up(text: str, _: str) -> str:
        match = re.search(pattern, text)
        return match[0] if match else "none"

    return look_up


def _numbered(parts: Sequence[str]) -> str:
    """The parts counted, each by its first word."""
    words = (re.sub(r"^\W+", "", part).split() for part in parts[:MAX_COUNTED])
    return " ".join(f"{n} {w[0].strip(',;') if w else '-'}" for n, w in enumerate(words, 1)) or "none"


def _keyword(text: str, slot: str) -> str:
    match = re.search(rf"(\S+\s+)?\S*{re.escape(slot)}\S*", text, re.IGNORECASE)
    return " ".join(match[0].split()) if match else "none"


def _around(text: str, _: str) -> str:
    words = text.split()
    return f"{words[0]} to {words[-1]}"


_LOOK_UPS: dict[str, Callable[[str, str], str]] = {
    "lowercase": _first_of(r"\b\w*[A-Z]\w*"),
    "capitals": _first_of(r"\b\w*[a-z]\w*"),
    "no_commas": _first_of(r"\S+,"),
    "bullets": lambda text, _: _numbered(bullets_of(text)),
    "sentences": lambda text, _: _numbered(sentences_of(text)),
    "keyword": _keyword,
    "ending": lambda text, slot: " ".join(text.split()[-len(slot.split()) :]),
    "title": _first_of(r"<<[^\n<>]*>>"),
    "postscript": _first_of(r"(?i)p\.s\.( \S+)?"),
    "quotation": _around,
}
