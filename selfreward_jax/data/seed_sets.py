"""Seed rows, from the embedded world or from the user's own data."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from random import Random
from typing import Any

from selfreward_jax.config.columns import parse_columns
from selfreward_jax.data.answers import DROP_REASONS, Answer
from selfreward_jax.data.fields import FIELD_NAMES
from selfreward_jax.data.limits import DataError as DataError  # also part of this module's API
from selfreward_jax.data.merge import (
    ParsedSource,
    PromptWithResponses,
    keep_best,
    normalize_scores,
    parseable_judgment,
    read_prompts_with_responses,
)
from selfreward_jax.data.readers import naming
from selfreward_jax.method.prompt_generation import normalize
from selfreward_jax.method.rows import InstructionRow, JudgedRow, RankedResponse, RankedRow, Row
from selfreward_jax.telemetry.numbers import counted
from selfreward_jax.worlds.comparison import Judged, comparison_row
from selfreward_jax.worlds.toy import generator

SeedSets = dict[str, list[Any]]  # rows of method/rows.py, by the name of the set
AnswersByPrompt = dict[str, PromptWithResponses]  # by the normalized text of the prompt
# Why answers are dropped after reading, in addition to parsers.DROP_REASONS.
SPLIT_DROP_REASONS = {
    "ift": ("label is false", "not the best answer", "held out", "assigned to eft", "over the limit"),
    "eft": ("no score", "single ranked answer", "held out", "nothing to order", "assigned to ift", "over the limit"),
}
# The settings that decide how many answers are dropped for a reason.
DECIDING_SETTINGS = {
    "other language": "data.language",
    "held out": "data.judge_eval_prompts",
    "assigned to eft": "data.shared_to_ift",
    "assigned to ift": "data.shared_to_ift",
}
MIN_RANKABLE = 8  # prompts that a judge can be measured on: a quarter is held out for each of two sets, 2 in each


def from_world(settings: Any, seed: int, output_format: str = "points") -> tuple[SeedSets, dict[str, Any]]:
    """The seed sets of the embedded world.

    Each set has its own random stream, so that the size of one set does not change the others.

    Args:
      settings: config.data.
      seed: everything random follows from it.
      output_format: what written judgments end in, as config.judge.output_format.

    Returns:
      The sets, and a report like that of `from_files`. A judged row whose prompt is also an instruction row's is
      dropped.
    """

    def stream(name: str) -> Random:
        return Random(f"{seed} {name}")

    sets: SeedSets = {
        "ift": generator.ift_rows(settings.ift_rows, stream("ift")),
        "eft": generator.eft_rows(settings.eft_rows, stream("eft"), output_format),
        "documents": [{"text": t} for t in generator.documents(settings.num_documents, stream("documents"))],
    }
    used = _prompt_keys(sets["ift"])
    sets["eft"] = [row for row in sets["eft"] if normalize(str(row["prompt"])) not in used]
    if settings.comparison_rows:
        sets["comparisons"] = generator.comparison_rows(settings.comparison_rows, stream("comparisons"))
        used |= _prompt_keys(sets["comparisons"])
    if settings.meta_rows:
        sets["meta"] = generator.meta_rows(settings.meta_rows, stream("meta"))
        used |= _prompt_keys(sets["meta"])
    used |= _prompt_keys(sets["eft"])

    def take_unused(rows: list[Row], count: int) -> list[Row]:
        unused = []
        for row in rows:
            if (prompt := normalize(str(row["prompt"]))) not in used and len(unused) < count:
                used.add(prompt)
                unused.append(row)
        return unused

    num_prompts, num_ranked = settings.heldout_prompts, settings.judge_eval_prompts
    for split in ("validation", "heldout"):
        prompts = [{"prompt": p} for p in generator.prompts(2 * num_prompts, stream(split))]
        sets[split] = take_unused(prompts, num_prompts)
        ranked = generator.ranked_rows(2 * num_ranked, settings.judge_eval_answers, stream(f"ranked_{split}"))
        sets[f"ranked_{split}"] = take_unused(ranked, num_ranked)
    _check_disjoint(sets)
    ift_counts = Counter(read=settings.ift_rows, records=settings.ift_rows)
    eft_counts = Counter(read=settings.eft_rows, records=settings.eft_rows)
    eft_counts["assigned to ift"] = settings.eft_rows - len(sets["eft"])
    return sets, _report(sets, ift_counts, eft_counts, {})


def from_files(
    settings: Any, seed: int, eft_settings: Any = None, output_format: str = "points"
) -> tuple[SeedSets, dict[str, Any]]:
    """Seed sets from the sources `settings.ift` and `settings.eft`, and a report of what each filter dropped.

    A shuffle by `seed` of the judged prompts chooses the held-out ones: `settings.judge_eval_prompts` each for
    `ranked_heldout` and `ranked_validation`. Each other prompt that both sources have is assigned to one of them. So no
    prompt is in two of IFT, EFT, validation and held-out sets. Scores are mapped to 0-5 by `normalize_scores`.

    Args:
      settings: config.data.
      seed: everything random follows from it.
      eft_settings: config.eft. If its source is "baseline", the sets have `eft_answers` in place of the judged rows
        `eft`: rows {prompt, answers: [{response, score[, judgment]}]} from which the judged rows are made later.
      output_format: what the judgments that are made from scores end in, as config.judge.output_format.

    Raises:
      DataError: a source cannot be read or has too many malformed rows, or too few rows are left.
    """
    loaded = _read(settings)
    counts = {name: Counter(loaded[settings[name]].counts) for name in ("ift", "eft")}
    ift = keep_best(loaded[settings.ift].prompts, counts["ift"])
    judged, scores = normalize_scores(loaded[settings.eft].prompts, counts["eft"], settings.eft)
    order = list(judged)
    Random(f"{seed} split").shuffle(order)
    rankable = [p for p in order if len({a.score for a in judged[p].answers}) > 1]
    num_held_out = min(settings.judge_eval_prompts, len(rankable) // 4)  # for each of the two splits
    held_out = rankable[: 2 * num_held_out]
    sets = _held_out_sets([judged[p] for p in held_out], settings.heldout_prompts)
    ift = _drop_prompts(ift, held_out, counts["ift"], "held out")
    judged = _drop_prompts(judged, held_out, counts["eft"], "held out")
    baseline_judges = eft_settings is not None and eft_settings.source == "baseline"
    if baseline_judges:
        judged = _drop_prompts(judged, judged.keys() - set(rankable), counts["eft"], "nothing to order")
    ift, judged = _split_shared_prompts(ift, judged, settings.shared_to_ift, Random(f"{seed} shared"), counts)
    sets["ift"] = _limit(_instruction_rows(ift.values()), settings.ift_rows, counts["ift"])
    sets["documents"] = [{"text": f"{r['prompt']}\n{r['response']}"} for r in sets["ift"]]
    train = [judged[p] for p in order if p in judged]
    if baseline_judges:  # the row limit applies when they are judged, after the filters of that stage
        sets["eft_answers"] = [_row_to_judge(prompt, output_format) for prompt in train]
    else:
        sets["eft"] = _limit(_judged_rows(train, output_format), settings.eft_rows, counts["eft"])
    if settings.comparison_rows:
        sets["comparisons"] = _comparison_rows(train, settings.comparison_rows, Random(f"{seed} comparisons"))
    _check_disjoint(sets)
    report = _report(sets, counts["ift"], counts["eft"], scores)
    report["written judgments"] = sum(
        parseable_judgment(a, output_format) is not None for p in train for a in p.answers
    )
    report["heldout"] = {
        "prompts": len(sets["heldout"]),
        "heldout_prompts": settings.heldout_prompts,
        "judge_eval_prompts": settings.judge_eval_prompts,
    }
    report["faults"] = {name: loaded[settings[name]].faults for name in ("ift", "eft")}
    report["notices"] = {name: loaded[settings[name]].notices for name in ("ift", "eft")}
    _check_sizes(settings, report, len(rankable))
    return sets, report


def _read(settings: Any) -> dict[str, ParsedSource]:
    """What each source holds; a file that serves as both is read once."""
    loaded = {}
    columns = parse_columns(settings.columns)
    for source in dict.fromkeys((settings.ift, settings.eft)):
        with naming(" and ".join(f"data.{name}" for name in ("ift", "eft") if settings[name] == source)):
            loaded[source] = read_prompts_with_responses(
                source, settings.language, settings.max_malformed_frac, columns
            )
    return loaded


def _check_sizes(settings: Any, report: dict[str, Any], num_rankable: int) -> None:
    """Raises DataError where too little is left to train the model or its judge, or to measure it."""
    ift, eft = report["ift"], report["eft"]
    if num_rankable and settings.judge_eval_prompts < 2:
        raise DataError(f"data.judge_eval_prompts is {settings.judge_eval_prompts}: the judge is measured on 2 or more")
    if eft["no score"] and not num_rankable:
        shortage = (
            f"data.eft {settings.eft}: no prompt has answers with different scores, and {eft['no score']:,} of "
            f"{eft['read']:,} answers have no score: give each one under the key {' or '.join(FIELD_NAMES['score'])} "
            "(a number, higher is better) or rank (0 is best), or give chosen and rejected"
        )
    elif num_rankable < MIN_RANKABLE:
        shortage = (
            f"data.eft {settings.eft} has {num_rankable} prompts with answers of different scores, and {MIN_RANKABLE} "
            "are needed: give several answers to a prompt, each with its score"
        )
    elif ift["kept"] < 2:
        shortage = f"data.ift {settings.ift} leaves {ift['kept']} instruction rows, and 2 are needed: give more rows"
    elif eft["kept"] < 2:
        shortage = f"data.eft {settings.eft} leaves {eft['kept']} judged rows, and 2 are needed: give more rows"
    else:
        return
    raise DataError(f"{shortage} ({'; '.join(_count_lines(report))})")


def format_report(report: dict[str, Any]) -> list[str]:
    """A report of `from_files` or `from_world` as lines: what each filter dropped from IFT and from EFT."""
    lines = _count_lines(report)
    if tasks := report.get("tasks"):
        drops = "".join(f"; {tasks[reason]:,} {reason}" for reason in DROP_REASONS if tasks[reason])
        used = f"{tasks['used']:,} of {tasks['read']:,} answers"
        lines.insert(0, f"tasks: {used}, {tasks['training']:,} to train on{drops}")
    if scores := report.get("scores"):
        lines.append(f"eft: scores from {scores['lowest']:g} to {scores['highest']:g} are mapped to 0 to 5")
    if count := report.get("written judgments"):
        lines.append(f"eft: {count:,} of the kept answers have a written judgment")
    heldout = report.get("heldout", {"prompts": 0, "heldout_prompts": 0})
    if heldout["prompts"] < heldout["heldout_prompts"]:
        lines.append(
            f"held out: {heldout['prompts']:,} prompts to answer, not data.heldout_prompts "
            f"{heldout['heldout_prompts']:,}: a file gives a quarter of its ranked prompts, at most "
            f"data.judge_eval_prompts {heldout['judge_eval_prompts']:,}"
        )
    shown_notices: list[str] = []
    for name, notices in report.get("notices", {}).items():
        if notices != shown_notices:
            lines += [f"{name}: {notice}" for notice in notices]
            shown_notices = notices
    shown: list[str] = []  # one file may be the source of both sets
    for name, faults in report.get("faults", {}).items():
        if faults and faults != shown:
            shown, count = faults, sum(report[name][reason] for reason in DROP_REASONS[:3])
            lines.append(f"{name}: {counted(count, 'malformed row')} dropped, the first: {faults[0]}")
    return lines


def _count_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("ift", "eft"):
        settings = DECIDING_SETTINGS | {"over the limit": f"data.{name}_rows"}
        drops = [
            f"{count:,} {reason} ({settings[reason]})" if reason in settings else f"{count:,} {reason}"
            for reason, count in report[name].items()
            if count and reason not in ("read", "kept")
        ]
        kept = f"{report[name]['kept']:,} kept (prompts: {report['prompts'][name]:,})"
        read = f"{report[name]['read']:,} {'rows made' if 'tasks' in report else 'answers read'}"
        lines.append("; ".join([f"{name}: {read}", *drops, kept]))
    return lines


def one_line_judgment(score: int, output_format: str = "points") -> str:
    """A written judgment for an answer that has a score from 0 to 5 but no judgment."""
    if output_format == "choice":
        letter = "AABCDE"[score]
        return f"This answer deserves the grade {letter}.\nChoice: {letter}"
    return f"This answer earns {score} of 5 points.\nScore: {score}"


def prompt_rows(
    prompts: Sequence[str], count: int, num_examples: int, few_shot_prompt: Callable[[list[str]], str], rng: Random
) -> list[InstructionRow]:
    """Rows that teach prompt generation: a few-shot prompt of `num_examples` prompts, and another prompt to write."""
    rows: list[InstructionRow] = []
    for _ in range(count):
        *examples, target = rng.sample(prompts, num_examples + 1)
        rows.append({"prompt": few_shot_prompt(examples), "response": target})
    return rows


def judge_rows(eft: Sequence[JudgedRow], judge_prompt: Callable[[str, str], str]) -> list[InstructionRow]:
    """EFT as training rows: the judge's prompt, and the written judgment as its response."""
    return [{"prompt": judge_prompt(r["prompt"], r["response"]), "response": r["judgment"]} for r in eft]


