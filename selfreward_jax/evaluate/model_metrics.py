"""Metrics of one model: its responses to held-out prompts, and its judgments of a fixed set of responses."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from selfreward_jax.evaluate import head_to_head, oracle
from selfreward_jax.evaluate.agreement import Instruction, agreement, confidence_intervals, lead
from selfreward_jax.method.rows import JudgeInput, JudgmentRow, RankedRow, ResponsesRow
from selfreward_jax.storage.artifacts import JsonlArtifact


def ranked_responses(ranked: Sequence[RankedRow]) -> list[JudgeInput]:
    """The responses of ranked rows, as rows {id, prompt, response} for the judge; the id is RANKED_ID/INDEX."""
    return [
        {"id": f"{row['id']}/{i}", "prompt": row["prompt"], "response": response["response"]}
        for row in ranked
        for i, response in enumerate(row["answers"])
    ]


def judge_metrics(ranked: Sequence[RankedRow], judgments: Sequence[JudgmentRow]) -> dict[str, Any]:
    """Agreement of judgments with the true scores of the ranked responses, and the fraction of parseable votes.

    `length_accuracy` is a baseline on the same responses: the pairwise accuracy of preferring the longer response. A
    judge that does no better may have learned no more.
    """
    instructions, lengths = _judged_and_lengths(ranked, judgments)
    votes = [vote["score"] for row in judgments for vote in row["votes"]]
    return {
        **agreement(instructions),
        "interval": confidence_intervals(instructions),
        "length_accuracy": agreement(lengths)["pairwise_accuracy"],
        "parse_rate": sum(v is not None for v in votes) / len(votes) if votes else None,
    }


def lead_over_length(ranked: Sequence[RankedRow], judgments: Sequence[JudgmentRow]) -> dict[str, Any]:
    """How much more often the judge is right than a rule that looks at length alone, on the same responses.

    Returns:
      As `agreement.lead`, and `rule`: "longer" or "shorter", whichever answer it is better to prefer.
    """
    instructions, lengths = _judged_and_lengths(ranked, judgments)
    longer = lead(instructions, lengths)
    if longer["baseline"] is None or longer["baseline"] >= 0.5:
        return longer | {"rule": "longer"}
    shortness = [(truth, [None if c is None else -c for c in characters]) for truth, characters in lengths]
    return lead(instructions, shortness) | {"rule": "shorter"}


def _judged_and_lengths(
    ranked: Sequence[RankedRow], judgments: Sequence[JudgmentRow]
) -> tuple[list[Instruction], list[Instruction]]:
    """The true scores of each row's responses, once with the judge's scores and once with lengths in characters; both
    None where the judge gave no score."""
    score_of = {row["id"]: row["score"] for row in judgments}
    instructions: list[Instruction] = []
    lengths: list[Instruction] = []
    for row in ranked:
        truth = [response["score"] for response in row["answers"]]
        judged = [score_of.get(f"{row['id']}/{i}") for i in range(len(row["answers"]))]
        instructions.append((truth, judged))
        characters = [
            float(len(response["response"])) if score is not None else None
            for response, score in zip(row["answers"], judged, strict=True)
        ]
        lengths.append((truth, characters))
    return instructions, lengths


def score_interval(rows: Sequence[ResponsesRow], world: str) -> list[float] | None:
    """The 95 % confidence interval of the oracle's mean score."""
    return oracle.mean_interval(rows, world)


def response_metrics(rows: Sequence[ResponsesRow], world: str) -> dict[str, Any]:
    """Mean length in characters, fraction of finished responses, and the metrics of the world's oracle, if any."""
    responses = [response for row in rows for response in row["responses"]]
    metrics = {
        "mean_length": sum(len(r["text"]) for r in responses) / len(responses),
        "finished": sum(r["finished"] for r in responses) / len(responses),
    }
    return metrics | ({"oracle": oracle.metrics(rows, world)} if world else {})


def pairwise_win_rates(workdir: epath.Path, models: Sequence[str], world: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Win rates of each model against every other, by the oracle, from their responses in the working directory."""
    rows = {m: JsonlArtifact(workdir / m / "eval_answers.jsonl").rows() for m in models}
    return {
        a: {b: head_to_head.win_rates(oracle_verdicts(rows[a], rows[b], world)) for b in models if b != a}
        for a in models
    }


def oracle_verdicts(ours: Sequence[ResponsesRow], theirs: Sequence[ResponsesRow], world: str) -> list[list[int]]:
    """The oracle's verdicts on two models' responses to the same prompts, per prompt and sample: 1 ours, 0 tie, -1
    theirs."""
    return oracle.verdicts(ours, theirs, world)
