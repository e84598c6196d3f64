"""A round after its prompts: responses, judgments by the same model, and preference pairs."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from selfreward_jax.method import comparisons as comparing
from selfreward_jax.method import judge as judging
from selfreward_jax.method import label_agreement, round_checks
from selfreward_jax.method.pairs import build_pairs, format_outcomes, join_scores, with_anchors
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.method.rows import JudgmentRow, PairRow
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import StageError, planted_hacks, previous_model
from selfreward_jax.stages.sampling import judge, sample_responses
from selfreward_jax.telemetry.numbers import three_digits
from selfreward_jax.telemetry.terminal import log_line

PAIR_SOURCES = ("responses", "judgments", "anchor_responses", "anchor_judgments", "earlier_judgments")


def responses(run: Run, model: str) -> None:
    """m_t/responses.jsonl: responses of m_(t-1) to the new prompts."""
    prompts = run.files.jsonl(model, "prompts").rows()
    sample_responses(run, previous_model(model), prompts, run.cfg.responses, model, "responses")


def anchor_responses(run: Run, model: str) -> None:
    """m_t/anchor_responses.jsonl: responses of M1 to the same prompts, of which one may be rejected."""
    prompts, settings = run.files.jsonl(model, "prompts").rows(), run.cfg.responses.copy_and_resolve_references()
    settings.num_samples = run.cfg.pairs.anchor_samples
    sample_responses(run, "m1", prompts, settings, model, "anchor_responses")


def judgments(run: Run, model: str) -> None:
    """m_t/judgments.jsonl: m_(t-1) judges its own responses; with judge.kind=random, a random judge does. With
    judge.kind=pairwise a response's votes are its comparisons."""
    if run.cfg.judge.kind == "pairwise":
        _from_comparisons(run, model)
        return
    _judge_responses(run, model, "responses", "judgments", f"{run.cfg.seed} {model[1:]}")


def _from_comparisons(run: Run, model: str) -> None:
    if run.files.is_complete(model, "judgments"):
        return
    responses = finished_responses(run.files.jsonl(model, "responses").rows())
    texts = {row["id"]: row["response"] for row in responses}
    votes = comparing.compared(run.files.jsonl(model, "comparisons").rows(), texts, run.cfg.judge.length_gate)
    rows = comparing.judgments(votes, run.cfg.judge.min_votes)
    run.files.jsonl(model, "judgments").finish(rows, tokens=0)
    log_line(f"  {model} judgments: {judging.format_stats(judging.judge_stats(rows))}")


def anchor_judgments(run: Run, model: str) -> None:
    """m_t/anchor_judgments.jsonl: the same judge on M1's responses."""
    _judge_responses(run, model, "anchor_responses", "anchor_judgments", f"{run.cfg.seed} {model[1:]} anchor")


def earlier_judgments(run: Run, model: str) -> None:
    """m_t/earlier_judgments.jsonl: the judge of the round before, m_(t-2), on the same responses."""
    judge_name = previous_model(previous_model(model))
    _judge_responses(run, model, "responses", "earlier_judgments", f"{run.cfg.seed} {model[1:]} earlier", judge_name)


def _judge_responses(run: Run, model: str, source: str, stage: str, seed: str, judge_name: str = "") -> None:
    to_judge = finished_responses(run.files.jsonl(model, source).rows())
    if run.cfg.judge.kind == "model":
        judge(run, judge_name or previous_model(model), to_judge, model, stage)
    elif not run.files.is_complete(model, stage):
        votes = judging.random_judge(to_judge, run.cfg.judge.num_samples, seed)
        run.files.jsonl(model, stage).finish(votes, tokens=0)


def probes(run: Run, model: str) -> None:
    """m_t/probes.jsonl: how m_(t-1) judges responses that deserve nothing."""
    prompts = run.files.jsonl(model, "prompts").rows()[: run.cfg.checks.num_probe_prompts]
    if prompts and run.cfg.judge.kind == "model":
        degenerate = round_checks.probes(prompts, run.cfg.judge.output_format)
        judge(run, previous_model(model), degenerate, model, "probes")