def _drop_prompts(
    prompts: AnswersByPrompt, dropped: Iterable[str], counts: Counter[str], reason: str
) -> AnswersByPrompt:
    """The prompts without those in `dropped`, whose answers are counted under `reason`."""
    dropped = set(dropped)
    counts[reason] += sum(len(prompt.answers) for key, prompt in prompts.items() if key in dropped)
    return {key: prompt for key, prompt in prompts.items() if key not in dropped}


def _limit(rows: list[Any], limit: int, counts: Counter[str]) -> list[Any]:
    kept = rows[: limit or None]
    counts["over the limit"] += len(rows) - len(kept)
    return kept


def _held_out_sets(prompts: Sequence[PromptWithResponses], num_prompts: int) -> SeedSets:
    """The held-out sets from the first half, the validation sets from the second."""
    half = len(prompts) // 2
    sets: SeedSets = {}
    for name, part in (("heldout", prompts[:half]), ("validation", prompts[half:])):
        sets[f"ranked_{name}"] = [_ranked_row(prompt) for prompt in part]
        sets[name] = [_prompt_fields(prompt) for prompt in part][:num_prompts]
    return sets


def _split_shared_prompts(
    ift: AnswersByPrompt, eft: AnswersByPrompt, ift_share: float, rng: Random, counts: dict[str, Counter[str]]
) -> tuple[AnswersByPrompt, AnswersByPrompt]:
    """Assigns each prompt that is in both sets to one of them: a share to IFT, the others to EFT."""
    shared = [prompt for prompt in eft if prompt in ift]
    rng.shuffle(shared)
    num_to_ift = round(ift_share * len(shared))
    return (
        _drop_prompts(ift, shared[num_to_ift:], counts["ift"], "assigned to eft"),
        _drop_prompts(eft, shared[:num_to_ift], counts["eft"], "assigned to ift"),
    )


