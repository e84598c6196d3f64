"""Seed rows: from the embedded world, or from a user's own JSONL files."""

import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from etils import epath

from selfreward_jax.method.new_prompts import few_shot, normalise
from selfreward_jax.worlds import lists

Row = dict[str, Any]

# Names under which a field may come; the first is ours.
NAMES = {
    "prompt": ("prompt", "prompt_text", "instruction"),
    "response": ("response", "response_text", "output"),
    "score": ("score", "quality_score"),
}


class SeedError(ValueError):
    """A seed file that cannot be used; the message names file, line, fault and remedy."""


def from_world(settings: Any, seed: int) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """The embedded world's seed sets; each from its own stream, so that the size of one leaves the others."""

    def stream(name: str) -> Random:
        return Random(f"{seed} {name}")

    sets = {
        "ift": lists.ift_rows(settings.ift_rows, stream("ift")),
        "eft": lists.eft_rows(settings.eft_rows, stream("eft")),
        "documents": [{"text": t} for t in lists.documents(settings.documents, stream("documents"))],
    }
    used = {normalise(str(row["prompt"])) for name in ("ift", "eft") for row in sets[name]}

    def unseen(rows: list[Row], count: int) -> list[Row]:
        fresh = []
        for row in rows:
            if (prompt := normalise(str(row["prompt"]))) not in used and len(fresh) < count:
                used.add(prompt)
                fresh.append(row)
        return fresh

    asked, ranked = settings.heldout_prompts, settings.ranked_prompts
    for split in ("validation", "heldout"):
        prompts = [{"prompt": p} for p in lists.prompts(2 * asked, stream(split))]
        sets[split] = unseen(prompts, asked)
        answered = lists.ranked_rows(2 * ranked, settings.ranked_answers, stream(f"ranked_{split}"))
        sets[f"ranked_{split}"] = unseen(answered, ranked)
    return sets, {}


