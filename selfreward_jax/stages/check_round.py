"""Whether a round is fit to be trained on."""

from typing import Any

from selfreward_jax import storage
from selfreward_jax.method import round_checks
from selfreward_jax.method.pairs import join_scores
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import StageError, few_shot_pool
from selfreward_jax.stages.self_reward import held_out_prompts
from selfreward_jax.stages.training import is_trained
from selfreward_jax.telemetry.progress import log_line


def check_round(run: Run, t: int) -> None:
    """m_t/checks.json: what the round's rows show.

    Raises:
      StageError: something is beyond its limit in config.checks, and m_t is not trained yet.
    """
    name, limits = f"m{t}", run.cfg.checks
    path, trained = run.workdir / name / "checks.json", is_trained(run, name)
    if trained and storage.read_checksummed(path) is not None:
        return
    found = round_metrics(run, t)
    storage.write_checksummed(path, found)
    log_line(f"{name} guards: {round_checks.format_metrics(found, limits)}")
    if (broken := round_checks.violations(found, limits)) and not trained:
        raise StageError(
            f"{name} is not trained: {'; '.join(broken)}. Read {run.workdir / name}/judgments.jsonl; then train the judge "
            "longer in a new --workdir, or, if you want it so, move the limit and start again"
        )


def round_metrics(run: Run, t: int) -> dict[str, Any]:
    """What the rows of round t show, by the names of `guards.GUARDS`."""
    of = lambda stage, t=t: run.jsonl(f"m{t}", stage)  # noqa: E731
    found, judgments = finished_responses(of("responses").rows()), of("judgments").rows()
    before = finished_responses(of("responses", t - 1).rows()) if t > 2 else run.jsonl("seed", "ift").rows()
    canaries = of("probes").rows() if of("probes").manifest else []
    manifest = of("prompts").manifest
    return round_checks.judge_metrics(judgments, join_scores(found, judgments), canaries) | {
        "length_growth": round_checks.length_growth(found, before),
        "repeats": manifest["faults"].get("not new", 0) / manifest["attempts"],
        "leaks": round_checks.leak_rate(of("prompts").rows(), few_shot_pool(run), held_out_prompts(run)),
    }
