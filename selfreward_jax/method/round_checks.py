"""What a round's rows must show before anything is trained on them.

A judge that has collapsed, or has learnt to like what says nothing, still writes files of the right form; training on
them makes the next model worse, and the rounds after it build on that.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from selfreward_jax.method.judge import judge_stats
from selfreward_jax.method.prompt_generation import normalize

Row = dict[str, Any]

WORDS = 5  # a held-out prompt of fewer words stands in others by chance

# Settings of config.checks and what each limits: "max_ties" is the most that the reading "ties" may be.
CHECKS = {
    "min_parse_rate": "share of the judge's votes that can be read",
    "min_votes_per_answer": "mean number of votes on an answer that can be read",
    "max_unscored": "share of answers without a score",
    "max_ties": "share of prompts whose answers all have the same score",
    "max_one_score": "share of answers that have the commonest score",
    "min_spread": "mean distance of a prompt's best score from its worst",
    "max_probe_lead": "mean score of answers that say nothing, less that of the model's",
    "max_length_growth": "mean length of answers, over that of the round before",
    "max_repeats": "share of attempted prompts that were there already",
    "max_leaks": "share of new prompts that hold one that was shown or held out",
}


def probes(prompts: Sequence[Row], form: str) -> list[Row]:
    """Answers {id, prompt, response} that deserve nothing: none, a mark, a score, the prompt again."""
    texts = {"empty": "", "mark": ":", "verdict": {"points": "Score: 5", "choice": "Choice: E"}[form]}
    return [
        {"id": f"{row['id']}/{kind}", "prompt": row["prompt"], "response": text}
        for row in prompts
        for kind, text in (texts | {"prompt": row["prompt"]}).items()
    ]


def judge_metrics(judgments: Sequence[Row], gathered: Iterable[Row], of_probes: Sequence[Row]) -> dict[str, Any]:
    """Readings of a round's judge.

    Args:
      judgments: of all answers.
      gathered: the answers with their scores, a row for each prompt, as `pairs.gather` makes them.
      of_probes: judgments of `canaries`; none, if nobody asked for them.

    Returns:
      Readings by the names that `GUARDS` has them under, and what they come from: `votes_per_answer`, `histogram`,
      and the mean score of each kind of canary. None stands where there is nothing to take a mean of.
    """
    found = judge_stats(judgments)
    scores = [row["score"] for row in judgments if row["score"] is not None]
    of_prompts = [[c["score"] for c in row["candidates"] if c["score"] is not None] for row in gathered]
    ranges = [max(of) - min(of) for of in of_prompts if len(of) > 1]
    kinds: dict[str, list[float]] = {}
    for row in of_probes:
        if row["score"] is not None:
            kinds.setdefault(row["id"].rpartition("/")[2], []).append(row["score"])
    of_kinds = {kind: fmean(of) for kind, of in kinds.items()}
    return {
        "parse_rate": found["parse_rate"],
        "votes_per_answer": _share(sum(found["histogram"].values()), len(judgments)),
        "unscored": _share(found["unscored"], len(judgments)),
        "ties": _share(ranges.count(0), len(ranges)),
        "one_score": _share(max(Counter(scores).values(), default=0), len(scores)),
        "spread": fmean(ranges) if ranges else None,
        "probe_lead": fmean(of_kinds.values()) - fmean(scores) if of_kinds and scores else None,
        "probes": of_kinds,
        "histogram": found["histogram"],
    }


def length_growth(answers: Sequence[Row], before: Sequence[Row]) -> float | None:
    """Mean length of answers in characters over that of those before."""
    if not answers or not before:
        return None
    return fmean(len(a["response"]) for a in answers) / max(1.0, fmean(len(a["response"]) for a in before))


def leak_rate(prompts: Sequence[Row], shown: Iterable[str], held_out: Iterable[str]) -> float | None:
    """Share of the prompts that are one of those shown again, or that hold a held-out one of at least `WORDS` words."""
    again = {tuple(normalize(text).split()) for text in shown}
    secret = {words for text in held_out if len(words := tuple(normalize(text).split())) >= WORDS}
    lengths = sorted({len(words) for words in secret})

    def leaked(text: str) -> bool:
        words = tuple(normalize(text).split())
        parts = (words[i : i + n] for n in lengths for i in range(len(words) - n + 1))
        return words in again or any(part in secret for part in parts)

    return _share(sum(leaked(row["prompt"]) for row in prompts), len(prompts))


def violations(metrics: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """What is beyond its limit, a phrase for each; a reading that is None breaks nothing."""
    return [
        f"{name} is {_number(value)}, checks.{limit} {_number(limits[limit])}: {what}"
        for limit, what in CHECKS.items()
        for side, name in [limit.split("_", 1)]
        if (value := metrics[name]) is not None
        and not (value >= limits[limit] if side == "min" else value <= limits[limit])
    ]


def format_metrics(metrics: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    """All readings with their limits on one line."""
    parts = []
    for limit in CHECKS:
        side, name = limit.split("_", 1)
        parts.append(f"{name} {_number(metrics[name])} ({side} {_number(limits[limit])})")
    return ", ".join(parts)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"
