"""Variants of a round, end to end at the smallest scale: which rows they make, and what is trained on."""

import json

import pytest
from conftest import ended, run

from selfreward_jax.cli import explain

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
