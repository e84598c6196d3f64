"""A pair is traced back to its prompt, its answers, every vote, and the weights behind them."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from conftest import ended
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.cli import explain
from selfreward_jax.runs.run import Run
from selfreward_jax.sampling.engine import stable_hash32
from selfreward_jax.storage import read_checksummed
from selfreward_jax.storage.artifacts import JsonlArtifact
from selfreward_jax.telemetry.escape import escape


def rows(workdir, name):
    return [json.loads(line) for line in (workdir / "m2" / f"{name}.jsonl").read_text().splitlines()]


def test_everything_behind_a_pair_is_told(finished_run, capsys):
    pair = rows(finished_run, "pairs")[0]
    assert ended(explain, f"--workdir={finished_run}", f"--pair={pair['id']}") == (0, "")
    said = capsys.readouterr().out
    for model in ("m1", "m2"):
        assert json.loads((finished_run / model / "manifest.json").read_text())["weights"] in said
    for name in explain.STAGES:
        assert json.loads((finished_run / "m2" / f"{name}.manifest.json").read_text())["sha256"] in said
    (candidates,) = (r for r in rows(finished_run, "candidates") if r["id"] == pair["id"])
    lines = said.splitlines()
    for number, answer in enumerate(candidates["responses"]):
        ((place, head),) = ((i, x) for i, x in enumerate(lines) if re.match(rf"[a-z]+ {number}:", x))
        assert ("CHOSEN" in head) == (answer["text"] == pair["chosen"])
        assert ("REJECTED" in head) == (answer["text"] == pair["rejected"])
        assert lines[place + 1] == f"    | {escape(answer['text']).split(chr(10))[0]}"
    judged = [r for r in rows(finished_run, "judgments") if r["id"].startswith(pair["id"] + "/")]
    assert sum(bool(re.match(r" {4}[a-z]+ \d+:", line)) for line in lines) == sum(len(r["votes"]) for r in judged)
    for vote in (v for r in judged for v in r["votes"]):
        assert all(f"        | {escape(line)}" in lines for line in vote["text"].split("\n"))


def test_the_key_that_it_names_is_the_one_that_was_used(finished_run, capsys):
    pair = rows(finished_run, "pairs")[0]["id"]
    assert ended(explain, f"--workdir={finished_run}", f"--pair={pair}")[0] == 0
    said = capsys.readouterr().out
    key = jax.random.key(0)
    for name in ("m2", "candidates", pair):
        key = jax.random.fold_in(key, stable_hash32(name))
        assert f"{stable_hash32(name)} ({name})" in said
    run = Run.reopen(str(finished_run))
    expected = jax.random.fold_in(run.stage_key("m2", "candidates"), stable_hash32(pair))
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(expected))


@pytest.mark.parametrize(
    ("pair", "facts"),
    [
        ("m2/99999", r"'m2/99999'.*\bm2/\d"),
        ("m7/1", r"'m7/1'.*\bm2$"),
        ("..", r"'\.\.'.*\bm2$"),
    ],
)
def test_an_unknown_pair_is_answered_in_one_line(finished_run, pair, facts):
    code, err = ended(explain, f"--workdir={finished_run}", f"--pair={pair}")
    assert code == 2
    assert re.search(facts, err.strip())
    assert len(err.strip().splitlines()) == 1


HOSTILE = "\x1b[31mred\x1b]0;title\x07 \u202eright to left \x00\x9b2J\r\ud800 <script>"


def test_what_a_model_wrote_is_shown_and_not_obeyed(finished_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    kept = JsonlArtifact(Run.reopen(str(workdir)).workdir / "m2" / "responses.jsonl")
    made = kept.rows()
    made[0]["responses"][0]["text"] = HOSTILE.replace("\ud800", "")
    kept.finish(made)
    pair = rows(workdir, "pairs")[0]["id"]
    assert pair == made[0]["id"]
    assert ended(explain, f"--workdir={workdir}", f"--pair={pair}") == (0, "")
    said = capsys.readouterr().out
    assert "\\x1b[31mred\\x1b]0;title\\x07 \\u202eright to left \\x00\\x9b2J\\r <script>" in said
    assert not set("\x1b\x07\u202e\x00\x9b\r") & set(said)


@given(st.text(st.characters(exclude_categories=())))
def test_inert_text_has_no_character_that_acts(text):
    shown = escape(text)
    assert all(c in "\n\t" or not inert_changes(c) for c in shown)
    assert escape(shown) == shown
    shown.encode()  # also where half a character was given


def inert_changes(c):
    return escape(c) != c


def test_plain_text_in_any_script_stays():
    for text in ("Ünïcödé, 日本語, العربية, 🙂", "a\tb\nc", "\\x1b"):
        assert escape(text) == text


def test_a_manifest_that_was_changed_is_told(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    path = workdir / "m1" / "manifest.json"
    path.write_text(path.read_text().replace('"weights": "', '"weights": "0'))
    code, err = ended(explain, f"--workdir={workdir}", f"--pair={rows(finished_run, 'pairs')[0]['id']}")
    assert code == 2
    assert "m1/manifest.json" in err
    assert read_checksummed(Run.reopen(str(finished_run)).workdir / "m1" / "manifest.json")
