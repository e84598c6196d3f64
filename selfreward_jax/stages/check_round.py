"""Whether a round is fit to be trained on."""

from typing import Any

from selfreward_jax import storage
from selfreward_jax.method import comparisons, hacks, round_checks
from selfreward_jax.method.pairs import join_scores
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import StageError, few_shot_pool, held_out_prompts, previous_model
from selfreward_jax.stages.training import has_model
from selfreward_jax.telemetry.terminal import log_line


def check_round(run: Run, model: str) -> None:
    """m_t/checks.json: metrics of the round's rows.

    Raises:
      StageError: a metric is beyond its limit in config.checks, and m_t is not trained yet.
    """
    limits, path, trained = run.cfg.checks, run.workdir / model / "checks.json", has_model(run, model)
    if trained and run.files.own(path) is not None:
        return
    metrics = round_metrics(run, model)
    storage.write_checksummed(path, {"owner": run.files.owner, **metrics})
    violations = round_checks.violations(metrics, limits)
    off = len(round_checks.switched_off(limits))
    unmeasured = len(round_checks.unmeasured(metrics, limits))
    on = len(round_checks.CHECKS) - off
    left = "".join(f", {n} {what}" for n, what in ((unmeasured, "not measured"), (off, "off")) if n)
    log_line(f"  {model} checks: {on - unmeasured - len(violations)} of {on} passed{left}")
    if rates := metrics["hack_false_positives"]:
        shown = ", ".join(f"{kind} {rate:.0%}" for kind, rate in rates.items())
        log_line(f"    hacks scored higher than the response they are made of: {shown}")
    for line in round_checks.format_metrics(metrics, limits):
        log_line(line)
    if violations and not trained:
        raise StageError(
            f"{model} is not trained: {'; '.join(violations)}. Read the rows in {run.workdir / model}. Then mend the "
            "cause in a new --workdir, or change the limit on purpose: the same command, with it, resumes here"
        )


def round_metrics(run: Run, model: str) -> dict[str, Any]:
    """The metrics that `round_checks.CHECKS` limits."""

    def rows(stage: str, folder: str = model) -> list[Any]:
        artifact = run.files.jsonl(folder, stage)
        return artifact.rows() if artifact.manifest else []

    finished, judged = finished_responses(rows("responses")), rows("judgments")
    earlier = finished_responses(rows("responses", previous_model(model)))  # none before the first round
    before = earlier or rows("ift", "seed")
    attempts = run.files.jsonl(model, "prompts").manifest
    effect = hacks.effect_on_scores(rows("hacks") if run.cfg.checks.num_hack_prompts else [])
    if run.cfg.checks.num_hack_prompts and run.cfg.judge.kind == "pairwise":
        effect = hacks.effect_on_comparisons(comparisons.preferences(rows("hack_comparisons")))
    empty_answers = rows("probes") if run.cfg.checks.num_probe_prompts else []
    return round_checks.judge_metrics(judged, join_scores(finished, judged), empty_answers) | {
        "hack_gain": hacks.largest_gain(effect.gains),
        "truncated": effect.truncated,
        "hacks": effect.gains,
        "hack_false_positives": effect.higher,
        "length_growth": round_checks.length_growth(finished, before),
        "repeats": attempts["faults"].get("duplicate", 0) / attempts["attempts"],
        "leaks": round_checks.leak_rate(rows("prompts"), few_shot_pool(run), held_out_prompts(run)),
    }
