"""Seed sets of the checkable world, made from the requests and answers in a user's file."""

from random import Random
from typing import Any

from selfreward_jax.config.columns import parse_columns
from selfreward_jax.data.answers import DROP_REASONS
from selfreward_jax.data.limits import DataError
from selfreward_jax.data.merge import ParsedSource, keep_best, read_prompts_with_responses
from selfreward_jax.data.readers import naming
from selfreward_jax.method.prompt_generation import normalize
from selfreward_jax.worlds.checkable import generator
from selfreward_jax.worlds.checkable.tasks import Task, count_words, make_task

HELD_OUT_SHARE = 0.15  # of the tasks, for each of the validation and the held-out sets
MIN_TASKS = 20


def from_tasks(settings: Any, seed: int, output_format: str) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The seed sets that instructions added to the requests of `settings.ift` give, and a report of what each filter
    dropped, as `seed_sets.from_files`.

    No task is in two of the training, validation and held-out sets. Held-out prompts also have instructions of kinds
    that no other set has.

    Args:
      settings: config.data.
      seed: everything random follows from it.
      output_format: what judgments end in, as config.judge.output_format.

    Raises:
      DataError: the source cannot be read or has too many malformed rows, or too few of its rows can be used.
    """
    tasks, source = _read_tasks(settings)
    _stream(seed, "tasks").shuffle(tasks)
    num_held_out = round(HELD_OUT_SHARE * len(tasks))
    parts = {"heldout": tasks[:num_held_out], "validation": tasks[num_held_out : 2 * num_held_out]}
    training, word_counts = tasks[2 * num_held_out :], count_words(tasks)
    rows = generator.ift_rows(training, settings.ift_rows, _stream(seed, "ift"))
    used = {normalize(row["prompt"]) for row in rows}
    judged = generator.eft_rows(training, settings.eft_rows, word_counts, output_format, _stream(seed, "eft"))
    sets = {"ift": rows, "eft": [row for row in judged if normalize(row["prompt"]) not in used]}
    if settings.comparison_rows:
        compared = generator.comparison_rows(
            training, settings.comparison_rows, word_counts, _stream(seed, "comparisons")
        )
        sets["comparisons"] = [row for row in compared if normalize(row["prompt"]) not in used]
    if settings.meta_rows:
        judged_twice = generator.meta_rows(training, settings.meta_rows, word_counts, _stream(seed, "meta"))
        sets["meta"] = [row for row in judged_twice if normalize(row["prompt"]) not in used]
    for name, part in parts.items():
        prompts = generator.prompts(part, settings.heldout_prompts, _stream(seed, name), name == "heldout")
        sets[name] = [{"prompt": prompt} for prompt in dict.fromkeys(prompts)]
        ranked = generator.ranked_rows(
            part, settings.judge_eval_prompts, settings.judge_eval_answers, word_counts, _stream(seed, f"ranked_{name}")
        )
        sets[f"ranked_{name}"] = [row for row in ranked if row["prompt"] not in prompts]
    sets["documents"] = [{"text": f"{row['prompt']}\n{row['response']}"} for row in rows]
    return sets, _report(sets, source, len(tasks), len(training))


def _stream(seed: int, name: str) -> Random:
    """A random stream of each set, so that the size of one set does not change the others."""
    return Random(f"{seed} checkable {name}")


def _read_tasks(settings: Any) -> tuple[list[Task], ParsedSource]:
    """The tasks that a file gives, and what was read of it; its counts also have the answers that are not used."""
    with naming("data.ift"):
        source = read_prompts_with_responses(
            settings.ift, settings.language, settings.max_malformed_frac, parse_columns(settings.columns)
        )
    best = keep_best(source.prompts, source.counts).values()
    tasks = {task.request: task for p in best if (task := make_task(p.prompt, p.answers[0].response))}
    if len(tasks) < MIN_TASKS:
        raise DataError(
            f"data.ift {settings.ift}: {len(tasks)} of {len(best):,} requests can be given instructions, {MIN_TASKS} "
            "are needed: give more requests of 4 to 30 words on one line with answers of three plain sentences or more"
        )
    return list(tasks.values()), source


def _report(sets: dict[str, list[Any]], source: ParsedSource, num_tasks: int, num_training: int) -> dict[str, Any]:
    made = {name: len(sets[name]) for name in ("ift", "eft")}
    return {
        **{name: {"read": count, **dict.fromkeys(DROP_REASONS, 0), "kept": count} for name, count in made.items()},
        "prompts": {name: len({row["prompt"] for row in sets[name]}) for name in made},
        "records": {"ift": source.counts["records"], "eft": 0},
        "tasks": {
            **{name: source.counts[name] for name in ("read", *DROP_REASONS)},
            "used": num_tasks,
            "training": num_training,
        },
        "notices": {"ift": source.notices},
        "faults": {"tasks": source.faults},
    }
