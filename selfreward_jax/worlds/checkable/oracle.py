"""The checkable world's exact oracle: reads the instructions of a prompt, and says which of them an answer meets.

It only evaluates. Only evaluate/ imports it, so it cannot influence training, judging, the building of pairs or the
choice of a model. It shares the wording of the instructions with the generator, and no code. Where IFEval
(arXiv 2311.07911) has the same kind of instruction, the rule is IFEval's.
"""

import functools
import re
from typing import NamedTuple

from selfreward_jax.worlds.checkable.phrasings import KINDS, NUMBERS, TRANSFER

CRITERIA = tuple(KINDS)
UNTAUGHT = TRANSFER

# Other wordings, as a model may write them. Each is matched in a sentence that has no known wording.
_NO = r"(?:\b(?:no|not|never|without|avoid|omit|leave out)\b|n't\b)"
_CAPITALS = r"\b(?:capitals|capital letters|upper-?\s?case)\b"
_LOOSE = {
    "lowercase": rf"\blower-?\s?case\b|{_NO}[^.]*{_CAPITALS}",
    "capitals": rf"\b(?:all|in|only|use|everything)\b[^.]*{_CAPITALS}|\ball[ -]caps\b",
    "no_commas": rf"{_NO}[^.]*\bcommas?\b",
    "bullets": r"\b(?P<slot>two|three|four)\s+(?:(?!or\b|to\b|and\b)\w+\s+){0,3}bullets?\b",
    "sentences": r"\b(?P<slot>two|three|four)\s+sentences\b",
    "avoid": rf"{_NO}[^.\"]*\bword \"(?P<slot>[^\"]+)\"",
    "keyword": r"\bword \"(?P<slot>[^\"]+)\"",
    "ending": r"\b(?:end|finish|close|last words)\b[^\"]*\"(?P<slot>[^\"]+)\"",
    "opening": r"\b(?:begin|start|open|first words)\b[^\"]*\"(?P<slot>[^\"]+)\"",
    "title": r"\btitle\b",
    "postscript": r"\bpost-?script\b|\bP\.\s?S\.",
    "quotation": r"\bquotation marks\b|\bdouble quotes\b",
    "paragraphs": r"\b(?P<slot>two|three|four)\s+paragraphs\b",
    "max_words": r"\b(?:at most|not? more than|maximum of)\s+(?P<slot>\d+)\s+words\b",
    "placeholders": r"\b(?P<slot>two|three|four)\s+placeholders\b",
    "repeat": r"\brepeat\b[^.]*\brequest\b",
}
# Wordings of these hold a negation. Before another one it means the opposite.
_FORBID = ("lowercase", "no_commas", "avoid", "max_words")
_COUNTED = ("bullets", "sentences", "paragraphs")  # exactly so many: "at least three" is another kind
_BOUND = r"\b(?:at least|at most|more than|fewer than|less than|up to|or|to|between \w+ and)\W*$"
# A sentence with one of these words, and no instruction that is known, may hold one that is not.
_ABOUT_FORM = re.compile(
    r"\b(?:words?|letters?|capitals?|commas?|bullets?|sentences?|titles?|postscript|quotation|quotes?|paragraphs?|brackets"
    r"|placeholders?|(?:lower|upper)case)\b",
    re.IGNORECASE,
)
_PLAIN = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")  # quotation marks as the generator writes them

_VERDICT = re.compile(r", (yes|no)(?=: \d|\.)")


class Instruction(NamedTuple):
    """What a prompt asks for: a kind, and what it names."""

    kind: str
    slot: str


class Reading(NamedTuple):
    """What was read from a prompt.

    request: what is before the first instruction.
    instructions: those that were found, in order.
    unread: sentences that seem to hold an instruction that is not known.
    """

    request: str
    instructions: tuple[Instruction, ...]
    unread: tuple[str, ...]


@functools.cache
def _known() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """A pattern for each known wording."""
    slots = {"{n}": f"(?P<slot>{'|'.join(NUMBERS)})", "{number}": r"(?P<slot>\d+)", "{text}": '(?P<slot>[^"]+)'}
    patterns = []
    for kind, (phrasings, _) in KINDS.items():
        for phrasing in phrasings:
            pattern = re.escape(phrasing)
            for slot, form in slots.items():
                pattern = pattern.replace(re.escape(slot), form)
            patterns.append((kind, re.compile(pattern)))
    return tuple(patterns)


def read(prompt: str) -> Reading:
    """The instructions of any prompt, as far as they can be read."""
    prompt = prompt.translate(_PLAIN)
    instructions: list[tuple[int, int, Instruction]] = []
    for kind, pattern in _known():
        for match in pattern.finditer(prompt):
            slot = match["slot"] if "slot" in pattern.groupindex else ""
            instructions.append((match.start(), match.end(), Instruction(kind, slot)))
    rest, unread = prompt, []
    for start, end, _ in instructions:
        rest = rest[:start] + "\x00" * (end - start) + rest[end:]
    for sentence in re.finditer(r'(?:[^.!?"\x00]|"[^"]*"|\.(?=\w)|(?<=P\.S)\.)+[.!?]*', rest):
        loose, is_clear = _read_loosely(sentence[0])
        instructions += [(sentence.start(), sentence.start() + end, instruction) for end, instruction in loose]
        if not is_clear:
            unread.append(sentence[0].strip())
    instructions.sort()
    request = prompt[: instructions[0][0]].strip() if instructions else prompt.strip()
    return Reading(request, tuple(instruction for *_, instruction in instructions), tuple(unread))


