"""Suites on the models of a run: answers, verdicts, and how often they are right, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from selfreward_jax import storage
from selfreward_jax.config import ConfigError
from selfreward_jax.evaluate import bootstrap
from selfreward_jax.method.prompt_generation import normalize
from selfreward_jax.method.rows import Row
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.pairwise_eval import judge_matchups
from selfreward_jax.stages.sampling import sample_with_engine
from selfreward_jax.suites import gsm8k, ifeval, pairs
from selfreward_jax.suites.published import published_figure
from selfreward_jax.suites.rows import SuiteRows, read_rows

FOLDER = "evaluation"
ANSWER_SUITES: dict[str, ModuleType] = {"ifeval": ifeval, "gsm8k": gsm8k}
SUITES = (*ANSWER_SUITES, *pairs.FIELDS)
SEED_SETS = ("ift", "eft", "eft_answers", "validation", "heldout", "ranked_validation", "ranked_heldout")
MIN_SHARED_WORDS = 8  # a shorter prompt inside another one is no copy of it

Tally = dict[str, tuple[float, int]]  # of a row: for each metric, how much of it counts, and out of how much


def run_suites(run: Run, suites: Sequence[str], suite_dir: str, models: Sequence[str], max_new_tokens: int) -> Row:
    """Measures models on suites, and writes evaluation/suites.json.

    Args:
      run: the run.
      suites: some of SUITES.
      suite_dir: a folder with one folder for each suite, which holds its published file.
      models: finished models.
      max_new_tokens: of an answer.

    Returns:
      `suites`: for each its rows, their digest, `overlap` (prompts of it that are in the run's seeds or new prompts),
      `published` ([model, share] of the publisher's instruction-tuned model of this shape, or None), and `models`:
      {model: {metric: [share, low, high, count]}}. `settings`: how answers were sampled.

    Raises:
      ConfigError: a suite is unknown, or its file is not there or not of its form.
    """
    for name in suites:
        if name not in SUITES:
            raise ConfigError(f"--suite={','.join(suites)}: {name!r} is not one of {', '.join(SUITES)}")
    known = _known_prompts(run)
    report: dict[str, Any] = {}
    for name in suites:
        fields = pairs.FIELDS[name] if name in pairs.FIELDS else ANSWER_SUITES[name].FIELDS
        suite = read_rows(suite_dir, name, fields)
        prompts = [row[next(f for f in ("prompt", "question", "input") if f in fields)] for row in suite.rows]
        report[name] = {"rows": len(suite.rows), "digest": suite.digest, "overlap": count_overlap(prompts, known)}
        report[name]["published"] = published_figure(name, run.models.model_config())
        report[name]["models"] = {model: _shares(_measure(run, name, suite, model, max_new_tokens)) for model in models}
    settings = {"temperature": 0.0, "max_new_tokens": max_new_tokens, "chat_template": run.models.chat.template}
    result = {"settings": settings, "suites": report}
    storage.write_json(run.workdir / FOLDER / "suites.json", result)
    return result


def _measure(run: Run, name: str, suite: SuiteRows, model: str, max_new_tokens: int) -> list[Tally]:
    """The tally of each row, and evaluation/NAME_..._verdicts.jsonl. What is there already is not made again."""
    stage = f"{name}_{suite.digest}_{model}_{max_new_tokens}"
    if name in pairs.FIELDS:
        matchups, labels = pairs.matchups(name, suite.rows)
        verdicts = judge_matchups(run, model, matchups, FOLDER, f"{stage}_{run.cfg.pairwise.method}")
        tallies = [pairs.tally(v, label) for v, label in zip(verdicts, labels, strict=True)]
        rows = [{"id": m.id, "verdict": v, "label": n} for m, v, n in zip(matchups, verdicts, labels, strict=True)]
    else:
        answers = _answers(run, ANSWER_SUITES[name], name, suite, model, stage, max_new_tokens)
        checked = [ANSWER_SUITES[name].check(row, text) for row, text in zip(suite.rows, answers, strict=True)]
        tallies = [ANSWER_SUITES[name].tally(verdicts) for verdicts in checked]
        rows = [{"id": f"{name}/{i}", **verdicts} for i, verdicts in enumerate(checked)]
    artifact = run.files.jsonl(FOLDER, f"{stage}_verdicts")
    if not artifact.manifest:
        artifact.finish(rows, weights=run.files.weights_fingerprint(model))
    return tallies


def _answers(
    run: Run, module: ModuleType, name: str, suite: SuiteRows, model: str, stage: str, max_new_tokens: int
) -> list[str]:
    """A greedy answer to each row. One whose prompt is too long is empty: it is wrong, not left out."""
    prompts = [{"id": f"{name}/{i}", "prompt": module.prompt(row)} for i, row in enumerate(suite.rows)]
    if not run.files.is_complete(FOLDER, stage, model):
        greedy = ConfigDict({"num_samples": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": max_new_tokens})
        sample_with_engine(run, run.models.engine(model), prompts, greedy, FOLDER, stage, model)
    text_of = {row["id"]: row["responses"][0]["text"] for row in run.files.jsonl(FOLDER, stage).rows()}
    return [text_of.get(row["id"], "") for row in prompts]


def _shares(tallies: Iterable[Tally]) -> dict[str, list[Any]]:
    """For each metric the share with its 95 % interval over prompts, and the number of verdicts."""
    tallies = list(tallies)
    shares: dict[str, list[Any]] = {}
    for metric in tallies[0]:
        sums = np.array([tally[metric] for tally in tallies], float)
        right, count = sums.sum(0)
        with np.errstate(invalid="ignore"):
            interval = bootstrap.confidence_intervals(sums, lambda s: {"share": s[..., 0] / s[..., 1]})["share"]
        shares[metric] = [right / count if count else None, *(interval or (None, None)), int(count)]
    return shares


def _known_prompts(run: Run) -> set[str]:
    """The normalized prompts of the run's seeds and of all its rounds."""
    stages = [("seed", name) for name in SEED_SETS]
    stages += [(model, "prompts") for model in run.files.model_names()]
    artifacts = [run.files.jsonl(folder, stage) for folder, stage in stages]
    return {normalize(row["prompt"]) for artifact in artifacts if artifact.manifest for row in artifact.rows()}


def count_overlap(prompts: Sequence[str], known: set[str]) -> int:
    """How many prompts are among normalized known ones, or hold or are held by one of them."""
    text = "\n".join(sorted(known))
    long = [k for k in known if len(k.split()) >= MIN_SHARED_WORDS]

    def is_known(prompt: str) -> bool:
        normalized = normalize(prompt)
        inside = len(normalized.split()) >= MIN_SHARED_WORDS and normalized in text
        return normalized in known or inside or any(k in normalized for k in long)

    return sum(map(is_known, prompts))


def format_suites(result: Mapping[str, Any]) -> list[str]:
    """A line for each suite and metric, with a column for each model."""
    lines = []
    for name, suite in result["suites"].items():
        models = suite["models"]
        lines += [
            "",
            f"{name}: {suite['rows']:,} rows, answers of at most {result['settings']['max_new_tokens']} tokens",
        ]
        lines.append(f"  {'':18s}" + "".join(f"{model.upper():>22s}" for model in models))
        for metric in next(iter(models.values())):
            lines.append(f"  {metric:18s}" + "".join(f"{_cell(of[metric]):>22s}" for of in models.values()))
        if suite["published"]:
            model, share = suite["published"]
            lines.append(f"  its publisher's figure for {model}: {share:.3f}, by another harness, prompt and length")
        if suite["overlap"]:
            lines.append(
                f"  caution: {suite['overlap']:,} of its prompts are in the seeds or the new prompts of this run"
            )
    return lines


def _cell(share: Sequence[Any]) -> str:
    value, low, high, _ = share
    return "-" if value is None else f"{value:.3f} [{low:.3f} {high:.3f}]" if low is not None else f"{value:.3f}"
