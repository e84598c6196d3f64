"""Variants of a round, end to end at the smallest scale: which rows they make, and what is trained on."""

import json

import pytest
from conftest import arguments, ended, run

from selfreward_jax import main
from selfreward_jax.cli import explain
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.method import label_agreement
from selfreward_jax.runs.run import open_run
from selfreward_jax.storage import read_checksummed
from selfreward_jax.train.dpo import Pair, reference_logprobs

pytestmark = pytest.mark.slow


def rows(workdir, folder, name):
    return [json.loads(line) for line in (workdir / folder / f"{name}.jsonl").read_text().splitlines()]


def test_from_m3_on_the_worst_response_of_m1_is_rejected(tmp_path, capsys):
    options = {"pairs.rejected": "anchor", "pairs.anchor_samples": 3, "judge.kind": "random"}
    run(tmp_path / "run", 3, *(f"--config.{name}={value}" for name, value in options.items()))
    assert not list((tmp_path / "run" / "m2").glob("anchor*"))
    anchors = {row["id"]: row["responses"] for row in rows(tmp_path / "run", "m3", "anchor_responses")}
    scores = {row["id"]: row["score"] for row in rows(tmp_path / "run", "m3", "anchor_judgments")}
    own = {row["id"]: row["responses"] for row in rows(tmp_path / "run", "m3", "responses")}
    assert {len(of) for of in anchors.values()} == {3}
    pairs = rows(tmp_path / "run", "m3", "pairs")
    assert pairs
    for pair in pairs:
        worst = min(scores[f"{pair['id']}/{i}"] for i, r in enumerate(anchors[pair["id"]]) if r["finished"])
        assert pair["rejected_score"] == worst < pair["chosen_score"]
        assert pair["rejected"] in [r["text"] for r in anchors[pair["id"]]]
        assert pair["chosen"] in [r["text"] for r in own[pair["id"]]]
    assert ended(explain, f"--workdir={tmp_path / 'run'}", f"--pair={pairs[0]['id']}")[0] == 0
    assert "answers, by m1" in capsys.readouterr().out


def test_labels_are_smoothed_by_the_judge_of_the_round_before(tmp_path):
    options = {"pairs.agreement": "judges", "dpo.reference": "m1", "judge.kind": "random"}
    run(tmp_path / "run", 3, *(f"--config.{name}={value}" for name, value in options.items()))
    assert not any("agreement" in pair for pair in rows(tmp_path / "run", "m2", "pairs"))
    now, before = (
        {row["id"]: row["score"] for row in rows(tmp_path / "run", "m3", name)}
        for name in ("judgments", "earlier_judgments")
    )
    assert now.keys() == before.keys()
    pairs = rows(tmp_path / "run", "m3", "pairs")
    assert len({pair["agreement"] for pair in pairs}) > 1
    agreement = label_agreement.of_scores(now, before)
    assert [pair["agreement"] for pair in pairs] == [agreement[pair["id"]] for pair in pairs]
    opened = open_run(str(tmp_path / "run"))
    reference = read_checksummed(opened.workdir / "m3" / "ref_logprobs.json")
    example = opened.models.chat.example
    made = [Pair(*(example(row["prompt"], row[side]) for side in ("chosen", "rejected"))) for row in pairs]
    decoder = Decoder(opened.models.model_config())
    expected = reference_logprobs(decoder, opened.models.load_params("m1"), made, 8, opened.models.mesh)
    assert reference["chosen"] == pytest.approx(expected[:, 0], abs=1e-4)


def test_responses_are_compared_two_by_two(tmp_path):
    options = {
        "judge.kind": "pairwise",
        "judge.num_samples": 2,
        "dpo.judge_pairs": "pairwise",
        "data.comparison_rows": 96,
        "sft.sets": "('ift', 'eft', 'comparisons', 'prompts')",
        "dpo.replay_sets": "('eft', 'comparisons', 'prompts')",
        "pairwise.template": "judge_pairwise_short",
        "pairwise.max_new_tokens": 32,
        "model.max_length": 384,
        "sft.seq_len": 384,
        "dpo.replay_seq_len": 384,
    }
    workdir = tmp_path / "run"
    code, err = ended(main, *arguments(workdir, 2, *(f"--config.{name}={value}" for name, value in options.items())))
    assert (workdir / "m2" / "comparisons.jsonl").exists(), err
    compared = rows(workdir, "m2", "comparisons")
    assert compared, err
    for row in compared:
        assert [len(order) for order in row["orders"]] == [2, 2]
    judged = rows(workdir, "m2", "judgments")
    finished = {
        r["id"]: sum(x["finished"] and bool(x["text"]) for x in r["responses"])
        for r in rows(workdir, "m2", "responses")
    }
    for row in judged:
        assert len(row["votes"]) == 2 * (finished[row["id"].rpartition("/")[0]] - 1)
    assert code in (0, 2)  # a model that has learned nothing prefers nothing


def test_judgments_are_compared_by_a_meta_judge(tmp_path):
    options = {
        "dpo.judge_pairs": "meta",
        "dpo.judge_pair_rounds": 1,
        "judge.temperature": 1.0,
        "data.meta_rows": 96,
        "sft.sets": "('ift', 'eft', 'meta', 'prompts')",
        "dpo.replay_sets": "('eft', 'meta', 'prompts')",
        "meta.template": "meta_judge_short",
        "meta.max_new_tokens": 32,
        "model.max_length": 512,
        "sft.seq_len": 512,
        "dpo.replay_seq_len": 512,
    }
    workdir = tmp_path / "run"
    code, err = ended(main, *arguments(workdir, 3, *(f"--config.{name}={value}" for name, value in options.items())))
    made = {path.name for path in (workdir / "m2").glob("*.jsonl")}
    assert {"meta_judgments.jsonl", "judge_pairs.jsonl"} <= made, err
    assert code in (0, 2)  # a model that has learned nothing prefers nothing
    assert not list((workdir / "m3").glob("meta*"))