def _read_loosely(sentence: str) -> tuple[list[tuple[int, Instruction]], bool]:
    """The instructions of a sentence, each with where it ends; and whether there is no other in it that is not known.
    A question is no instruction."""
    if sentence.rstrip().endswith("?"):
        return [], True
    by_end: dict[int, Instruction] = {}
    ends, is_clear = set(), True
    for kind, pattern in _LOOSE.items():
        for match in re.finditer(pattern, sentence, re.IGNORECASE):
            before = sentence[: match.start()]
            if match.end() in ends:
                continue  # the same words, which another kind has already
            ends.add(match.end())
            is_opposite = kind not in _FORBID and re.search(_NO, before, re.IGNORECASE)
            if is_opposite or (kind in _COUNTED and re.search(_BOUND, before, re.IGNORECASE)):
                is_clear = False
                continue
            slot = (match["slot"] if "slot" in match.groupdict() else "") or ""
            by_end[match.end()] = Instruction(kind, slot if slot and match[0].endswith('"') else slot.lower())
    return sorted(by_end.items()), is_clear and (bool(by_end) or not _ABOUT_FORM.search(sentence))


def meets(instruction: Instruction, response: str, request: str) -> bool:
    """Whether a response meets an instruction; an empty one meets none.

    Args:
      instruction: what is asked for.
      response: the whole response.
      request: the prompt without its instructions, which a response may have to repeat.
    """
    text, (kind, slot) = response.strip(), instruction
    if not text:
        return False
    bare = text.strip('"')
    match kind:
        case "lowercase":
            return text.islower()
        case "capitals":
            return text.isupper()
        case "no_commas":
            return "," not in text
        case "bullets":
            return sum(bool(re.match(r"\s*(\*[^*]|-)", line)) for line in text.splitlines()) == NUMBERS[slot]
        case "sentences":
            return _count_sentences(text) == NUMBERS[slot]
        case "keyword":
            return slot.lower() in text.lower()
        case "avoid":
            return not re.search(rf"\b{re.escape(slot)}\b", text, re.IGNORECASE)
        case "ending":
            return bare.lower().endswith(slot.strip().lower())
        case "opening":
            return bare.lower().startswith(slot.strip().lower())
        case "title":
            return any(title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", text))
        case "postscript":
            return bool(re.search(r"p\.\s?s\.", text.lower()))
        case "quotation":
            return len(text) > 1 and text.startswith('"') and text.endswith('"')
        case "paragraphs":
            parts = [part.strip() for part in text.split("***")]
            return all(parts[1:-1]) and sum(map(bool, parts)) == NUMBERS[slot]
        case "max_words":
            return len(re.findall(r"\w+", text)) <= int(slot)
        case "placeholders":
            return len(re.findall(r"\[.*?\]", text)) >= NUMBERS[slot]
        case "repeat":
            return bool(request.strip()) and text.translate(_PLAIN).lower().startswith(request.strip().lower())
    raise ValueError(f"not a kind of instruction: {kind!r}")


def _count_sentences(text: str) -> int:
    """Sentences between a title line and a postscript: each ends in a full stop, question or exclamation mark, or its
    line."""
    lines = text.strip('"').strip().splitlines()
    if lines and re.fullmatch(r"<<.*>>\s*", lines[0]):
        lines = lines[1:]
    body = re.split(r"(?:^|\s)p\.\s?s\.", "\n".join(lines), maxsplit=1, flags=re.IGNORECASE)[0]
    parts = re.split(r"[.!?]+[\"')*]*(?=\s|$)|\n", body)
    return sum(bool(re.search(r"[^\W\d]", part)) for part in parts)  # the number of a list is no sentence


def points(prompt: str, response: str) -> dict[str, bool]:
    """Which of a prompt's instructions a response meets, by kind. A kind that is asked for twice counts once."""
    reading = read(prompt)
    met: dict[str, bool] = {}
    for instruction in reading.instructions:
        met[instruction.kind] = met.get(instruction.kind, True) and meets(instruction, response, reading.request)
    return met


def verdicts(prompt: str, judgment: str) -> dict[str, bool]:
    """What a written judgment says of each kind of instruction in a prompt; empty if it has another number of verdicts
    than the prompt has instructions."""
    verdicts_in_order = [word == "yes" for word in _VERDICT.findall(judgment)][1:]  # the first is on the subject
    instructions = read(prompt).instructions
    if len(verdicts_in_order) != len(instructions):
        return {}
    return {i.kind: verdict for i, verdict in zip(instructions, verdicts_in_order, strict=True)}


def repeats(response: str) -> bool:
    """Whether a response says a sentence twice. It costs no point, and is reported for that reason."""
    sentences = [" ".join(s.lower().split()) for s in re.split(r"[.!?\n]+", response)]
    long = [s for s in sentences if len(s.split()) > 2]
    return len(set(long)) < len(long)
