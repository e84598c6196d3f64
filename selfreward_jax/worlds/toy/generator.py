"""The toy world: short lists on request, with a judge's written reasons.

A person gives a name and asks for a number of things of one topic for an occasion. An answer can be better or worse in
five independent ways: a kind opening, the person's name, the requested occasion, only things of the topic, and the
right number of them. The seed answers have mixed quality: each fault is inserted at random, and is absent as often.
So self-rewarding has something to learn: a model that imitates the seeds can already give the good answer, but does not
prefer it. Each point is a short look-up, so that a small model can learn to judge.

This module writes seeds. The oracle that scores answers is oracle.py, which only evaluate/ may import.
"""

import random
from collections.abc import Collection
from typing import Any, NamedTuple

from selfreward_jax.worlds.comparison import Judged, comparison_row, meta_row
from selfreward_jax.worlds.toy.vocabulary import (
    CONFUSABLE_TOPICS,
    GENERIC_NAME,
    GREETINGS,
    GRUFF_OPENINGS,
    KIND_OPENINGS,
    NAMES,
    NUMBERS,
    OCCASIONS,
    REQUESTS,
    TOPICS,
)

Row = dict[str, Any]

TOPIC_WORDS = {topic: words.split() for topic, (_, words) in TOPICS.items()}
TOPIC_BY_WORD = {word: topic for topic, words in TOPIC_WORDS.items() for word in words}
ITEM_COUNTS = (2, 3, 4, 5)

# Probability of each fault: in instruction rows, and in judged rows, which go from poor to nearly perfect answers.
IFT_FAULT_RATE = 0.5
EFT_FAULT_RATES = (0.1, 0.3, 0.6)
META_FAULT_RATE = 0.15  # of a verdict in judgments that are compared
# One judged answer in DEGENERATE_EVERY has no content: it is one of DEGENERATE_RESPONSES, or repeats the request. A
# judge that has never seen such an answer invents reasons to praise it.
DEGENERATE_EVERY = 32
DEGENERATE_RESPONSES = ("", "Hello.", "I do not know.")


class Request(NamedTuple):
    """A request: who asks for how many things of which topic, for which occasion."""

    name: str
    count: int
    topic: str
    occasion: str
    text: str


class Answer(NamedTuple):
    """An answer to a request; `occasion` is None if the answer does not name one."""

    opening: str
    name: str
    occasion: str | None
    items: tuple[str, ...]

    @property
    def text(self) -> str:
        """The text of the answer."""
        purpose = f"For your {self.occasion}" if self.occasion else "Here you go"
        items = ", ".join(f"{number} {item}" for number, item in enumerate(self.items, 1))
        return f"{self.opening}, {self.name}! {purpose}: {items}."


def write_request(rng: random.Random) -> Request:
    """One of 2,880,000 requests, all with equal probability."""
    name, count = rng.choice(NAMES), rng.choice(ITEM_COUNTS)
    topic, occasion = rng.choice(list(TOPICS)), rng.choice(OCCASIONS)
    question = rng.choice(REQUESTS).format(n=NUMBERS[count], topic=TOPICS[topic][0], occasion=occasion)
    return Request(name, count, topic, occasion, f"{rng.choice(GREETINGS).format(name=name)} {question}")


def write_answer(request: Request, fault_rate: float, rng: random.Random) -> Answer:
    """An answer that has each of the five faults with probability `fault_rate`, independently."""

    def faulty() -> bool:
        return rng.random() < fault_rate

    opening = rng.choice(GRUFF_OPENINGS if faulty() else KIND_OPENINGS)
    # The fault is a generic name, not another person's. To detect that, the judge would have to compare two names. A
    # model of this size does not learn it from seeds in which it is rare, and a fault that the judge cannot see grows
    # from round to round.
    name = GENERIC_NAME if faulty() else request.name
    occasion = None if faulty() else request.occasion
    # One too many as often as one too few, so that length does not depend on quality.
    count = request.count + (rng.choice([-1, 1]) if faulty() else 0)
    items = rng.sample(TOPIC_WORDS[request.topic], count)
    if faulty():
        off_topic = rng.sample(TOPIC_WORDS[CONFUSABLE_TOPICS[request.topic]], count)
        for i in rng.sample(range(count), rng.randint(1, count)):
            items[i] = off_topic[i]
    # Items are in alphabetical order, as careful people list things. So an item never follows itself, which a model of
    # any size can learn.
    return Answer(opening, name, occasion, tuple(sorted(items)))


def write_judgment(
    request: Request, answer: Answer, output_format: str = "points", wrong: Collection[int] = ()
) -> tuple[str, int]:
    """A judge's reasons, each a short look-up before its verdict, and the points that they add up to.

    Args:
      request, answer: what is judged.
      output_format: "points": points are added up after each reason, and the judgment ends in `Score: n`. "choice": the
        reasons are the same without the running sum. The judgment ends in one of five grades, from `Choice: A` (at most
        one point) to `Choice: E` (all points).
      wrong: the numbers of the reasons, 0 to 4, whose verdict is the wrong one, as a careless judge gives it.

    Returns:
      The judgment, and the points, 0 to 5.
    """
    points, reasons = 0, []

    def add_reason(earned: bool, reason: str, yes: str = "same", no: str = "different") -> None:
        nonlocal points
        earned ^= len(reasons) in wrong
        points += earned
        reason = f"{reason}{yes if earned else no}"
        reasons.append(f"{reason}: {points}." if output_format == "points" else f"{reason}.")

    add_reason(answer.opening in KIND_OPENINGS, f"{answer.opening} is ", "kind", "gruff")
    add_reason(answer.name == request.name, f"Asked by {request.name}, told {answer.name}, ")
    occasion = answer.occasion or "nothing"
    add_reason(occasion == request.occasion, f"Asked for {request.occasion}, meant {occasion}, ")
    verdicts = []
    for number, item in enumerate(answer.items, 1):
        fits = "fits" if TOPIC_BY_WORD[item] == request.topic else "off"
        verdicts.append(f"{number} {item} {TOPIC_BY_WORD[item]} {fits}")
    all_fit = all(TOPIC_BY_WORD[item] == request.topic for item in answer.items)
    add_reason(all_fit, f"Wanted {request.topic}: {', '.join(verdicts)}. ", "All fit", "Not all fit")
    expected, actual = NUMBERS[request.count], NUMBERS[len(answer.items)]
    add_reason(expected == actual, f"Asked {expected}, got {actual}, ")
    verdict = f"Score: {points}" if output_format == "points" else f"Choice: {'AABCDE'[points]}"
    return f"{' '.join(reasons)}\n{verdict}", points


