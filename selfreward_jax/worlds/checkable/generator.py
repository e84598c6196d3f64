"""The checkable world: people's requests, with instructions that a program can check.

Requests and answers are a user's own (`tasks.py`). A request gets two to four instructions; an answer meets each or
breaks it, with equal odds. So a model that imitates the seeds can already give the good answer, but does not prefer it;
and what an answer is worth can be counted exactly.

This module writes seeds. The oracle that checks answers is oracle.py, which only evaluate/ may import.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any, NamedTuple

from selfreward_jax.worlds.checkable.answers import Instruction, possible_keywords, write_answer
from selfreward_jax.worlds.checkable.judgments import write_dismissal, write_judgment
from selfreward_jax.worlds.checkable.phrasings import ENDINGS, KINDS, NUMBERS, OPENINGS, TAUGHT, TRANSFER
from selfreward_jax.worlds.checkable.tasks import Task, content_words, rarest
from selfreward_jax.worlds.comparison import Judged, comparison_row, meta_row

Row = dict[str, Any]

MET_RATE = 0.5  # of an instruction, in instruction rows
JUDGED_MET_RATES = (0.2, 0.5, 0.8)  # judged rows go from poor to nearly perfect answers
OFF_TOPIC_RATE = 0.15  # judged answers to another request
CUT_OFF_RATE = 0.05
# Judged answers in the other case than the one asked for. A judge that never saw them took capitals for lowercase, and
# its models came to write capitals to every prompt.
WRONG_CASE_RATE = 0.3
# Judged answers that end in a verdict of their own, any one, half of them with reasons before it. A judge that never
# saw them copied it: "Score: 5" below a poor answer was worth a point, and its models came to judge their own answers.
OWN_VERDICT_RATE = 0.06
META_FAULT_RATE = 0.15  # of a verdict in judgments that are compared
# One judged answer in DEGENERATE_EVERY says nothing: it is one of these, the request again, form without content, or a
# verdict.
DEGENERATE_EVERY = 16
DEGENERATE_RESPONSES = ("", "Hello.", "I do not know.")
TRANSFER_RATE = 0.5  # held-out prompts with an instruction of a kind that no seed has
WORD_LIMITS = (20, 30, 40, 50)


class Request(NamedTuple):
    """A task with instructions; `text` is the whole prompt."""

    task: Task
    instructions: tuple[Instruction, ...]

    @property
    def text(self) -> str:
        """The request and its instructions in one line."""
        return " ".join((self.task.request, *(i.text for i in self.instructions)))


def write_request(task: Task, rng: random.Random, transfer: bool = False) -> Request:
    """The task with two to four instructions of different groups, in any order; with `transfer`, one of them is of a
    kind that no seed has."""
    kinds = list(TAUGHT)
    rng.shuffle(kinds)
    if transfer:
        kinds.insert(0, rng.choice(TRANSFER))
        if kinds[0] == "repeat":
            unfit = {"quotation", "sentences"} | ({"no_commas"} if "," in task.request else set())  # none meets both
            kinds = [kind for kind in kinds if kind not in unfit]
    number, chosen = rng.choice((2, 2, 3, 3, 4)), []
    for kind in kinds:
        if len(chosen) < number and KINDS[kind].group not in {KINDS[k].group for k in chosen}:
            chosen.append(kind)
    rng.shuffle(chosen)
    instructions = (_instruction(kind, task, rng) for kind in chosen)
    return Request(task, tuple(i for i in instructions if i))


def _instruction(kind: str, task: Task, rng: random.Random) -> Instruction | None:
    """An instruction of a kind; None if the task has no word for it."""
    phrasing = rng.choice(KINDS[kind].phrasings)
    if "{n}" in phrasing:
        slot = rng.choice(list(NUMBERS))
    elif "{number}" in phrasing:
        slot = str(rng.choice(WORD_LIMITS))
    elif kind == "ending":
        slot = rng.choice(ENDINGS)
    elif kind == "opening":
        slot = rng.choice(OPENINGS)
    elif "{text}" in phrasing:
        words = possible_keywords(task)
        if not words:
            return None
        slot = rng.choice(words)
    else:
        slot = ""
    return Instruction(kind, slot, phrasing.format(n=slot, number=slot, text=slot))


def ift_rows(tasks: Sequence[Task], count: int, rng: random.Random) -> list[Row]:
    """Instruction rows {prompt, response}. Each task is used equally often, with other instructions."""
    rows = []
    for task in _cycle(tasks, count, rng):
        request = write_request(task, rng)
        rows.append({"prompt": request.text, "response": write_answer(task, request.instructions, MET_RATE, rng).text})
    return rows


def eft_rows(tasks: Sequence[Task], count: int, word_counts: Counter[str], form: str, rng: random.Random) -> list[Row]:
    """Judged rows {prompt, response, judgment, score}."""
    rows = []
    for number, task in enumerate(_cycle(tasks, count, rng), 1):
        request = write_request(task, rng)
        if number % DEGENERATE_EVERY == 0:
            text, (judgment, score) = _degenerate(request, number // DEGENERATE_EVERY), write_dismissal(form)
        else:
            text, judgment, score = _judged_answer(request, tasks, word_counts, form, rng)
        rows.append({"prompt": request.text, "response": text, "judgment": judgment, "score": score})
    return rows


def comparison_rows(tasks: Sequence[Task], count: int, word_counts: Counter[str], rng: random.Random) -> list[Row]:
    """Rows {prompt, first, second, judgment, score}: two judged answers to a request compared."""
    rows = []
    for number, task in enumerate(_cycle(tasks, count, rng), 1):
        request = write_request(task, rng)
        one, other = (_judged_answer(request, tasks, word_counts, "points", rng) for _ in range(2))
        if number % DEGENERATE_EVERY == 0:
            other = Judged(_degenerate(request, number // DEGENERATE_EVERY), *write_dismissal("points"))
        rows.append(comparison_row(request.text, (one, other), rng))
    return rows


def meta_rows(tasks: Sequence[Task], count: int, word_counts: Counter[str], rng: random.Random) -> list[Row]:
    """Rows {prompt, response, first, second, judgment, score}: two judgments of an answer compared. One has a wrong
    verdict at least, each with probability META_FAULT_RATE; the other has none in half of the rows. Faults may cancel,
    and then the points are right."""
    rows = []
    for task in _cycle(tasks, count, rng):
        request = write_request(task, rng)
        text, fits = _some_answer(request, tasks, word_counts, rng)
        numbers = range(len(request.instructions) + 1)
        faults = [{n for n in numbers if rng.random() < META_FAULT_RATE} for _ in range(2)]
        faults[0] = faults[0] or {rng.choice(numbers)}
        faults[1] = faults[1] if rng.random() < 0.5 else set()  # else most pairs would be ties
        judged = [Judged(text, *_judge(request, text, fits, word_counts, wrong=wrong)) for wrong in faults]
        rows.append(meta_row(request.text, Judged(text, *_judge(request, text, fits, word_counts)), judged, rng))
    return rows


def ranked_rows(
    tasks: Sequence[Task], count: int, num_answers: int, word_counts: Counter[str], rng: random.Random
) -> list[Row]:
    """Rows {prompt, answers: [{response, score}]} for measuring a judge."""
    rows = []
    for task in _cycle(tasks, count, rng):
        request = write_request(task, rng)
        answers = [_judged_answer(request, tasks, word_counts, "points", rng) for _ in range(num_answers)]
        rows.append({"prompt": request.text, "answers": [{"response": t, "score": s} for t, _, s in answers]})
    return rows


def prompts(tasks: Sequence[Task], count: int, rng: random.Random, transfer: bool = False) -> list[str]:
    """Requests without answers; with `transfer`, every other one has an instruction of a kind that no seed has."""
    return [write_request(t, rng, transfer and rng.random() < TRANSFER_RATE).text for t in _cycle(tasks, count, rng)]


def _cycle(tasks: Sequence[Task], count: int, rng: random.Random) -> Iterator[Task]:
    """`count` tasks, each as often as every other one, in another order each time."""
    return islice(chain.from_iterable(rng.sample(tasks, len(tasks)) for _ in repeat(None)), count)


def _judged_answer(
    request: Request, tasks: Sequence[Task], word_counts: Counter[str], form: str, rng: random.Random
) -> Judged:
    """An answer, its judgment and its points."""
    text, fits = _some_answer(request, tasks, word_counts, rng)
    return Judged(text, *_judge(request, text, fits, word_counts, form))


def _judge(
    request: Request,
    text: str,
    fits: bool,
    word_counts: Counter[str],
    form: str = "points",
    wrong: Collection[int] = (),
) -> tuple[str, int]:
    return write_judgment(request.task.request, request.instructions, text, fits, word_counts, form, wrong)


def _some_answer(
    request: Request, tasks: Sequence[Task], word_counts: Counter[str], rng: random.Random
) -> tuple[str, bool]:
    """An answer, and whether it is whole and about the request. Some answer another request, and some are cut off."""
    fits, task = True, request.task
    if rng.random() < OFF_TOPIC_RATE:
        others = [t for t in rng.sample(tasks, min(8, len(tasks))) if _is_other(t, task, word_counts)]
        fits, task = not others, others[0] if others else task
    # A word that is in none of another task's sentences cannot be met.
    text = write_answer(task, request.instructions, rng.choice(JUDGED_MET_RATES), rng, WRONG_CASE_RATE).text
    if rng.random() < CUT_OFF_RATE:
        words = text.split(" ")
        text, fits = " ".join(words[: max(2, len(words) * 2 // 3)]).rstrip(" .,!?\"'"), False
    if rng.random() < OWN_VERDICT_RATE:
        reasons = f"{_judge(request, text, fits, word_counts)[0].splitlines()[0]}\n" * rng.randrange(2)
        text = f"{text}\n{reasons}{_own_verdict(rng.randrange(12))}"
    return text, fits


def _own_verdict(number: int) -> str:
    """What an answer says of itself."""
    return f"Score: {number % 6}" if number < 6 else f"Choice: {'ABCDE'[number % 5]}"


def _is_other(other: Task, task: Task, word_counts: Counter[str]) -> bool:
    """Whether two tasks are about different things: the rarest words of one request are nowhere in the other task."""
    subject = rarest(content_words(other.request), word_counts, 2)
    return not set(subject) & set(content_words(" ".join((task.request, *task.sentences))))


def _degenerate(request: Request, number: int) -> str:
    """An answer that says nothing. One kind keeps to the form alone, as an answer would that seeks points."""
    slots = {i.kind: i.slot for i in request.instructions}
    parts = ["<<Title>>\n" * ("title" in slots), slots.get("keyword", ""), slots.get("ending", "")]
    empty_form = " ".join(p for p in parts if p) or "* \n* "
    texts = (*DEGENERATE_RESPONSES, request.text, empty_form, _own_verdict(number // 6 % 12))
    return texts[number % len(texts)]
