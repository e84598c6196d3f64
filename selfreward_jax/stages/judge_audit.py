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
from selfreward_jax.method.rows import RankedRow
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
    figures = model_metrics.judge_metrics(ranked, judged)
    result: dict[str, Any] = {
        "accuracy": figures["pairwise_accuracy"],
        "interval": figures["interval"]["pairwise_accuracy"],
        "length_accuracy": figures["length_accuracy"],
        "errors": audit.errors(ranked, judged),
        "orders": None,
        "ranked": None,
        "own": None,
    }
    rows, scores = audit.ranked_as_round(ranked)
    made = hacks.planted(rows, scores, num_prompts, run.cfg.judge.output_format)
    stage = f"{model}_audit_{num_prompts}"
    result["hacks"] = audit.planted(made, judge(run, model, made, FOLDER, f"{stage}_hacks"), world) if made else {}
    if world:
        own = finished_responses(run.files.jsonl(model, "eval_answers").rows()[:num_prompts])
        result["ranked"] = audit.criteria(model_metrics.ranked_responses(ranked), judged, world)
        result["own"] = audit.criteria(own, judge(run, model, own, FOLDER, f"{stage}_own"), world) if own else None
    if "pairwise" in (run.cfg.judge.kind, run.cfg.pairwise.method):
        template = hashlib.sha256(pairwise_template(run).encode()).hexdigest()[:8]
        orders = f"{stage}_orders_{run.cfg.pairwise.max_new_tokens}_{template}"
        side_by_side(run, model, _best_against_worst(ranked[:num_prompts]), FOLDER, orders)
        result["orders"] = audit.order_effects(run.files.jsonl(FOLDER, orders).rows())
    return result


def _best_against_worst(ranked: Sequence[RankedRow]) -> list[Matchup]:
    sides = ((row, *best_and_worst(row["answers"])) for row in ranked)
    return [
        Matchup(row["id"], row["prompt"], good["response"], poor["response"])
        for row, good, poor in sides
        if good["score"] != poor["score"]
    ]
