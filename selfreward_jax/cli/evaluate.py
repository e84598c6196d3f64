"""selfreward-jax evaluate: the paper's reward-model table, and head-to-head win rates.

The judge of the win rates is the toy world's oracle, a model of the run, or an OpenAI-compatible endpoint. The
endpoint's key is read from the environment. Results are written to WORKDIR/evaluation. A second evaluation reuses them:
no response is generated twice, and no request is paid for twice.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from selfreward_jax import storage
from selfreward_jax.cli.parser import ENDPOINT_FIELDS
from selfreward_jax.config import ConfigError, validate
from selfreward_jax.console import streams
from selfreward_jax.console.escape import shell_word
from selfreward_jax.evaluate import audit
from selfreward_jax.evaluate.endpoint import Endpoint
from selfreward_jax.evaluate.head_to_head import win_rates
from selfreward_jax.evaluate.model_metrics import oracle_verdicts
from selfreward_jax.llm.hub import HUB_PREFIX
from selfreward_jax.method.judge_parsing import parse_preference
from selfreward_jax.method.rows import ResponsesRow
from selfreward_jax.report import tables
from selfreward_jax.runs.loading import load_model, resolve_model
from selfreward_jax.runs.owner import making
from selfreward_jax.runs.run import Run, open_run
from selfreward_jax.runs.stage import Step
from selfreward_jax.stages.judge_audit import audit_judges
from selfreward_jax.stages.pairwise_eval import compare, compare_by_endpoint
from selfreward_jax.stages.sampling import sample_with_engine
from selfreward_jax.stages.suite_eval import format_suites, run_suites
from selfreward_jax.stages.table import MEASURE
from selfreward_jax.telemetry import compile_cache
from selfreward_jax.worlds import world_of

ResponseRows = list[ResponsesRow]
Judge = Callable[[str, str, dict[str, ResponseRows]], list[list[int]]]  # two model names, rows by name -> verdicts
OUTPUT_DIR = "evaluation"


def main(options: argparse.Namespace) -> int:
    """Evaluates. Returns the exit code."""
    compile_cache.enable(options.compile_cache)
    run = open_run(options.workdir)
    for field in ENDPOINT_FIELDS:
        if (value := getattr(options, field)) is not None:
            section, name = field.split(".")
            run.cfg[section][name] = value
    validate.validate(run.cfg, row_devices=1)
    if options.audit is not None:
        streams.result(*_audit(run, options))
        return 0
    if options.suite:
        streams.result(*_suites(run, options))
        return 0
    report = evaluate(run, options.models, options.judge, options.opponent, options.opponent_model)
    shown = f"`selfreward-jax report --workdir={shell_word(str(run.workdir))}` shows it on the page"
    streams.result(*tables.evaluation_tables(report), "", f"written to {run.workdir / OUTPUT_DIR}; {shown}")
    return 0


def _audit(run: Run, options: argparse.Namespace) -> list[str]:
    """Audits models as judges; the lines that tell it."""
    for name in ("judge", "opponent", "suite"):
        if getattr(options, name):
            raise ConfigError(f"--{name}={getattr(options, name)}: an --audit has none; leave one of them out")
    if options.audit < 1:
        raise ConfigError(f"--audit={options.audit}: it must be at least 1, the number of prompts")
    names, _ = _choose_models(run, options.models, "")
    for name in names:
        _evaluate_model(run, name)
    result = audit_judges(run, names, options.audit)
    return [*audit.table(result["models"]), "", f"written to {run.workdir / OUTPUT_DIR / 'audit.json'}"]


def _suites(run: Run, options: argparse.Namespace) -> list[str]:
    """Measures models on suites; the lines that tell it."""
    if not options.suite_dir:
        raise ConfigError("--suite needs --suite_dir: name the folder with a folder for each suite")
    if not 1 <= options.suite_tokens < run.cfg.model.max_length:
        raise ConfigError(
            f"--suite_tokens={options.suite_tokens}: it must be at least 1 and below model.max_length "
            f"{run.cfg.model.max_length}, which holds prompt and answer"
        )
    trained = run.files.model_names()
    models = [m for m in options.models.split(",") if m] or trained
    if not trained:
        raise ConfigError(f"{run.workdir} holds no model yet: let `selfreward-jax run` make m0 first")
    for name in models:
        if name not in trained:
            raise ConfigError(f"--models={options.models}: {name!r} is not one of {', '.join(trained)}")
    names = [s.strip() for s in options.suite.split(",") if s.strip()]
    result = run_suites(run, names, options.suite_dir, models, options.suite_tokens)
    return [*format_suites(result), "", f"written to {run.workdir / OUTPUT_DIR / 'suites.json'}"]


def evaluate(run: Run, models: str, judge: str, opponent: str, opponent_model: str) -> dict[str, Any]:
    """Evaluates models, compares them with each other, and writes evaluation/report_JUDGE.json.

    Args:
      run: the run.
      models: comma-separated names; all but m0 if empty.
      judge: "oracle", "endpoint" or a model; if empty the oracle where there is one, else the last model.
      opponent, opponent_model: another model that is compared with each of ours, or "".

    Returns:
      `judge` and what else describes the judge; `models`, the metrics of each by name; `versus`, the win rates by the
      names of both models; `parse_rate`, the share of a model's or an endpoint's votes on them that could be parsed;
      `cautions`, lines that say where it is low.

    Raises:
      ConfigError: a model or judge does not exist.
    """
    names, judge = _choose_models(run, models, judge)
    if opponent and run.cfg.evaluate.best_of > 1:
        raise ConfigError(
            f"evaluate.best_of of this run is {run.cfg.evaluate.best_of}: an --opponent samples one response where the "
            "run's models keep the best of several; leave --opponent out"
        )
    parsed: list[bool] = []
    verdicts, report = _make_judge(run, judge, parsed)
    for name in names:
        _evaluate_model(run, name)
    responses = {name: run.files.jsonl(name, "eval_answers").rows() for name in names}
    if opponent:
        label, shown, rows = _opponent_responses(run, opponent, opponent_model)
        responses[label] = rows
        report |= {"opponent": {"name": label, "display_name": shown, "path": opponent}}
    versus: dict[str, dict[str, Any]] = {}
    order = list(responses)
    for i, ours in reversed(list(enumerate(order))):
        for theirs in order[:i]:
            a, b = (theirs, ours) if ours not in names else (ours, theirs)  # the opponent comes second
            versus.setdefault(a, {})[b] = win_rates(verdicts(a, b, _common_prompts(responses, a, b)))
    metrics = {name: storage.read_checksummed(run.workdir / name / "eval.json") for name in names}
    report |= {"models": metrics, "versus": versus} | ({"parse_rate": sum(parsed) / len(parsed)} if parsed else {})
    report |= {"cautions": tables.parse_cautions(report)}
    storage.write_json(run.workdir / OUTPUT_DIR / f"report_{judge}.json", report)
    return report


def _evaluate_model(run: Run, name: str) -> None:
    """The figures of one model, of which what is missing is made."""
    for stage in MEASURE:
        if stage.run and stage.wanted(run.cfg):
            make = partial(_make, run, Step(stage, name))
            storage.regenerate_damaged(make, run.models.drop_engine)


def _make(run: Run, step: Step) -> None:
    with making(run, step):
        step.stage.run(run, step.folder)


def _choose_models(run: Run, models: str, judge: str) -> tuple[list[str], str]:
    """The names of the models to evaluate, and the judge."""
    trained = [m for m in run.files.model_names() if m != "m0"]
    names = [m for m in models.split(",") if m] or trained
    judge = judge or ("oracle" if _has_oracle(run) else (trained or [""])[-1])
    if not trained:
        raise ConfigError(f"{run.workdir} holds no trained model yet: let `selfreward-jax run` make m1 first")
    for name in names:
        if name not in trained:
            raise ConfigError(f"--models={models}: {name!r} is not one of {', '.join(trained)}, the models of this run")
    if judge == "oracle" and not _has_oracle(run):
        raise ConfigError(
            f"--judge=oracle: only the embedded worlds have one; give endpoint, or one of {', '.join(trained)}"
        )
    judges = ["oracle"] * _has_oracle(run) + ["endpoint", *trained]
    if judge not in judges:
        raise ConfigError(
            f"--judge={judge}: it must be one of {', '.join(judges)}; for a model of a server "
            "--judge=endpoint with --endpoint.base_url and --endpoint.model"
        )
    return names, judge


def _common_prompts(responses: dict[str, ResponseRows], a: str, b: str) -> dict[str, ResponseRows]:
    """The rows of two models for the prompts that both answered."""
    common = {row["prompt"] for row in responses[a]} & {row["prompt"] for row in responses[b]}
    if not common:
        raise ConfigError(f"{a} and {b} answered no prompt in common: give an opponent with the same held-out prompts")
    return {name: [row for row in responses[name] if row["prompt"] in common] for name in (a, b)}


def _has_oracle(run: Run) -> bool:
    return bool(world_of(run.cfg))


def _make_judge(run: Run, judge: str, parsed: list[bool]) -> tuple[Judge, dict[str, Any]]:
    """The function that gives the verdicts, and the fields that describe the judge in a report. For each vote of a
    model or an endpoint it adds to `parsed` whether it could be parsed.

    Raises:
      EndpointError: the endpoint's settings cannot work.
    """
    if judge == "oracle":
        return lambda ours, theirs, rows: oracle_verdicts(rows[ours], rows[theirs], world_of(run.cfg)), {"judge": judge}
    if judge == "endpoint":
        # One object for the whole evaluation, since it counts the requests.
        settings, endpoint = run.cfg.endpoint, Endpoint(run.cfg.endpoint, run.workdir / OUTPUT_DIR / "endpoint.jsonl")
        description = {
            "judge": judge,
            "base_url": settings.base_url,
            "model": settings.model,
            "template": run.cfg.pairwise.template,
        }

        def by_endpoint(ours: str, theirs: str, rows: dict[str, ResponseRows]) -> list[list[int]]:
            verdicts = compare_by_endpoint(run, endpoint, rows[ours], rows[theirs], f"{ours} : {theirs}")
            parsed.extend(bool(text) and parse_preference(text) is not None for text in endpoint.replies)
            return verdicts

        return by_endpoint, description
    method = run.cfg.pairwise.method
    suffix = method if method == "scores" else f"{method}_{run.cfg.pairwise.max_new_tokens}"

    def by_model(ours: str, theirs: str, rows: dict[str, ResponseRows]) -> list[list[int]]:
        stage = f"{ours}_{theirs}_by_{judge}_{suffix}"
        verdicts = compare(run, judge, rows[ours], rows[theirs], OUTPUT_DIR, stage)
        for row in run.files.jsonl(OUTPUT_DIR, stage).rows():
            votes = [vote["score"] for vote in row["votes"]] if method == "scores" else row["read"]
            parsed.extend(vote is not None for vote in votes)
        return verdicts

    return by_model, {"judge": judge, "method": method}


def _opponent_responses(run: Run, path: str, name: str) -> tuple[str, str, Sequence[ResponsesRow]]:
    """Another model's label in files, its name for people, and its responses to this run's held-out prompts. The label
    holds the model's name and a hash of the model, so it does not depend on the path."""
    model, digest = resolve_model(path, name)
    label, folder = f"{model}-{digest}".replace("/", "_"), os.path.basename(os.path.abspath(path))
    of_run = not model.startswith(HUB_PREFIX) and model not in ("", folder)  # "" is the current folder
    shown = f"{model} of {folder}" if of_run else model.removeprefix(HUB_PREFIX) or folder
    if run.files.jsonl(OUTPUT_DIR, f"{label}_answers").manifest is None:
        run.models.drop_engine()
        loaded, settings = load_model(path, name, mesh_from=run), run.cfg
        engine = loaded.engine(settings.sampling.max_concurrent, settings.model.max_length, take_params=True)
        prompts = run.files.jsonl("seed", run.cfg.evaluate.split).rows()
        sample_with_engine(run, engine, prompts, run.cfg.evaluate, OUTPUT_DIR, f"{label}_answers")
    return label, shown, run.files.jsonl(OUTPUT_DIR, f"{label}_answers").rows()
