"""The benchmark of the checkable world: its tables, by hand and on a small run."""

import json

import pytest
from conftest import assert_mentions, ended, run
from test_checkable import ROWS

from benchmarks import real, real_texts
from selfreward_jax import storage
from selfreward_jax.cli import evaluate
from selfreward_jax.runs.run import open_run


def test_texts_are_described():
    texts = ["One two two.", "", "Wax melts in heat. Wax melts in heat."]
    described = real.describe_texts(texts, [True, False, True])
    assert described == {
        "finished": pytest.approx(2 / 3),
        "words": pytest.approx(11 / 3),
        "distinct words": pytest.approx((3 / 3 + 4 / 8) / 2),
        "repeats": pytest.approx(1 / 3),
        "empty": pytest.approx(1 / 3),
    }


def test_the_share_of_instructions_that_answers_meet():
    rows = [
        {
            "prompt": "What is wax? Do not use any commas. Answer in two sentences.",
            "responses": [{"text": "It melts."}],
        },
        {"prompt": "What is wax? Write everything in capital letters.", "responses": [{"text": ""}]},
    ]
    assert real.share_met(rows) == pytest.approx(1 / 3)


def test_prompts_are_described():
    prompts = ["What is wax? Use no commas.", "What is wax? Answer in two sentences. Use four words.", "What is wax?"]
    assert real.describe_prompts(prompts) == {
        "prompts": 3,
        "with instructions": pytest.approx(2 / 3),
        "read in full": pytest.approx(1 / 3),
        "instructions": pytest.approx(2 / 3),
    }


def test_arms_share_the_responses_of_round_2_once_they_are_whole(tmp_path):
    assert real._shared(tmp_path, "random judge") == real.M1
    (tmp_path / "m2").mkdir()
    (tmp_path / "m2" / "responses.jsonl").write_text("{}\n")  # of a run that was stopped
    assert real._shared(tmp_path, "random judge") == real.M1
    (tmp_path / "m2" / "responses.manifest.json").write_text("{}")
    assert real._shared(tmp_path, "random judge") == (*real.M1, "m2/prompts", "m2/responses")
    assert real._shared(tmp_path, "best of 4") == real.M1  # it ends at M1
    assert real._shared(tmp_path, "lora") == real.M0


@pytest.mark.slow
def test_a_run_of_the_checkable_world_ends_in_its_tables(tmp_path):
    """From random weights nothing is learned; every stage, the oracle and the tables are there."""
    (tmp_path / "ift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    workdir = tmp_path / "run"
    options = {
        "world": "checkable",
        "data.ift": tmp_path / "ift.jsonl",
        "prompts.max_words": 60,
        "model.max_length": 512,
    }
    options |= {"sft.seq_len": 512, "judge.max_new_tokens": 64, "prompts.max_new_tokens": 48}
    run(workdir, 2, *(f"--config.{name}={value}" for name, value in options.items()))
    made = open_run(str(workdir))
    lines = list(real.tables(made, storage.read_json(made.workdir / "summary.json"), real.answers_of_m0(made)))
    assert_mentions(
        "\n".join(lines), "M0", "M1", "M2", "taught", "transfer", "keyword", "m2 new prompts", "m1 sft", "peak memory"
    )
    assert ended(evaluate, f"--workdir={workdir}")[0] == 0
    report = json.loads((workdir / "evaluation" / "report_oracle.json").read_text())
    assert 0 <= report["models"]["m2"]["oracle"]["taught"] <= 1
    assert (workdir / "report.html").stat().st_size > 10_000
    for what, (texts, _) in real_texts.TEXTS.items():
        models = ["m2"] if what in ("prompts", "pairs") else ["m1", "m2"]
        assert list(texts(made, models, 2)) or what == "pairs"
