"""The embedded world: short lists on request, with a judge's written reasons.

Somebody gives a name and asks for a number of things of one kind for an occasion. An answer can be better or worse
in five independent ways: a kind opening, the asker's name, the occasion asked for, only things of that kind, and the
right number. The seed answers are of mixed quality: each fault is put in by chance, and each is as often absent.
That is what gives self-rewarding something to work with: a model that imitates the seeds can already give the good
answer, it only does not prefer it. And every point is a short look-up, so that a small model can learn to judge.

This module writes seeds. The oracle that measures answers is oracle.py, which only evaluate/ may import.
"""

import random
from typing import NamedTuple

from selfreward_jax.worlds.toy.vocabulary import (
    ANYBODY,
    GREETINGS,
    GRUFF_OPENINGS,
    KIND_OPENINGS,
    NAMES,
    NUMBERS,
    OCCASIONS,
    REQUESTS,
    SIBLINGS,
    TOPICS,
)

Row = dict[str, object]

WORDS = {topic: words.split() for topic, (_, words) in TOPICS.items()}
TOPIC_OF = {word: topic for topic, words in WORDS.items() for word in words}
COUNTS = (2, 3, 4, 5)

# Chance of each fault: in instruction rows, and in judged rows, which run from poor answers to nearly perfect ones.
IFT_FAULT = 0.5
EFT_FAULTS = (0.1, 0.3, 0.6)
# One judged answer in so many says nothing: it is one of these, or the request again. A judge that has never seen such
# an answer makes up what to praise in it.
DEGENERATE_EVERY = 32
DEGENERATE_RESPONSES = ("", "Hello.", "I do not know.")


class Request(NamedTuple):
    """What was asked, and by whom."""

    name: str
    count: int
    topic: str
    occasion: str
    text: str


class Answer(NamedTuple):
    """What was answered; `occasion` is None when the answer does not name one."""

    opening: str
    name: str
    occasion: str | None
    items: tuple[str, ...]

    @property
    def text(self) -> str:
        """The answer as it is written."""
        purpose = f"For your {self.occasion}" if self.occasion else "Here you go"
        items = ", ".join(f"{number} {item}" for number, item in enumerate(self.items, 1))
        return f"{self.opening}, {self.name}! {purpose}: {items}."


def write_request(rng: random.Random) -> Request:
    """One of 2,880,000 requests, each equally likely."""
    name, count = rng.choice(NAMES), rng.choice(COUNTS)
    topic, occasion = rng.choice(list(TOPICS)), rng.choice(OCCASIONS)
    asked = rng.choice(REQUESTS).format(n=NUMBERS[count], topic=TOPICS[topic][0], occasion=occasion)
    return Request(name, count, topic, occasion, f"{rng.choice(GREETINGS).format(name=name)} {asked}")


def write_answer(request: Request, fault: float, rng: random.Random) -> Answer:
    """An answer that commits each of the five faults with probability `fault`, independently."""

    def faulty() -> bool:
        return rng.random() < fault

    opening = rng.choice(GRUFF_OPENINGS if faulty() else KIND_OPENINGS)
    # Careless, not mistaken: somebody else's name would ask the judge to compare two words, which a model of this size
    # does not learn from seeds in which it is rare; and a fault that the judge cannot see grows from round to round.
    name = ANYBODY if faulty() else request.name
    occasion = None if faulty() else request.occasion
    # As often one too many as one too few, so that length says nothing of quality.
    count = request.count + (rng.choice([-1, 1]) if faulty() else 0)
    items = rng.sample(WORDS[request.topic], count)
    if faulty():
        strangers = rng.sample(WORDS[SIBLINGS[request.topic]], count)
        for i in rng.sample(range(count), rng.randint(1, count)):
            items[i] = strangers[i]
    # In the order of the alphabet, as tidy people list things: what follows an item never is that item again, and a
    # model of any size can see that.
    return Answer(opening, name, occasion, tuple(sorted(items)))