def _instruction_rows(prompts: Iterable[PromptWithResponses]) -> list[InstructionRow]:
    return [{**_prompt_fields(p), "response": answer.response} for p in prompts for answer in p.answers]


def _prompt_fields(prompt: PromptWithResponses) -> dict[str, str]:
    return {"prompt": prompt.prompt} | ({"system": prompt.system} if prompt.system else {})


def _judged_rows(prompts: Iterable[PromptWithResponses], output_format: str) -> list[JudgedRow]:
    """Judged rows. An answer without a parseable judgment gets a one-line judgment made from its score."""
    return [
        {
            "prompt": p.prompt,
            "response": answer.response,
            "judgment": parseable_judgment(answer, output_format)
            or one_line_judgment(round(answer.score), output_format),
            "score": round(answer.score),
        }
        for p in prompts
        for answer in p.answers
    ]


def _comparison_rows(prompts: Iterable[PromptWithResponses], count: int, rng: Random) -> list[Row]:
    """At most `count` comparisons of two answers whose scores differ as they are written, with the judgments that
    `_judged_rows` has."""

    def judged(answer: Answer) -> Judged:
        judgment = parseable_judgment(answer, "points") or one_line_judgment(round(answer.score))
        return Judged(answer.response, judgment, answer.score)

    pairs = [
        (p.prompt, two)
        for p in prompts
        for two in combinations(p.answers, 2)
        if round(two[0].score) != round(two[1].score)
    ]
    chosen = rng.sample(pairs, min(count, len(pairs)))
    return [comparison_row(prompt, (judged(one), judged(other)), rng) for prompt, (one, other) in chosen]


