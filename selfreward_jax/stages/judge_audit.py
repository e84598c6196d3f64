"""The audit of models as judges: evaluation/audit.json. Like `measure.py` it only measures; nothing that trains reads
what it writes."""

import hashlib
from collections.abc import Sequence
from typing import Any

from selfreward_jax import storage
from selfreward_jax.evaluate import audit, model_metrics
from selfreward_jax.method import hacks
from selfreward_jax.method.pairs import best_and_worst
from selfreward_jax.method.pairwise import Matchup
from selfreward_jax.method.responses import finished_responses
from selfreward_jax.method.rows import JudgeInput, RankedRow, VerdictRow
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import pairwise_template
from selfreward_jax.stages.pairwise_eval import side_by_side
from selfreward_jax.stages.sampling import judge
from selfreward_jax.worlds import world_of

FOLDER = "evaluation"


def audit_judges(run: Run, models: Sequence[str], num_prompts: int) -> dict[str, Any]:
    """Audits models as judges, each of its own answers too, and writes evaluation/audit.json.

    Args:
      run: the run.
      models: trained ones that were measured.
      num_prompts: so many ranked prompts get hacks, and so many held-out prompts' answers are judged by their writer.

    Returns:
      `num_prompts`, and `models`: the figures of each, by name.
    """
    ranked = run.files.jsonl("seed", f"ranked_{run.cfg.evaluate.split}").rows()
    result = {"num_prompts": num_prompts, "models": {name: _audit(run, name, ranked, num_prompts) for name in models}}
    storage.write_json(run.workdir / FOLDER / "audit.json", result)
    return result


def _audit(run: Run, model: str, ranked: Sequence[RankedRow], num_prompts: int) -> dict[str, Any]:
    world, judged = world_of(run.cfg), run.files.jsonl(model, "eval_judgments").rows()
    figures, length = model_metrics.judge_metrics(ranked, judged), model_metrics.lead_over_length(ranked, judged)
    result: dict[str, Any] = {
        "accuracy": figures["pairwise_accuracy"],
        "interval": figures["interval"]["pairwise_accuracy"],
        "length_accuracy": length["baseline"],
        "length_rule": length["rule"],
        "errors": audit.errors(ranked, judged),
        "orders": None,
        "ranked": None,
        "own": None,
    }
    rows, scores = audit.ranked_as_round(ranked)
    made = hacks.planted(rows, scores, num_prompts, run.cfg.judge.output_format)
    stage = f"{model}_audit_{num_prompts}"
    result["hacks"] = audit.planted(_effect(run, model, audit.undeserved(made, world), stage)) if made else {}
    if world:
        own = finished_responses(run.files.jsonl(model, "eval_answers").rows()[:num_prompts])
        result["ranked"] = audit.criteria(model_metrics.ranked_responses(ranked), judged, world)
        result["own"] = audit.criteria(own, judge(run, model, own, FOLDER, f"{stage}_own"), world) if own else None
    if "pairwise" in (run.cfg.judge.kind, run.cfg.pairwise.method):
        verdicts = _compare(run, model, _best_against_worst(ranked[:num_prompts]), f"{stage}_orders")
        result["orders"] = audit.order_effects(verdicts)
    return result


def _effect(run: Run, model: str, planted: Sequence[JudgeInput], stage: str) -> hacks.Effect:
    """What planted hacks bring with the judge that the run trains on."""
    if run.cfg.judge.kind != "pairwise":
        return hacks.effect_on_scores(judge(run, model, planted, FOLDER, f"{stage}_hacks"))
    verdicts = _compare(run, model, hacks.matchups(planted), f"{stage}_hack_orders")
    return hacks.effect_on_comparisons((row["id"], row["read"]) for row in verdicts)


def _compare(run: Run, model: str, matchups: Sequence[Matchup], stage: str) -> list[VerdictRow]:
    template = hashlib.sha256(pairwise_template(run).encode()).hexdigest()[:8]
    name = f"{stage}_{run.cfg.pairwise.max_new_tokens}_{template}"
    side_by_side(run, model, matchups, FOLDER, name)
    return run.files.jsonl(FOLDER, name).rows()


def _best_against_worst(ranked: Sequence[RankedRow]) -> list[Matchup]:
    sides = ((row, *best_and_worst(row["answers"])) for row in ranked)
    return [
        Matchup(row["id"], row["prompt"], good["response"], poor["response"])
        for row, good, poor in sides
        if good["score"] != poor["score"]
    ]
