"""EFT written by an SFT baseline, through the program: a run that starts from a model that can judge."""

import json
from random import Random

import pytest
from conftest import run

from selfreward_jax.cli import program
from selfreward_jax.data.eft import agrees
from selfreward_jax.method.judge_parsing import parse_score
from selfreward_jax.worlds.toy import generator

pytestmark = pytest.mark.slow  # a run with a baseline


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def workdir(finished_run, tmp_path_factory):
    """A run to M1 from the exported M1 of another run, on answers with scores but without judgments."""
    home = tmp_path_factory.mktemp("baseline")
    assert program.main(["export", f"--workdir={finished_run}", "--model=m1", f"--out={home}/model"]) == 0
    rng = Random(0)
    for name, examples in (("ift", generator.ift_rows(60, rng)), ("eft", generator.ranked_rows(60, 3, rng))):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    options = [f"--config.data.{name}={home}/{name}.jsonl" for name in ("ift", "eft")]
    options += [f"--config.model.init={home}/model", "--config.eft.source=baseline", "--config.sft_baseline"]
    options += [
        "--config.eft.agreement=weak",
        "--config.eft.max_share=0.5",
        "--config.eft.num_samples=6",
        "--config.data.eft_rows=0",
    ]
    run(home / "run", 1, *options, "--config.sft.epochs=1", "--config.sft.lr=1e-4", "--config.sft.lr_end=1e-5")
    return home / "run"


def test_kept_judgments_come_from_the_baseline_and_agree_with_the_human_order(workdir):
    judged = {row["id"]: row["votes"] for row in rows(workdir / "seed/eft_judgments.jsonl")}
    assert {len(votes) for votes in judged.values()} == {6}
    human, texts = {}, {}
    for row in rows(workdir / "seed/eft_answers.jsonl"):
        for i, answer in enumerate(row["answers"]):
            human[row["prompt"], answer["response"]] = answer["score"]
            texts[row["prompt"], answer["response"]] = {v["text"] for v in judged[f"{row['id']}/{i}"]}
    kept = rows(workdir / "seed/eft.jsonl")
    counts = json.loads((workdir / "seed/eft.manifest.json").read_text())["counts"]
    assert len(kept) == counts["kept"] > 0
    for row in kept:
        assert row["judgment"] in texts[row["prompt"], row["response"]]
        assert parse_score(row["judgment"]) == row["score"]
    assert counts["prompts"] == counts["agree"] + counts["disagree"] + counts["no_ranking"]
    assert counts["rows"] == counts["kept"] + counts["thinned"]
    if not counts["thinned"]:  # then rankings are complete, and each of them has the human order
        for prompt in {row["prompt"] for row in kept}:
            ranking = [row for row in kept if row["prompt"] == prompt]
            assert agrees(
                [human[prompt, row["response"]] for row in ranking], [row["score"] for row in ranking], "weak"
            )


def test_m1_is_trained_on_it_and_the_baseline_is_evaluated(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    assert list(summary["models"]) == ["sft", "m1"]
    assert summary["models"]["sft"]["judge"]["parse_rate"] > 0
    kept = json.loads((workdir / "seed/eft.manifest.json").read_text())["rows"]
    ift = json.loads((workdir / "seed/ift.manifest.json").read_text())["rows"]
    assert json.loads((workdir / "sft/manifest.json").read_text())["rows"] == ift
    assert json.loads((workdir / "m1/manifest.json").read_text())["rows"] == ift + kept + 32


def test_no_prompt_is_in_two_sets(workdir):
    sets = [
        {row["prompt"] for row in rows(workdir / f"seed/{name}.jsonl")} for name in ("ift", "eft_answers", "heldout")
    ]
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]
