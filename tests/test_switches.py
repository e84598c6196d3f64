"""The loop with every switch thrown at once: each stage has to bear the others' company."""

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
    # The judge's form: choices, read from what it was taught.
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
    for wide, kept in zip(drawn, chosen, strict=True):
        assert len(wide["responses"]) == 2 * len(kept["responses"])
        for place, response in enumerate(kept["responses"]):
            of = [2 * place, 2 * place + 1]
            best = max(of, key=lambda i, w=wide: -1 if (s := score.get(f"{w['id']}/{i}")) is None else s)
            assert response == wide["responses"][best]
    # Early stopping: looked at every two steps and at the end, as long as it won.
    looks = rows(workdir / "m2/early_stopping.jsonl")
    manifest = json.loads((workdir / "m2/manifest.json").read_text())
    assert [int(look["id"]) for look in looks] == list(range(2, 2 * len(looks) + 1, 2))
    assert all(look["kept"] for look in looks[:-1])
    assert manifest["steps"] == int(looks[-1]["id"])
    assert manifest["best_step"] == max([0, *(int(look["id"]) for look in looks if look["kept"])])
    assert not (workdir / "m2/best").exists()
    run(workdir, 2, *SWITCHES)  # and nothing of it is made again
    assert rows(workdir / "m2/early_stopping.jsonl") == looks
