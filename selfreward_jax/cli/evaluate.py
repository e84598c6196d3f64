"""Measures the models of a run: the paper's reward-model table, and head to head.

    python -m selfreward_jax evaluate --workdir=runs/a
    python -m selfreward_jax evaluate --workdir=runs/a --against=runs/b --judge=m1
    python -m selfreward_jax evaluate --workdir=runs/a --judge=endpoint --endpoint.url=http://localhost:8000/v1 \
        --endpoint.model=NAME

The judge of the head-to-head is the embedded world's oracle, a model of the run, or an OpenAI-compatible endpoint,
whose key is read from the environment. What is made goes to WORKDIR/evaluation; a second run makes and pays for nothing
twice.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from selfreward_jax import loop, stages, storage
from selfreward_jax.cli import args
from selfreward_jax.config import ConfigError, validate
from selfreward_jax.evaluate import model_metrics as measure
from selfreward_jax.evaluate.endpoint import Endpoint, EndpointError
from selfreward_jax.evaluate.head_to_head import win_rates
from selfreward_jax.llm.chat import ChatError
from selfreward_jax.llm.hf_config import ModelFormatError
from selfreward_jax.method.templates import TemplateError
from selfreward_jax.report import tables
from selfreward_jax.runs.loading import load_model, resolve_model
from selfreward_jax.runs.run import Run
from selfreward_jax.storage import StorageError
from selfreward_jax.telemetry import compile_cache

Row = dict[str, Any]
Judge = Callable[[str, str, dict[str, list[Row]]], list[list[int]]]  # names of two models, answers by name -> verdicts
FOLDER = "evaluation"
# Settings of the run that an evaluation may put others in the place of.
OVERRIDABLE_FIELDS = {
    "endpoint.base_url": str, "endpoint.model": str, "endpoint.max_tokens": int, "endpoint.max_requests": int,
    "pairwise.method": str, "pairwise.max_new_tokens": int,
}  # fmt: skip
INPUT_ERRORS = (
    ConfigError,
    ModelFormatError,
    ChatError,
    TemplateError,
    EndpointError,
    StorageError,
    stages.StageError,
    OSError,
)


def main(argv: list[str]) -> int:
    """Evaluates. Returns the exit code: 0, or 2 after one line that says what to mend."""
    try:
        options = _options(argv)
        compile_cache.enable(options.compile_cache)
        run = Run.reopen(options.workdir)
        for field in OVERRIDABLE_FIELDS:
            if (given := getattr(options, field)) is not None:
                part, name = field.split(".")
                run.cfg[part][name] = given
        validate.validate(run.cfg, row_devices=1)
        found = evaluate(run, options.models, options.judge, options.against, options.against_name)
        print("\n".join(tables.paper(found)), flush=True)
    except INPUT_ERRORS as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = args.parser("evaluate", __doc__, compiles=True)
    parser.add_argument("--workdir", required=True, help="the run's working directory")
    parser.add_argument("--models", default="", help="which models, such as m1,m2; else all that are trained")
    parser.add_argument("--judge", default="", help="oracle, endpoint, or a model of the run; else oracle or the last")
    parser.add_argument("--against", default="", help="another model: a working directory, or a Hugging Face folder")
    parser.add_argument("--against_name", default="", help="which model of that working directory; else the last")
    for field, kind in OVERRIDABLE_FIELDS.items():
        parser.add_argument(f"--{field}", type=kind, help=f"else the run's {field}")
    return parser.parse_args(argv[1:])


def evaluate(run: Run, models: str, judge: str, opponent: str, opponent_name: str) -> dict[str, Any]:
    """Measures models that were not, plays them against each other, and writes evaluation/report_JUDGE.json.

    Args:
      run: the run.
      models: names with commas between; all but m0 if empty.
      judge: "oracle", "endpoint" or a model; if empty the oracle where there is one, else the last model.
      against, against_name: another model that each of ours meets, or nothing.

    Returns:
      {judge and what else names it, models: figures of each by name, versus: records by the names of both}.

    Raises:
      ConfigError: a model or judge is not there.
    """
    there = [m for m in run.models() if m != "m0"]
    names = [m for m in models.split(",") if m] or there
    judge = judge or ("oracle" if _has_oracle(run) else (there or [""])[-1])
    for name in [*names, *([judge] if judge not in ("oracle", "endpoint") else [])]:
        if name not in there:
            raise ConfigError(f"workdir {run.workdir} holds {', '.join(there) or 'no trained model'}, not {name!r}")
    if not names:
        raise ConfigError(f"workdir {run.workdir} holds no trained model yet: run selfreward_jax.main to m1 first")
    if judge == "oracle" and not _has_oracle(run):
        raise ConfigError("--judge is 'oracle', but only the embedded world has one: give a model, or endpoint")
    if opponent and run.cfg.evaluate.best_of > 1:
        raise ConfigError(
            f"evaluate.best_of of this run is {run.cfg.evaluate.best_of}: a guest (--against) answers once for each "
            "answer wanted, and would play against the best of several"
        )
    verdicts, described = _judge(run, judge)
    for name in names:
        loop.evaluate(run, name)
    answers = {name: run.jsonl(name, "eval_answers").rows() for name in names}
    if opponent:
        guest, answers_of_guest = _answers_of(run, opponent, opponent_name)
        answers[guest] = answers_of_guest
        described |= {"guest": {"name": guest, "path": opponent}}
    versus: dict[str, dict[str, Any]] = {}
    order = list(answers)
    for i, ours in reversed(list(enumerate(order))):
        for theirs in order[:i]:
            sides = (theirs, ours) if ours not in names else (ours, theirs)  # the guest stands second
            versus.setdefault(sides[0], {})[sides[1]] = win_rates(verdicts(*sides, _common(answers, sides)))
    figures = {name: storage.read_checksummed(run.workdir / name / "eval.json") for name in names}
    found = {**described, "models": figures, "versus": versus}
    storage.write_json(run.workdir / FOLDER / f"report_{judge}.json", found)
    return found


def _common(answers: dict[str, list[Row]], sides: tuple[str, str]) -> dict[str, list[Row]]:
    """The answers of both to the prompts that both answered."""
    both = set.intersection(*({row["prompt"] for row in answers[side]} for side in sides))
    if not both:
        raise ConfigError(f"{sides[0]} and {sides[1]} answered no prompt in common")
    return {side: [row for row in answers[side] if row["prompt"] in both] for side in sides}


def _has_oracle(run: Run) -> bool:
    return not run.cfg.data.ift


def _judge(run: Run, judge: str) -> tuple[Judge, dict[str, Any]]:
    """What gives the verdicts, and what a report says of it.

    Raises:
      EndpointError: the endpoint's settings cannot work.
    """
    if judge == "oracle":
        return lambda ours, theirs, answers: measure.by_oracle(answers[ours], answers[theirs]), {"judge": judge}
    if judge == "endpoint":
        # One for the whole evaluation: it counts what is paid for.
        settings, endpoint = run.cfg.endpoint, Endpoint(run.cfg.endpoint, run.workdir / FOLDER / "endpoint.jsonl")
        by = partial(stages.compare_by_endpoint, run, endpoint)
        described = {
            "judge": judge,
            "url": settings.base_url,
            "model": settings.model,
            "template": run.cfg.pairwise.template,
        }
        return lambda ours, theirs, answers: by(answers[ours], answers[theirs], f"{ours} : {theirs}"), described
    form = run.cfg.pairwise.method
    way = form if form == "scores" else f"{form}_{run.cfg.pairwise.max_new_tokens}"

    def by_model(ours: str, theirs: str, answers: dict[str, list[Row]]) -> list[list[int]]:
        return stages.compare(run, judge, answers[ours], answers[theirs], FOLDER, f"{ours}_{theirs}_by_{judge}_{way}")

    return by_model, {"judge": judge, "form": form}


def _answers_of(run: Run, path: str, name: str) -> tuple[str, list[Row]]:
    """Another model's answers to the held-out prompts of this run, under its name and what it is, wherever it lies."""
    label = "-".join(resolve_model(path, name)).replace("/", "_")
    if run.jsonl(FOLDER, f"{label}_answers").manifest is None:
        run.drop_engine()
        engine = load_model(path, name, mesh_from=run).engine(run.cfg.sampling.max_concurrent, run.cfg.model.max_length)
        asked = run.jsonl("seed", run.cfg.evaluate.split).rows()
        stages.sample_with_engine(run, engine, asked, run.cfg.evaluate, FOLDER, f"{label}_answers")
    return label, run.jsonl(FOLDER, f"{label}_answers").rows()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