def from_files(settings: Any, seed: int) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Seed sets from `settings.ift` and `settings.eft`, and a report of what each filter took.

    Prompts of the judged rows are split, by a hash-free shuffle of `seed`, into `ranked_heldout`,
    `ranked_validation` (`settings.ranked_prompts` each) and training rows; a held-out prompt appears in no
    training set. Scores are mapped linearly from their range in the file to 0-5.

    Raises:
      SeedError: a file is missing, too many rows are malformed, or too few are left.
    """
    ift, ift_bad = _read(settings.ift, ("prompt", "response"), settings.most_bad)
    eft, eft_bad = _read(settings.eft, ("prompt", "response", "score"), settings.most_bad)
    low, high = min(r["score"] for r in eft), max(r["score"] for r in eft)
    if low == high:
        raise SeedError(f"data.eft {settings.eft}: every score is {low}; a judge cannot learn from one score")
    by_prompt: dict[str, list[Row]] = {}
    for row in eft:
        row["score"] = 5 * (row["score"] - low) / (high - low)
        by_prompt.setdefault(normalise(row["prompt"]), []).append(row)
    order = list(by_prompt)
    Random(f"{seed} split").shuffle(order)
    several = [p for p in order if len({r["score"] for r in by_prompt[p]}) > 1]
    count = min(settings.ranked_prompts, len(several) // 4)
    split = {"ranked_heldout": several[:count], "ranked_validation": several[count : 2 * count]}
    kept_out = {p for prompts in split.values() for p in prompts}
    sets: dict[str, list[Row]] = {
        name: [
            {
                "prompt": by_prompt[p][0]["prompt"],
                "answers": [{"response": r["response"], "score": r["score"]} for r in by_prompt[p]],
            }
            for p in prompts
        ]
        for name, prompts in split.items()
    }
    train = [r for p in order if p not in kept_out for r in by_prompt[p]]
    sets["eft"] = [{**r, "judgement": one_line_judgement(round(r["score"])), "score": round(r["score"])} for r in train]
    sets["ift"] = [r for r in ift if normalise(r["prompt"]) not in kept_out]
    held_out = len(ift) - len(sets["ift"])
    for name, limit in (("ift", settings.ift_rows), ("eft", settings.eft_rows)):
        sets[name] = sets[name][: limit or None]
    asked = settings.heldout_prompts
    for name in ("validation", "heldout"):
        sets[name] = [{"prompt": r["prompt"]} for r in sets[f"ranked_{name}"]][:asked]
    sets["documents"] = [{"text": f"{r['prompt']}\n{r['response']}"} for r in sets["ift"]]
    if min(len(sets["ift"]), len(sets["eft"]), count) < 2:
        raise SeedError(
            f"data.ift {settings.ift} and data.eft {settings.eft} leave {len(sets['ift'])} instruction rows, "
            f"{len(sets['eft'])} judged rows and {count} held-out prompts with several scores; at least 2 of "
            "each are needed"
        )
    report = {
        "ift": {"read": len(ift) + ift_bad, "malformed": ift_bad, "held_out": held_out},
        "eft": {"read": len(eft) + eft_bad, "malformed": eft_bad, "held_out": len(eft) - len(train)},
        "scores": {"lowest": low, "highest": high},
    }
    return sets, report


def one_line_judgement(score: int) -> str:
    """A written judgement for a score that came without one."""
    return f"This answer earns {score} of 5 points.\nScore: {score}"


def _read(name: str, fields: Sequence[str], most_bad: float) -> tuple[list[Row], int]:
    path = epath.Path(name)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise SeedError(f"seed file {name} cannot be read ({error.strerror}): give a file of JSON lines") from None
    except UnicodeDecodeError as error:
        raise SeedError(f"seed file {name} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    rows, faults, lines = [], [], 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        lines += 1
        try:
            rows += _rows(line, fields)
        except SeedError as fault:
            faults.append(f"{name} line {number}: {fault}")
    if len(faults) > most_bad * lines or not rows:
        first = faults[0] if faults else f"{name} is empty"
        raise SeedError(
            f"{first} ({len(faults)} of {lines} rows are malformed, data.most_bad allows {most_bad:.0%}); each "
            f"row is a JSON object with {', '.join(fields)}"
        )
    for fault in faults:
        print(f"left out: {fault}", flush=True)
    return rows, len(faults)


def _rows(line: str, fields: Sequence[str]) -> list[Row]:
    """One line of a seed file: a row, or a prompt with a list `answers` of rows."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise SeedError(f"not JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise SeedError("not a JSON object")
    answers = value.get("answers")
    if answers is None:
        return [_row(value, fields)]
    if not isinstance(answers, list) or not all(isinstance(a, dict) for a in answers):
        raise SeedError("answers is not a list of objects")
    return [_row({**value, **answer}, fields) for answer in answers]


def _row(value: Row, fields: Sequence[str]) -> Row:
    row: Row = {}
    for field in fields:
        found = next((value[n] for n in NAMES[field] if n in value), None)
        if field == "score":
            if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
                raise SeedError(f"score is {found!r}, not a number")
        elif not isinstance(found, str) or not found.strip():
            raise SeedError(f"{field} is {found!r}, not a text")
        elif not found.isascii() and any("\ud800" <= c <= "\udfff" for c in found):
            raise SeedError(f"{field} holds half of a character (a lone surrogate)")
        row[field] = found
    return row


def prompt_rows(prompts: Sequence[str], count: int, shots: int, template: str, rng: Random) -> list[Row]:
    """Rows that teach writing prompts: `shots` prompts shown, another one as the answer."""
    rows = []
    for _ in range(count):
        *shown, target = rng.sample(prompts, shots + 1)
        rows.append({"prompt": few_shot(template, shown), "response": target})
    return rows


def judge_rows(eft: Sequence[Row], judge_prompt: Callable[[str, str], str]) -> list[Row]:
    """EFT as rows {prompt, response}: the judge's prompt, and the written judgement as its answer."""
    return [{"prompt": judge_prompt(r["prompt"], r["response"]), "response": r["judgement"]} for r in eft]
