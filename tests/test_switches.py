"""The loop with every switch on at once: each stage works with all others."""

import json

import pytest
from conftest import run

SWITCHES = (
    "--config.sft_baseline",
    "--config.judge.output_format=choice",
    "--config.judge.aggregation=expected",
    "--config.pairs.length_control_rho=0.3",
    "--config.prompts.writer=world",
    "--config.evaluate.best_of=2",
    "--config.dpo.loss=ipo",
    "--config.dpo.epochs=4",
    "--config.dpo.eval_every=2",
    "--config.dpo.eval_prompts=6",
    "--config.pairwise.method=pairwise",
    "--config.pairwise.max_new_tokens=16",
    "--config.model.max_length=640",
)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_all_switches_together(tmp_path):
    workdir = tmp_path / "run"
    run(workdir, 2, *SWITCHES)
    summary = json.loads((workdir / "summary.json").read_text())
    assert list(summary["models"]) == ["sft", "m1", "m2"]
    # The judge's format: choices, as in its training data.
    assert all(
        "Choice: " in row["judgment"] and "Score" not in row["judgment"] for row in rows(workdir / "seed/eft.jsonl")
    )
    judged = rows(workdir / "m2/judgments.jsonl")
    votes = [v for row in judged for v in row["votes"] if v["score"] is not None]
    assert votes
    assert all(1 <= v["score"] <= 5 and 1 < v["expected"] < 5 for v in votes)
    assert any(v["score"] != v["expected"] for v in votes)
    # The best of two, by the model's own scores.
    drawn, chosen = (rows(workdir / f"m1/{name}.jsonl") for name in ("eval_answers_drawn", "eval_answers"))
    score = {row["id"]: row["score"] for row in rows(workdir / "m1/eval_answers_judged.jsonl")}
    for all_samples, best_of in zip(drawn, chosen, strict=True):
        assert len(all_samples["responses"]) == 2 * len(best_of["responses"])
        for i, response in enumerate(best_of["responses"]):
            group = [score.get(f"{all_samples['id']}/{2 * i + j}") for j in range(2)]
            best = max(range(2), key=lambda j, group=group: -1 if group[j] is None else group[j])
            assert response == all_samples["responses"][2 * i + best]
    # Early stopping: evaluated every two steps and at the end, as long as the model won.
    evals = rows(workdir / "m2/early_stopping.jsonl")
    manifest = json.loads((workdir / "m2/manifest.json").read_text())
    assert [int(row["id"]) for row in evals] == list(range(2, 2 * len(evals) + 1, 2))
    assert all(row["kept"] for row in evals[:-1])
    assert manifest["steps"] == int(evals[-1]["id"])
    assert manifest["best_step"] == max([0, *(int(row["id"]) for row in evals if row["kept"])])
    assert not (workdir / "m2/best").exists()
    run(workdir, 2, *SWITCHES)  # nothing is regenerated
    assert rows(workdir / "m2/early_stopping.jsonl") == evals
