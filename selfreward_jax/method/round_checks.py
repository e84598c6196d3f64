"""Checks of a round's rows before anything is trained on them.

A collapsed judge, or one that has learned to prefer empty content, still writes files of the correct format. Training
on them makes the next model worse, and later rounds build on it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from selfreward_jax.method.judge import judge_stats
from selfreward_jax.method.pairs import comparable
from selfreward_jax.method.prompt_generation import normalize
from selfreward_jax.method.rows import (
    InstructionRow,
    JudgeInput,
    JudgmentRow,
    PromptRow,
    ResponseRow,
    ScoredPrompt,
)
from selfreward_jax.telemetry.numbers import three_digits

MIN_LEAK_WORDS = 5  # a held-out prompt with fewer words appears in other prompts by chance

# Settings of config.checks and the metric that each limits: "max_ties" is the upper limit of the metric "ties".
CHECKS = {
    "min_parse_rate": "fraction of the judge's votes that can be parsed",
    "min_votes_per_answer": "mean number of parsed votes on an answer",
    "max_unscored": "fraction of answers without a score",
    "max_ties": "fraction of prompts whose answers all have the same score",
    "max_one_score": "fraction of answers that have the most common score",
    "min_spread": "mean difference of a prompt's best and worst score",
    "max_probe_lead": "mean score of the probes (answers without content) minus the mean score of the model's answers",
    "max_hack_gain": "mean gain of the planted hack that gains most: 1 if always up to the best score",
    "max_truncated": "fraction of answers that are scored no lower when cut off half-way",
    "max_length_growth": "mean length of answers divided by that of the round before",
    "max_repeats": "fraction of attempted prompts that are duplicates",
    "max_leaks": "fraction of new prompts that repeat an example or contain a held-out prompt",
}

# The end of each check's range: a limit there is never passed. The growth of lengths has no end.
_MINIMA = {"min_parse_rate": 0.0, "min_votes_per_answer": 0.0, "min_spread": 0.0}
_MAXIMA = {
    **dict.fromkeys(("max_unscored", "max_ties", "max_one_score", "max_repeats", "max_leaks"), 1.0),
    **dict.fromkeys(("max_hack_gain", "max_truncated"), 1.0),
    "max_probe_lead": 5.0,
}


def switched_off(limits: Mapping[str, float]) -> list[str]:
    """The checks whose limits no value is beyond."""
    low = [name for name, end in _MINIMA.items() if limits[name] <= end]
    return low + [name for name, end in _MAXIMA.items() if limits[name] >= end]


def unmeasured(metrics: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """The checks that are on and whose metrics are None."""
    off = switched_off(limits)
    return [limit for limit in CHECKS if limit not in off and metrics[limit.partition("_")[2]] is None]


def probes(prompts: Sequence[PromptRow], output_format: str) -> list[JudgeInput]:
    """Answers {id, prompt, response} without content: empty, a punctuation mark, a verdict, the prompt itself."""
    texts = {"empty": "", "mark": ":", "verdict": {"points": "Score: 5", "choice": "Choice: E"}[output_format]}
    return [
        {"id": f"{row['id']}/{kind}", "prompt": row["prompt"], "response": text}
        for row in prompts
        for kind, text in (texts | {"prompt": row["prompt"]}).items()
    ]


def judge_metrics(
    judgments: Sequence[JudgmentRow], scored_prompts: Iterable[ScoredPrompt], probe_judgments: Sequence[JudgmentRow]
) -> dict[str, Any]:
    """Metrics of a round's judge.

    Args:
      judgments: of all answers.
      scored_prompts: the answers with their scores, one row for each prompt, from `pairs.join_scores`.
      probe_judgments: of the `probes`; empty if there are none.

    Returns:
      The metrics that CHECKS limits, and `histogram` of votes and `probes`, the mean score of each kind of probe. A
      metric that is a mean of nothing is None.
    """
    stats = judge_stats(judgments)
    scores = [row["score"] for row in judgments if row["score"] is not None]
    scores_by_prompt = [[c["score"] for c in row["candidates"] if c["score"] is not None] for row in scored_prompts]
    ranges = [max(prompt_scores) - min(prompt_scores) for prompt_scores in scores_by_prompt if len(prompt_scores) > 1]
    probe_scores: dict[str, list[float]] = {}
    for row in probe_judgments:
        if row["score"] is not None:
            probe_scores.setdefault(row["id"].rpartition("/")[2], []).append(row["score"])
    probe_means = {kind: fmean(kind_scores) for kind, kind_scores in probe_scores.items()}
    return {
        "parse_rate": stats["parse_rate"],
        "votes_per_answer": _ratio(sum(stats["histogram"].values()), len(judgments)),
        "unscored": _ratio(stats["unscored"], len(judgments)),
        "ties": _ratio(sum(comparable(r) == 0 for r in ranges), len(ranges)),
        "one_score": _ratio(max(Counter(map(comparable, scores)).values(), default=0), len(scores)),
        "spread": fmean(ranges) if ranges else None,
        "probe_lead": fmean(probe_means.values()) - fmean(scores) if probe_means and scores else None,
        "probes": probe_means,
        "histogram": stats["histogram"],
    }


def length_growth(responses: Sequence[ResponseRow], previous: Sequence[ResponseRow | InstructionRow]) -> float | None:
    """Mean length of responses in characters, divided by that of the previous ones; None if one of them is empty."""
    if not responses or not previous:
        return None
    return fmean(len(r["response"]) for r in responses) / max(1.0, fmean(len(r["response"]) for r in previous))


def leak_rate(prompts: Sequence[PromptRow], examples: Iterable[str], held_out: Iterable[str]) -> float | None:
    """Fraction of prompts that leak; None without prompts.

    A prompt leaks if it equals one of the few-shot examples, or contains a held-out prompt of at least MIN_LEAK_WORDS
    words. Texts are compared after `normalize`.
    """
    example_words = {tuple(normalize(text).split()) for text in examples}
    held_out_words = {w for text in held_out if len(w := tuple(normalize(text).split())) >= MIN_LEAK_WORDS}
    lengths = sorted({len(words) for words in held_out_words})

    def leaks(text: str) -> bool:
        words = tuple(normalize(text).split())
        ngrams = (words[i : i + n] for n in lengths for i in range(len(words) - n + 1))
        return words in example_words or any(ngram in held_out_words for ngram in ngrams)

    return _ratio(sum(leaks(row["prompt"]) for row in prompts), len(prompts))


def violated(metrics: Mapping[str, Any], limits: Mapping[str, float], checks: Iterable[str] = CHECKS) -> list[str]:
    """Those of `checks` whose metrics are beyond their limits; a metric that is None violates nothing."""
    names = []
    for limit in checks:
        side, name = limit.split("_", 1)
        value, bound = metrics[name], limits[limit]
        if value is not None and not (value >= bound if side == "min" else value <= bound):  # NaN violates both sides
            names.append(limit)
    return names


def violations(metrics: Mapping[str, Any], limits: Mapping[str, float], checks: Iterable[str] = CHECKS) -> list[str]:
    """One phrase for each of the checks that are `violated`."""
    phrases = []
    for limit in violated(metrics, limits, checks):
        name = limit.partition("_")[2]
        values = f"{name} is {three_digits(metrics[name])}, checks.{limit} {three_digits(limits[limit])}"
        phrases.append(f"{values}: {CHECKS[limit]}")
    return phrases


def format_metrics(metrics: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """All metrics with their limits as a table."""
    lines, off = [], switched_off(limits)
    for limit in CHECKS:
        side, name = limit.split("_", 1)
        passed = "-" if metrics[name] is None else "ok"
        sign = "FAIL" if violations(metrics, limits, [limit]) else "off" if limit in off else passed
        value, bound = three_digits(metrics[name]), three_digits(limits[limit])
        lines.append(f"    {sign:4s}  {name:17s} {value:>8s}   {side} {bound}")
    return lines


def _ratio(part: int, total: int) -> float | None:
    return part / total if total else None
