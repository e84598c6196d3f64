"""Measures one model: its answers to held-out prompts, and its judgments of a fixed set of answers."""

from typing import Any

from selfreward_jax.evaluate import head_to_head, oracle
from selfreward_jax.evaluate.agreement import agreement, intervals
from selfreward_jax.storage.artifacts import JsonlArtifact

Row = dict[str, Any]


def ranked_answers(ranked: list[Row]) -> list[Row]:
    """The answers of ranked rows {id, prompt, answers: [{response, score}]} as rows {id, prompt, response}."""
    return [
        {"id": f"{row['id']}/{i}", "prompt": row["prompt"], "response": a["response"]}
        for row in ranked
        for i, a in enumerate(row["answers"])
    ]


def judge_figures(ranked: list[Row], judgments: list[Row]) -> dict[str, Any]:
    """Agreement of judgments with the true scores of the ranked answers, and the share of readable votes.

    `length_accuracy` is the pairwise accuracy of calling the longer answer the better one, on the same answers: a
    judge that does no better may have learnt no more.
    """
    score = {j["id"]: j["score"] for j in judgments}
    instructions = [
        (
            [a["score"] for a in row["answers"]],
            [score.get(f"{row['id']}/{i}") for i in range(len(row["answers"]))],
        )
        for row in ranked
    ]
    lengths = [
        (
            truth,
            [float(len(a["response"])) if s is not None else None for a, s in zip(row["answers"], judged, strict=True)],
        )
        for row, (truth, judged) in zip(ranked, instructions, strict=True)
    ]
    votes = [v["score"] for j in judgments for v in j["votes"]]
    return {
        **agreement(instructions),
        "interval": intervals(instructions),
        "length_accuracy": agreement(lengths)["pairwise_accuracy"],
        "parse_rate": sum(v is not None for v in votes) / len(votes) if votes else None,
    }


def answer_figures(rows: list[Row], has_oracle: bool) -> dict[str, Any]:
    """Mean length in characters, share of finished answers, and the oracle's figures where there is one."""
    texts = [r for row in rows for r in row["responses"]]
    figures = {
        "mean_length": sum(len(r["text"]) for r in texts) / len(texts),
        "finished": sum(r["finished"] for r in texts) / len(texts),
    }
    return figures | ({"oracle": oracle.figures(rows)} if has_oracle else {})


def versus(directory: Any, models: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Head to head of each model with every other, from their answers in the working directory."""
    rows = {m: JsonlArtifact(directory / m / "eval_answers.jsonl").rows() for m in models}
    return {a: {b: head_to_head.win_rates(by_oracle(rows[a], rows[b])) for b in models if b != a} for a in models}


def by_oracle(ours: list[Row], theirs: list[Row]) -> list[list[int]]:
    """The world's oracle on two models' answers to the same prompts, for each prompt and sample: 1 ours, 0 tie, -1
    theirs."""
    return oracle.verdicts(ours, theirs)
