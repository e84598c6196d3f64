"""Seed rows: from the embedded world, or from the user's own data."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from selfreward_jax.data.merge import (
    PromptWithResponses,
    keep_best,
    normalize_scores,
    parseable_judgment,
    read_prompts_with_responses,
)
from selfreward_jax.data.parsers import DROP_REASONS
from selfreward_jax.data.readers import DataError as DataError  # part of what this module offers
from selfreward_jax.method.prompt_generation import few_shot, normalize
from selfreward_jax.worlds.toy import generator

Row = dict[str, Any]
Sets = dict[str, list[Row]]
ByPrompt = dict[str, PromptWithResponses]  # by what `normalise` makes of the prompt
# Why answers are left out after reading, beside forms.FILTERS.
LATER = {
    "ift": ("not the best answer", "held out", "given to eft", "over the limit"),
    "eft": ("without a score", "ranked alone", "held out", "nothing to order", "given to ift", "over the limit"),
}


def from_world(settings: Any, seed: int, form: str = "points") -> tuple[Sets, dict[str, Any]]:
    """The embedded world's seed sets; each from its own stream, so that the size of one leaves the others.

    Args:
      settings: config.data.
      seed: everything random follows from it.
      form: what written judgments end in, as config.judge.output_format.

    Returns:
      The sets, and a report as that of `from_files`: a judged row whose prompt is an instruction row's too is dropped.
    """

    def stream(name: str) -> Random:
        return Random(f"{seed} {name}")

    sets = {
        "ift": generator.ift_rows(settings.ift_rows, stream("ift")),
        "eft": generator.eft_rows(settings.eft_rows, stream("eft"), form),
        "documents": [{"text": t} for t in generator.documents(settings.num_documents, stream("documents"))],
    }
    used = _keys(sets["ift"])
    sets["eft"] = [row for row in sets["eft"] if normalize(str(row["prompt"])) not in used]
    used |= _keys(sets["eft"])

    def unseen(rows: list[Row], count: int) -> list[Row]:
        fresh = []
        for row in rows:
            if (prompt := normalize(str(row["prompt"]))) not in used and len(fresh) < count:
                used.add(prompt)
                fresh.append(row)
        return fresh

    asked, ranked = settings.heldout_prompts, settings.judge_eval_prompts
    for split in ("validation", "heldout"):
        prompts = [{"prompt": p} for p in generator.prompts(2 * asked, stream(split))]
        sets[split] = unseen(prompts, asked)
        answered = generator.ranked_rows(2 * ranked, settings.judge_eval_answers, stream(f"ranked_{split}"))
        sets[f"ranked_{split}"] = unseen(answered, ranked)
    _check_disjoint(sets)
    ift = Counter(read=settings.ift_rows, records=settings.ift_rows)
    eft = Counter(read=settings.eft_rows, records=settings.eft_rows)
    eft["given to ift"] = settings.eft_rows - len(sets["eft"])
    return sets, _report(sets, ift, eft, {})


def from_files(settings: Any, seed: int, eft: Any = None, form: str = "points") -> tuple[Sets, dict[str, Any]]:
    """Seed sets from the sources `settings.ift` and `settings.eft`, and a report of what each filter took.

    Held out are, by a shuffle of `seed`, `settings.ranked_prompts` prompts of the judged answers for each of
    `ranked_heldout` and `ranked_validation`. Prompts that both sources have besides are dealt to one of them. So no
    prompt is in two of: IFT, EFT, validation, held out. Scores are mapped to 0-5 as `_scored` says.

    Args:
      settings: config.data.
      seed: everything random follows from it.
      eft: config.eft. If its source is "baseline", the sets have, in place of judged rows `eft`, rows `eft_answers`
        {prompt, answers: [{response, score[, judgment]}]} to make them of.
      form: what judgments end in that are made of scores, as config.judge.output_format.

    Raises:
      SeedError: a source cannot be read, has too many malformed rows, or too few are left.
    """
    sources = dict.fromkeys((settings.ift, settings.eft))
    read = {
        source: read_prompts_with_responses(source, settings.language, settings.max_malformed_frac)
        for source in sources
    }
    counts = {name: Counter(read[settings[name]][1]) for name in ("ift", "eft")}
    ift = keep_best(read[settings.ift][0], counts["ift"])
    judged, scores = normalize_scores(read[settings.eft][0], counts["eft"], settings.eft)
    order = list(judged)
    Random(f"{seed} split").shuffle(order)
    several = [p for p in order if len({a.score for a in judged[p].answers}) > 1]
    count = min(settings.judge_eval_prompts, len(several) // 4)
    held_out = several[: 2 * count]
    sets = _held_out_sets([judged[p] for p in held_out], settings.heldout_prompts)
    ift = _without(ift, held_out, counts["ift"], "held out")
    judged = _without(judged, held_out, counts["eft"], "held out")
    if baseline := eft is not None and eft.source == "baseline":
        judged = _without(judged, judged.keys() - set(several), counts["eft"], "nothing to order")
    ift, judged = _split_shared_prompts(ift, judged, settings.shared_to_ift, Random(f"{seed} shared"), counts)
    sets["ift"] = _limited(_ift_rows(ift.values()), settings.ift_rows, counts["ift"])
    sets["documents"] = [{"text": f"{r['prompt']}\n{r['response']}"} for r in sets["ift"]]
    train = [judged[p] for p in order if p in judged]
    if baseline:  # the limit comes when they are judged: the filters of that stage take their share first
        sets["eft_answers"] = [_row_to_judge(one, form) for one in train]
    else:
        sets["eft"] = _limited(_judged_rows(train, form), settings.eft_rows, counts["eft"])
    _check_disjoint(sets)
    report = _report(sets, counts["ift"], counts["eft"], scores)
    report["written judgments"] = sum(parseable_judgment(a, form) is not None for one in train for a in one.answers)
    if min(report["ift"]["kept"], report["eft"]["kept"], count) < 2:
        raise DataError(
            f"data.ift {settings.ift} and data.eft {settings.eft} leave {report['ift']['kept']} instruction rows, "
            f"{report['eft']['kept']} judged rows and {count} held-out prompts with several scores; at least 2 of "
            f"each are needed ({' '.join(format_report(report))})"
        )
    return sets, report


def format_report(report: dict[str, Any]) -> list[str]:
    """A report of `from_files` or `from_world` in lines: what each filter took from IFT and from EFT."""
    lines = []
    for name in ("ift", "eft"):
        took = [f"{count} {why}" for why, count in report[name].items() if count and why not in ("read", "kept")]
        kept = f"{report[name]['kept']} kept (prompts: {report['prompts'][name]})"
        lines.append("; ".join([f"{name}: {report[name]['read']} answers read", *took, kept]))
    if count := report.get("written judgments"):
        lines.append(f"eft: {count} of the answers kept come with a written judgment")
    return lines


def one_line_judgment(score: int, form: str = "points") -> str:
    """A written judgment for a score from 0 to 5 that came without one."""
    if form == "choice":
        letter = "AABCDE"[score]
        return f"This answer deserves the grade {letter}.\nChoice: {letter}"
    return f"This answer earns {score} of 5 points.\nScore: {score}"


def prompt_rows(prompts: Sequence[str], count: int, shots: int, template: str, rng: Random) -> list[Row]:
    """Rows that teach writing prompts: `shots` prompts shown, another one as the answer."""
    rows = []
    for _ in range(count):
        *shown, target = rng.sample(prompts, shots + 1)
        rows.append({"prompt": few_shot(template, shown), "response": target})
    return rows


def judge_rows(eft: Sequence[Row], judge_prompt: Callable[[str, str], str]) -> list[Row]:
    """EFT as rows {prompt, response}: the judge's prompt, and the written judgment as its answer."""
    return [{"prompt": judge_prompt(r["prompt"], r["response"]), "response": r["judgment"]} for r in eft]


