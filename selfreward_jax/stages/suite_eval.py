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
FIELDS = {name: module.FIELDS for name, module in ANSWER_SUITES.items()} | pairs.FIELDS
SUITES = tuple(FIELDS)
SEED_SETS = ("ift", "eft", "eft_answers", "comparisons", "meta", "pool")
SEED_SETS += ("validation", "heldout", "ranked_validation", "ranked_heldout")
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
      `published` ([model, share] of an instruction-tuned model of this shape by its publisher, or None), `settings` (of
      sampling or judging), and `models`: {model: {metric: [share, low, high, count]}}.

    Raises:
      ConfigError: a suite is unknown, its file is not there or not of its form, or what checks it is not installed.
    """
    for name in suites:
        if name not in SUITES:
            raise ConfigError(f"--suite={','.join(suites)}: {name!r} is not one of {', '.join(SUITES)}")
    if not suites:
        raise ConfigError(f"--suite names no suite: name some of {', '.join(SUITES)}")
    loaded = {name: _load(suite_dir, name) for name in dict.fromkeys(suites)}  # all faults before the first answer
    known = _known_prompts(run)
    cfg = run.models.model_config()
    path = run.workdir / FOLDER / "suites.json"
    report: dict[str, Any] = (storage.read_json(path) or {}).get("suites", {})
    for name, suite in loaded.items():
        fields = FIELDS[name]
        prompts = [row[next(f for f in ("prompt", "question", "input") if f in fields)] for row in suite.rows]
        report[name] = {"rows": len(suite.rows), "digest": suite.digest, "overlap": count_overlap(prompts, known)}
        report[name]["settings"] = _settings(run, name, max_new_tokens)
        report[name]["published"] = published_figure(name, (cfg.num_layers, cfg.dim, cfg.mlp_dim))
        report[name]["models"] = {model: _shares(_measure(run, name, suite, model, max_new_tokens)) for model in models}
        storage.write_json(path, {"suites": report})
    return {"suites": {name: report[name] for name in loaded}}


def _load(suite_dir: str, name: str) -> SuiteRows:
    """The rows of a suite, all that can be wrong with them known."""
    suite = read_rows(suite_dir, name, FIELDS[name])
    if name in pairs.FIELDS:
        pairs.matchups(name, suite.rows)
    else:
        ANSWER_SUITES[name].prepare(suite.rows)
    return suite


def _settings(run: Run, name: str, max_new_tokens: int) -> Row:
    """What the figures of a suite depend on, besides its rows and the model."""
    if name not in pairs.FIELDS:
        return {
            "temperature": 0.0,
            "max_new_tokens": max_new_tokens,
            "chat_template": run.models.chat.template,
        }
    method = run.cfg.pairwise.method
    return {"method": method} | ({} if method == "scores" else {"max_new_tokens": run.cfg.pairwise.max_new_tokens})


def _measure(run: Run, name: str, suite: SuiteRows, model: str, max_new_tokens: int) -> list[Tally]:
    """The tally of each row, and evaluation/NAME_..._verdicts.jsonl. What was sampled already is not sampled again."""
    settings = _settings(run, name, max_new_tokens)
    parts = [settings[key] for key in ("method", "max_new_tokens") if key in settings]
    stage = "_".join(map(str, (name, suite.digest, model, *parts)))
    if name in pairs.FIELDS:
        matchups, labels = pairs.matchups(name, suite.rows)
        verdicts = judge_matchups(run, model, matchups, FOLDER, stage)
        tallies = [pairs.tally(v, label) for v, label in zip(verdicts, labels, strict=True)]
        rows = [{"id": m.id, "verdict": v, "label": n} for m, v, n in zip(matchups, verdicts, labels, strict=True)]
    else:
        answers = _answers(run, ANSWER_SUITES[name], name, suite, model, stage, max_new_tokens)
        checked = [ANSWER_SUITES[name].check(row, text) for row, text in zip(suite.rows, answers, strict=True)]
        tallies = [ANSWER_SUITES[name].tally(verdicts) for verdicts in checked]
        rows = [{"id": f"{name}/{i}", **verdicts} for i, verdicts in enumerate(checked)]
    run.files.jsonl(FOLDER, f"{stage}_verdicts").finish(rows, weights=run.files.weights_fingerprint(model))
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
            f"{name}: {suite['rows']:,} rows, {_described(suite['settings'])}",
        ]
        lines.append(f"  {'':18s}" + "".join(f"{model.upper():>22s}" for model in models))
        for metric in next(iter(models.values())):
            lines.append(f"  {metric:18s}" + "".join(f"{_cell(of[metric]):>22s}" for of in models.values()))
        if suite["published"]:
            model, share = suite["published"]
            lines.append(f"  published for {model}, of this shape: {share:.3f}, by another harness, prompt and length")
        if suite["overlap"]:
            lines.append(
                f"  caution: {suite['overlap']:,} of its prompts are in the seeds or the new prompts of this run"
            )
    return lines


def _described(settings: Mapping[str, Any]) -> str:
    if settings.get("method") == "scores":
        return "each answer judged alone"
    limit = f"of at most {settings['max_new_tokens']} tokens"
    return f"judged side by side in both orders, judgments {limit}" if "method" in settings else f"answers {limit}"


def _cell(share: Sequence[Any]) -> str:
    value, low, high, _ = share
    return "-" if value is None else f"{value:.3f} [{low:.3f} {high:.3f}]" if low is not None else f"{value:.3f}"
