"""The embedded world: short lists on request, with a judge's written reasons.

Somebody asks for a number of things of one kind for an occasion. An answer can be better or worse in five
independent ways: a kind opening, the occasion asked for, only things of that kind, nothing twice, and the right
number. The seed answers are of mixed quality: each fault is put in by chance, and each is also often absent.
That is what gives self-rewarding something to work with: a model that imitates the seeds can already give the
good answer, it only does not prefer it.

This module writes seeds. The oracle that measures answers is oracle.py, which only evaluate/ may import.
"""

import random
from typing import NamedTuple

from selfreward_jax.worlds.words import (
    GRUFF_OPENINGS,
    KIND_OPENINGS,
    NUMBERS,
    OCCASION_KINDS,
    OCCASIONS,
    REQUESTS,
    TOPICS,
)

Row = dict[str, object]

TOPIC_OF = {word: topic for topic, (_, words) in TOPICS.items() for word in words.split()}
COUNTS = (2, 3, 4, 5)


class Request(NamedTuple):
    """What was asked."""

    count: int
    topic: str
    occasion: str
    text: str


class Answer(NamedTuple):
    """What was answered; `occasion` None when the answer does not name one."""

    opening: str
    occasion: str | None
    items: tuple[str, ...]

    @property
    def text(self) -> str:
        purpose = f"For your {self.occasion}" if self.occasion else "Here you go"
        return f"{self.opening}! {purpose}: {', '.join(self.items)}."


def write_request(rng: random.Random) -> Request:
    """One of about 250,000 requests, each equally likely."""
    count, topic = rng.choice(COUNTS), rng.choice(list(TOPICS))
    occasion = f"{rng.choice(OCCASION_KINDS)} {rng.choice(OCCASIONS)}"
    text = rng.choice(REQUESTS).format(n=NUMBERS[count], topic=TOPICS[topic][0], occasion=occasion)
    return Request(count, topic, occasion, text)


def write_answer(request: Request, fault: float, rng: random.Random) -> Answer:
    """An answer that commits each of the five faults with probability `fault`, independently."""
    opening = rng.choice(GRUFF_OPENINGS if rng.random() < fault else KIND_OPENINGS)
    occasion: str | None = request.occasion
    if rng.random() < fault:
        kind, place = request.occasion.split()
        other_kind = rng.choice([k for k in OCCASION_KINDS if k != kind])
        other_place = rng.choice([p for p in OCCASIONS if p != place])
        occasion = rng.choice(
            [None, f"{other_kind} {place}", f"{kind} {other_place}", f"{other_kind} {other_place}"]
        )
    # As often one too many as one too few, so that length says nothing of quality.
    count = request.count + (rng.choice([-1, 1]) if rng.random() < fault else 0)
    items = rng.sample(TOPICS[request.topic][1].split(), count)
    if rng.random() < fault:
        strangers = [w for w, t in TOPIC_OF.items() if t != request.topic]
        for i in rng.sample(range(count), min(count, rng.choice([1, 1, 2]))):
            items[i] = rng.choice([w for w in strangers if w not in items])
    if rng.random() < fault and count > 1:
        first, second = sorted(rng.sample(range(count), 2))
        items[second] = items[first]
    return Answer(opening, occasion, tuple(items))


def write_judgement(request: Request, answer: Answer) -> tuple[str, int]:
    """A judge's reasons, each a short look-up before its verdict, points added as they come, and the score."""
    points = int(answer.opening in KIND_OPENINGS)
    said = [f"{answer.opening} is {'kind' if points else 'gruff'}: {points}."]
    meant = answer.occasion or "nothing"
    points += meant == request.occasion
    same = "same" if meant == request.occasion else "different"
    said.append(f"Asked for {request.occasion}, meant {meant}, {same}: {points}.")
    lines, seen = [], set()
    for number, item in enumerate(answer.items, 1):
        verdict = "fits" if TOPIC_OF[item] == request.topic else "off"
        again = " again" if item in seen else ""
        seen.add(item)
        lines.append(f"{NUMBERS[number]} {item} {TOPIC_OF[item]} {verdict}{again}")
    said.append(f"Wanted {request.topic}: {', '.join(lines)}.")
    fit = all(TOPIC_OF[item] == request.topic for item in answer.items)
    points += fit
    said.append(f"{'All fit' if fit else 'Not all fit'}: {points}.")
    new = len(seen) == len(answer.items)
    points += new
    said.append(f"{'Nothing' if new else 'Something'} again: {points}.")
    right = len(answer.items) == request.count
    points += right
    said.append(
        f"Asked {NUMBERS[request.count]}, got {NUMBERS[len(answer.items)]}, "
        f"{'same' if right else 'different'}: {points}."
    )
    return f"{' '.join(said)}\nScore: {points}", points


def ift_rows(count: int, rng: random.Random) -> list[Row]:
    """Instruction rows {prompt, response} of mixed quality: every fault is present in two answers of five."""
    rows = []
    for _ in range(count):
        request = write_request(rng)
        rows.append({"prompt": request.text, "response": write_answer(request, 0.4, rng).text})
    return rows


def eft_rows(count: int, rng: random.Random) -> list[Row]:
    """Judged rows {prompt, response, judgement, score}, from poor answers to nearly perfect ones."""
    rows = []
    for _ in range(count):
        request = write_request(rng)
        answer = write_answer(request, rng.choice([0.1, 0.3, 0.5]), rng)
        judgement, score = write_judgement(request, answer)
        rows.append(
            {"prompt": request.text, "response": answer.text, "judgement": judgement, "score": score}
        )
    return rows


def ranked_rows(prompts: int, answers: int, rng: random.Random) -> list[Row]:
    """Rows {prompt, answers: [{response, score}]} for measuring a judge; scores from 0 to 5."""
    rows = []
    for _ in range(prompts):
        request = write_request(rng)
        written = [write_answer(request, rng.choice([0.1, 0.3, 0.5]), rng) for _ in range(answers)]
        rows.append(
            {
                "prompt": request.text,
                "answers": [{"response": a.text, "score": write_judgement(request, a)[1]} for a in written],
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
        plural, words = TOPICS[topic]
        some = rng.sample(words.split(), 3)
        occasion = f"{rng.choice(OCCASION_KINDS)} {rng.choice(OCCASIONS)}"
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