def _without(asked: ByPrompt, prompts: Iterable[str], counts: Counter[str], why: str) -> ByPrompt:
    """All but some prompts, whose answers are counted."""
    gone = set(prompts)
    counts[why] += sum(len(one.answers) for prompt, one in asked.items() if prompt in gone)
    return {prompt: one for prompt, one in asked.items() if prompt not in gone}


def _limited(rows: list[Row], limit: int, counts: Counter[str]) -> list[Row]:
    kept = rows[: limit or None]
    counts["over the limit"] += len(rows) - len(kept)
    return kept


def _held_out_sets(asked: Sequence[PromptWithResponses], prompts: int) -> Sets:
    """The held-out sets of the first half, the validation sets of the second."""
    half, sets = len(asked) // 2, {}
    for name, of in (("heldout", asked[:half]), ("validation", asked[half:])):
        sets[f"ranked_{name}"] = [_ranked_row(one) for one in of]
        sets[name] = [{"prompt": one.prompt} for one in of][:prompts]
    return sets


def _split_shared_prompts(
    ift: ByPrompt, eft: ByPrompt, share: float, rng: Random, counts: dict[str, Counter[str]]
) -> tuple[ByPrompt, ByPrompt]:
    """Both, with each prompt that was in both in one of them: a share in IFT, the others in EFT."""
    shared = [prompt for prompt in eft if prompt in ift]
    rng.shuffle(shared)
    first = round(share * len(shared))
    return (
        _without(ift, shared[first:], counts["ift"], "given to eft"),
        _without(eft, shared[:first], counts["eft"], "given to ift"),
    )