def hacked(run: Run, model: str) -> None:
    """m_t/hacks.jsonl: how m_(t-1) judges hacks that are planted into its own responses."""
    if rows := planted_hacks(run, model):
        judge(run, previous_model(model), rows, model, "hacks")


def check_judge(run: Run, model: str) -> None:
    """Raises StageError before a round where m_(t-1) could not judge the fixed set of responses. With
    judge.kind=pairwise its comparisons are checked when they are there: it need not know how to give points."""
    if run.cfg.judge.kind == "pairwise":
        return
    judge_name = previous_model(model)
    check_readable(run, f"{judge_name} eval_judgments", run.files.jsonl(judge_name, "eval_judgments").rows())


def check_readable(run: Run, label: str, judged: Sequence[JudgmentRow]) -> dict[str, Any]:
    """The judge's statistics.

    Raises:
      StageError: fewer votes can be parsed than checks.min_parse_rate asks for.
    """
    stats, minimum = judging.judge_stats(judged), run.cfg.checks.min_parse_rate
    parse_rate = stats["parse_rate"] or 0.0
    if parse_rate < minimum:
        remedy = "train M1 longer, or give it more judged rows"
        if stats["cut_off"] > stats["votes"] / 2:
            section = "pairwise" if run.cfg.judge.kind == "pairwise" else "judge"
            limit = run.cfg[section].max_new_tokens
            remedy = f"raise {section}.max_new_tokens, now {limit}: most votes were cut off there"
        raise StageError(
            f"{label}: the judge is too weak: {parse_rate:.0%} of its votes can be parsed, checks.min_parse_rate is "
            f"{minimum:g} ({judging.format_stats(stats)}): in a new --workdir {remedy}"
        )
    return stats


def pairs(run: Run, model: str) -> None:
    """m_t/pairs.jsonl: the best response to each prompt against a poor one."""
    if run.files.is_complete(model, "pairs"):
        return
    settings = run.cfg.pairs
    sources = [run.files.jsonl(model, name) for name in PAIR_SOURCES]
    answered, judged, anchors, judged_anchors, earlier = (s.rows() if s.manifest else [] for s in sources)
    stats = check_readable(run, f"{model} judgments", judged)
    scored = join_scores(finished_responses(answered), judged)
    for name, rows in (("anchor_judgments", judged_anchors), ("earlier_judgments", earlier)):
        if rows:
            check_readable(run, f"{model} {name}", rows)
    if settings.rejected == "anchor" and anchors:
        scored = with_anchors(scored, join_scores(finished_responses(anchors), judged_anchors))
    rows, outcomes = build_pairs(scored, settings.length_control_rho, settings.rejected, settings.min_gap)
    if not rows:
        raise StageError(
            f"{model} pairs: no prompt has two responses with different scores ({format_outcomes(outcomes)}; judge: "
            f"{judging.format_stats(stats)}); the judge cannot tell responses apart: in a new --workdir train it "
            "longer, give it more judged rows, or raise judge.num_samples"
        )
    if settings.agreement == "votes":
        _add_agreement(rows, label_agreement.of_votes(judged))
    elif settings.agreement == "judges" and earlier:
        _add_agreement(
            rows, label_agreement.of_scores(*({r["id"]: r["score"] for r in of} for of in (judged, earlier)))
        )
    run.files.jsonl(model, "pairs").finish(rows, counts=outcomes, tokens=0)
    log_line(f"  {model} pairs: {format_outcomes(outcomes)}")


def _add_agreement(rows: Sequence[PairRow], agreement: Mapping[str, float]) -> None:
    for row in rows:
        row["agreement"] = agreement[row["id"]]
    log_line(f"  agreement of the scores: mean tau-b {three_digits(fmean(row['agreement'] for row in rows))}")