def write_dismissal(output_format: str = "points") -> tuple[str, int]:
    """A judgment of an answer without content, and its points."""
    return "Nothing is named.\n" + ("Score: 0" if output_format == "points" else "Choice: A"), 0


def ift_rows(count: int, rng: random.Random) -> list[Row]:
    """Instruction rows {prompt, response} of mixed quality: each fault is present in half of the answers."""
    rows = []
    for _ in range(count):
        request = write_request(rng)
        rows.append({"prompt": request.text, "response": write_answer(request, IFT_FAULT_RATE, rng).text})
    return rows


def eft_rows(count: int, rng: random.Random, output_format: str = "points") -> list[Row]:
    """Judged rows {prompt, response, judgment, score}, from poor to nearly perfect answers, and some without content.

    The format of the judgments changes nothing else.
    """
    rows = []
    for number in range(1, count + 1):
        request = write_request(rng)
        answer = _judged_answer(request, number, output_format, rng)
        rows.append(
            {
                "prompt": request.text,
                "response": answer.response,
                "judgment": answer.judgment,
                "score": answer.points,
            }
        )
    return rows


def comparison_rows(count: int, rng: random.Random) -> list[Row]:
    """Rows {prompt, first, second, judgment, score}: two judged answers to a request compared."""
    rows = []
    for number in range(1, count + 1):
        request = write_request(rng)
        answers = (_judged_answer(request, number, "points", rng), _judged_answer(request, 0, "points", rng))
        rows.append(comparison_row(request.text, answers, rng))
    return rows


def meta_rows(count: int, rng: random.Random) -> list[Row]:
    """Rows {prompt, response, first, second, judgment, score}: two judgments of an answer compared. One has a wrong
    verdict at least, each with probability META_FAULT_RATE; the other has none in half of the rows. Faults may cancel,
    and then the points are right."""
    rows = []
    for _ in range(count):
        request = write_request(rng)
        answer = write_answer(request, rng.choice(EFT_FAULT_RATES), rng)
        true = Judged(answer.text, *write_judgment(request, answer))
        faults = [{n for n in range(5) if rng.random() < META_FAULT_RATE} for _ in range(2)]
        faults[0] = faults[0] or {rng.randrange(5)}
        faults[1] = faults[1] if rng.random() < 0.5 else set()  # else most pairs would be ties
        judged = [Judged(answer.text, *write_judgment(request, answer, wrong=wrong)) for wrong in faults]
        rows.append(meta_row(request.text, true, judged, rng))
    return rows


def _judged_answer(request: Request, number: int, output_format: str, rng: random.Random) -> Judged:
    """An answer with its judgment; one without content if `number` is a multiple of DEGENERATE_EVERY above 0."""
    answer = write_answer(request, rng.choice(EFT_FAULT_RATES), rng)
    if not number or number % DEGENERATE_EVERY:
        return Judged(answer.text, *write_judgment(request, answer, output_format))
    texts = (*DEGENERATE_RESPONSES, request.text)
    return Judged(texts[number // DEGENERATE_EVERY % len(texts)], *write_dismissal(output_format))


def ranked_rows(num_prompts: int, num_answers: int, rng: random.Random) -> list[Row]:
    """Rows {prompt, answers: [{response, score}]} for evaluating a judge; scores from 0 to 5."""
    rows = []
    for _ in range(num_prompts):
        request = write_request(rng)
        answers = [write_answer(request, rng.choice(EFT_FAULT_RATES), rng) for _ in range(num_answers)]
        rows.append(
            {
                "prompt": request.text,
                "answers": [{"response": a.text, "score": write_judgment(request, a)[1]} for a in answers],
            }
        )
    return rows


def prompts(count: int, rng: random.Random) -> list[str]:
    """Requests without answers."""
    return [write_request(rng).text for _ in range(count)]


def documents(count: int, rng: random.Random) -> list[str]:
    """Plain sentences for the base model: which word belongs to which topic, and sentences about occasions."""
    texts = []
    for _ in range(count):
        topic = rng.choice(list(TOPICS))
        plural, words = TOPICS[topic][0], sorted(rng.sample(TOPIC_WORDS[topic], 3))
        occasion = rng.choice(OCCASIONS)
        texts.append(
            rng.choice(
                [
                    f"We call {words[0]} {topic}, {words[1]} {topic}, {words[2]} {topic}.",
                    f"Among the {plural} are {words[0]}, {words[1]} and {words[2]}.",
                    f"For our {occasion} they brought {words[0]}, {words[1]} and {words[2]}: {plural}.",
                ]
            )
        )
    return texts