def _ift_rows(asked: Iterable[PromptWithResponses]) -> list[Row]:
    return [{"prompt": one.prompt, "response": a.response} for one in asked for a in one.answers]


def _judged_rows(asked: Iterable[PromptWithResponses], form: str) -> list[Row]:
    """Judged rows; where nobody wrote a judgment that a judge of this form can learn from, one line is made of the
    score."""
    return [
        {
            "prompt": one.prompt,
            "response": a.response,
            "judgment": parseable_judgment(a, form) or one_line_judgment(round(a.score), form),
            "score": round(a.score),
        }
        for one in asked
        for a in one.answers
    ]


def _ranked_row(asked: PromptWithResponses) -> Row:
    return {"prompt": asked.prompt, "answers": [{"response": a.response, "score": a.score} for a in asked.answers]}


def _row_to_judge(asked: PromptWithResponses, form: str) -> Row:
    """The same with the judgments that were written."""
    row = _ranked_row(asked)
    for answer, a in zip(row["answers"], asked.answers, strict=True):
        answer |= {"judgment": text} if (text := parseable_judgment(a, form)) else {}
    return row


def _report(sets: Sets, ift: Counter[str], eft: Counter[str], scores: dict[str, float]) -> dict[str, Any]:
    """Counts of answers, read = what each filter took + kept; of the prompts kept and the records read; score range."""
    judged = sets.get("eft", sets.get("eft_answers", []))
    kept = {"ift": len(sets["ift"]), "eft": sum(len(row.get("answers", [row])) for row in judged)}
    report: dict[str, Any] = {
        name: {"read": of["read"], **{why: of[why] for why in (*DROP_REASONS, *LATER[name])}, "kept": kept[name]}
        for name, of in (("ift", ift), ("eft", eft))
    }
    report["prompts"] = {"ift": len(_keys(sets["ift"])), "eft": len(_keys(judged))}
    report["records"] = {"ift": ift["records"], "eft": eft["records"]}
    return {**report, "scores": scores}


def _check_disjoint(sets: Sets) -> None:
    judged = sets.get("eft", sets.get("eft_answers", []))
    validation, heldout = ([*sets[name], *sets[f"ranked_{name}"]] for name in ("validation", "heldout"))
    seen: set[str] = set()
    for rows in (sets["ift"], judged, validation, heldout):
        if seen & (prompts := _keys(rows)):
            raise DataError("internal: two of the seed sets share a prompt; please report this with the two sources")
        seen |= prompts


def _keys(rows: Iterable[Row]) -> set[str]:
    return {normalize(str(row["prompt"])) for row in rows}