def write_judgment(request: Request, answer: Answer, form: str = "points") -> tuple[str, int]:
    """A judge's reasons, each a short look-up before its verdict, and what they come to.

    Args:
      request, answer: what is judged.
      form: "points" are added as they come and end in `Score: n`; for "choice" the reasons are the same without the
        adding up, and end in the letter of one of five grades, `Choice: A` (at most one point) to `Choice: E` (all).

    Returns:
      The judgment, and the points, 0 to 5.
    """
    points, said = 0, []

    def earned(right: bool, reason: str) -> None:
        nonlocal points
        points += right
        said.append(f"{reason}: {points}." if form == "points" else f"{reason}.")

    kind = answer.opening in KIND_OPENINGS
    earned(kind, f"{answer.opening} is {'kind' if kind else 'gruff'}")
    same = answer.name == request.name
    earned(same, f"Asked by {request.name}, told {answer.name}, {'same' if same else 'different'}")
    meant = answer.occasion or "nothing"
    same = meant == request.occasion
    earned(same, f"Asked for {request.occasion}, meant {meant}, {'same' if same else 'different'}")
    verdicts = []
    for number, item in enumerate(answer.items, 1):
        fits = "fits" if TOPIC_OF[item] == request.topic else "off"
        verdicts.append(f"{number} {item} {TOPIC_OF[item]} {fits}")
    all_fit = all(TOPIC_OF[item] == request.topic for item in answer.items)
    earned(all_fit, f"Wanted {request.topic}: {', '.join(verdicts)}. {'All fit' if all_fit else 'Not all fit'}")
    asked, got = NUMBERS[request.count], NUMBERS[len(answer.items)]
    earned(asked == got, f"Asked {asked}, got {got}, {'same' if asked == got else 'different'}")
    end = f"Score: {points}" if form == "points" else f"Choice: {'AABCDE'[points]}"
    return f"{' '.join(said)}\n{end}", points


def write_dismissal(form: str = "points") -> tuple[str, int]:
    """A judge's word on an answer that says nothing, and its points."""
    return "Nothing is named.\n" + ("Score: 0" if form == "points" else "Choice: A"), 0


def ift_rows(count: int, rng: random.Random) -> list[Row]:
    """Instruction rows {prompt, response} of mixed quality: every fault is present in half of the answers."""
    rows = []
    for _ in range(count):
        request = write_request(rng)
        rows.append({"prompt": request.text, "response": write_answer(request, IFT_FAULT, rng).text})
    return rows


def eft_rows(count: int, rng: random.Random, form: str = "points") -> list[Row]:
    """Judged rows {prompt, response, judgment, score}, from poor answers to nearly perfect ones, and some that say
    nothing. The form of the judgments changes nothing else."""
    rows = []
    for number in range(1, count + 1):
        request = write_request(rng)
        answer = write_answer(request, rng.choice(EFT_FAULTS), rng)
        text, (judgment, score) = answer.text, write_judgment(request, answer, form)
        if number % DEGENERATE_EVERY == 0:
            kinds = (*DEGENERATE_RESPONSES, request.text)
            text, (judgment, score) = kinds[number // DEGENERATE_EVERY % len(kinds)], write_dismissal(form)
        rows.append({"prompt": request.text, "response": text, "judgment": judgment, "score": score})
    return rows


def ranked_rows(prompts: int, answers: int, rng: random.Random) -> list[Row]:
    """Rows {prompt, answers: [{response, score}]} for measuring a judge; scores from 0 to 5."""
    rows = []
    for _ in range(prompts):
        request = write_request(rng)
        written = [write_answer(request, rng.choice(EFT_FAULTS), rng) for _ in range(answers)]
        rows.append(
            {
                "prompt": request.text,
                "answers": [{"response": a.text, "score": write_judgment(request, a)[1]} for a in written],
            }
        )
    return rows


def prompts(count: int, rng: random.Random) -> list[str]:
    """Requests without answers."""
    return [write_request(rng).text for _ in range(count)]


def documents(count: int, rng: random.Random) -> list[str]:
    """Plain sentences for the base model: which word is what, and people talking of occasions."""
    texts = []
    for _ in range(count):
        topic = rng.choice(list(TOPICS))
        plural, some = TOPICS[topic][0], sorted(rng.sample(WORDS[topic], 3))
        occasion = rng.choice(OCCASIONS)
        texts.append(
            rng.choice(
                [
                    f"We call {some[0]} {topic}, {some[1]} {topic}, {some[2]} {topic}.",
                    f"Among the {plural} are {some[0]}, {some[1]} and {some[2]}.",
                    f"For our {occasion} they brought {some[0]}, {some[1]} and {some[2]}: {plural}.",
                ]
            )
        )
    return texts
