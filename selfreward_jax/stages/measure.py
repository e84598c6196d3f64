"""eval.json of a model: its responses to held-out prompts, and its judgments of a fixed set of responses.

With `table.py` and `judge_audit.py` it alone of the stages knows evaluate/model_metrics.py, and through it the oracle.
Nothing that trains reads what it writes.
"""

from selfreward_jax import storage
from selfreward_jax.evaluate import model_metrics
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.sampling import judge, sample_best_of_n
from selfreward_jax.worlds import world_of


def eval_answers(run: Run, model: str) -> None:
    """MODEL/eval_answers.jsonl: responses to held-out prompts."""
    prompts = run.files.jsonl("seed", run.cfg.evaluate.split).rows()
    sample_best_of_n(run, model, prompts, run.cfg.evaluate, model, "eval_answers")


def eval_judgments(run: Run, model: str) -> None:
    """MODEL/eval_judgments.jsonl: judgments of the ranked responses."""
    ranked = run.files.jsonl("seed", f"ranked_{run.cfg.evaluate.split}").rows()
    judge(run, model, model_metrics.ranked_responses(ranked), model, "eval_judgments")


def eval_metrics(run: Run, model: str) -> None:
    """MODEL/eval.json: the figures of both."""
    path = run.workdir / model / "eval.json"
    if run.files.own(path) is not None:
        return
    ranked = run.files.jsonl("seed", f"ranked_{run.cfg.evaluate.split}").rows()
    answers = run.files.jsonl(model, "eval_answers").rows()
    figures = model_metrics.response_metrics(answers, world_of(run.cfg))
    figures["judge"] = model_metrics.judge_metrics(ranked, run.files.jsonl(model, "eval_judgments").rows())
    storage.write_checksummed(path, {"owner": run.files.owner, **figures})
