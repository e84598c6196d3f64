"""The expected score: how likely each score was where a judgment names one, instead of the one that was drawn."""

import math
from collections.abc import Sequence
from typing import Any

from selfreward_jax.method.judge_parsing import score_span
from selfreward_jax.sampling.engine import Engine

# What may stand where the judgment of a form names its score, and what it is worth.
VALUES = {
    "points": {str(n): float(n) for n in range(6)},
    "choice": {letter: float(n) for n, letter in enumerate("ABCDE", 1)},
}


def expected_scores(
    engine: Engine, asked: Sequence[tuple[str, str]], form: str, at_once: int = 0
) -> list[float | None]:
    """The mean of the possible scores, weighted by the model's own probability of each at temperature 1.

    The judgment is cut where it names its score. What is compared there is the one token by which the judgment
    with each possible score goes on; the probabilities of these are taken alone and add up to one.

    Args:
      engine: the judging model.
      asked: the judge's prompt and a judgment that names a score.
      form: the form of the judgment.
      at_once: judgments read together; as many as the engine draws samples if 0.

    Returns:
      A number for each; None where the judgment names no score, or the tokenizer does not write each score as one
      token of its own.
    """
    cut = [_candidates(engine, prompt, text, form) for prompt, text in asked]
    found = [c for c in cut if c is not None]
    logprobs = iter(engine.next_logprobs([c[0] for c in found], [c[1] for c in found], at_once))
    values = list(VALUES[form].values())
    return [None if c is None else _mean(values, next(logprobs)) for c in cut]


def _mean(values: Sequence[float], logprobs: Sequence[float]) -> float:
    top = max(logprobs)
    weights = [math.exp(x - top) for x in logprobs]
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _candidates(engine: Engine, prompt: str, text: str, form: str) -> tuple[list[int], list[int]] | None:
    """The ids up to the score, and the id by which each possible score goes on."""
    place: Any = score_span(text, form)
    if place is None:
        return None
    texts = [engine.chat.example(prompt, text[:place] + score).ids for score in VALUES[form]]
    same = 0
    while len({ids[same] for ids in texts}) == 1:
        same += 1
    ids = [t[same] for t in texts]
    return (texts[0][:same], ids) if len(set(ids)) == len(ids) else None