def _ranked_row(prompt: PromptWithResponses) -> RankedRow:
    answers: list[RankedResponse] = [{"response": a.response, "score": a.score} for a in prompt.answers]
    return {"prompt": prompt.prompt, "answers": answers}


def _row_to_judge(prompt: PromptWithResponses, output_format: str) -> RankedRow:
    """A ranked row with the parseable judgments."""
    row = _ranked_row(prompt)
    for ranked, answer in zip(row["answers"], prompt.answers, strict=True):
        if judgment := parseable_judgment(answer, output_format):
            ranked["judgment"] = judgment
    return row


def _report(
    sets: SeedSets, ift_counts: Counter[str], eft_counts: Counter[str], scores: dict[str, float]
) -> dict[str, Any]:
    """Counts of answers (read = dropped for each reason + kept), of kept prompts and read records; the score range."""
    judged = sets.get("eft", sets.get("eft_answers", []))
    kept = {"ift": len(sets["ift"]), "eft": sum(len(row.get("answers", [row])) for row in judged)}
    report: dict[str, Any] = {}
    for name, counts in (("ift", ift_counts), ("eft", eft_counts)):
        drops = {reason: counts[reason] for reason in (*DROP_REASONS, *SPLIT_DROP_REASONS[name])}
        report[name] = {"read": counts["read"], **drops, "kept": kept[name]}
    report["prompts"] = {"ift": len(_prompt_keys(sets["ift"])), "eft": len(_prompt_keys(judged))}
    report["records"] = {"ift": ift_counts["records"], "eft": eft_counts["records"]}
    return {**report, "scores": scores}


def _check_disjoint(sets: SeedSets) -> None:
    judged = sets.get("eft", sets.get("eft_answers", []))
    validation, heldout = ([*sets[name], *sets[f"ranked_{name}"]] for name in ("validation", "heldout"))
    seen: set[str] = set()
    for rows in (sets["ift"], judged, validation, heldout):
        if seen & (prompts := _prompt_keys(rows)):
            raise DataError("internal error: two seed sets share a prompt; please report this with both sources")
        seen |= prompts


def _prompt_keys(rows: Iterable[Row]) -> set[str]:
    return {normalize(str(row["prompt"])) for row in rows}
