"""explain: traces a pair back to its prompt, its answers, every vote, and the weights of the models."""

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
from selfreward_jax.console.escape import escape
from selfreward_jax.runs.run import open_run
from selfreward_jax.sampling.keys import stable_hash32
from selfreward_jax.storage import read_checksummed
from selfreward_jax.storage.artifacts import JsonlArtifact


def rows(workdir, name):
    return [json.loads(line) for line in (workdir / "m2" / f"{name}.jsonl").read_text().splitlines()]


def test_a_pair_is_traced_to_its_rows_votes_and_weights(finished_run, capsys):
    pair = rows(finished_run, "pairs")[0]
    assert ended(explain, f"--workdir={finished_run}", f"--pair={pair['id']}") == (0, "")
    shown = capsys.readouterr().out
    for model in ("m1", "m2"):
        assert json.loads((finished_run / model / "manifest.json").read_text())["weights"] in shown
    for name in explain.STAGES:
        assert json.loads((finished_run / "m2" / f"{name}.manifest.json").read_text())["sha256"] in shown
    (row,) = (r for r in rows(finished_run, "responses") if r["id"] == pair["id"])
    lines = shown.splitlines()
    for number, answer in enumerate(row["responses"]):
        ((place, head),) = ((i, x) for i, x in enumerate(lines) if re.match(rf"[a-z]+ {number}:", x))
        assert ("CHOSEN" in head) == (answer["text"] == pair["chosen"])
        assert ("REJECTED" in head) == (answer["text"] == pair["rejected"])
        assert lines[place + 1] == f"    | {escape(answer['text']).split(chr(10))[0]}"
    judged = [r for r in rows(finished_run, "judgments") if r["id"].startswith(pair["id"] + "/")]
    assert sum(bool(re.match(r" {4}[a-z]+ \d+:", line)) for line in lines) == sum(len(r["votes"]) for r in judged)
    for vote in (v for r in judged for v in r["votes"]):
        assert all(f"        | {escape(line)}" in lines for line in vote["text"].split("\n"))


def test_the_random_keys_shown_are_those_of_the_run(finished_run, capsys):
    pair = rows(finished_run, "pairs")[0]["id"]
    assert ended(explain, f"--workdir={finished_run}", f"--pair={pair}")[0] == 0
    shown = capsys.readouterr().out
    key = jax.random.key(0)
    for name in ("m2", "candidates", pair):
        key = jax.random.fold_in(key, stable_hash32(name))
        word = {"candidates": "responses"}.get(name, name)
        assert f"{stable_hash32(name)} ({word})" in shown
    assert f"{stable_hash32('judgements')} (judgments)" in shown
    assert "judgement" not in shown
    assert not re.search(r"\.\d{4}", shown)
    run = open_run(str(finished_run))
    expected = jax.random.fold_in(run.files.stage_key("m2", "responses"), stable_hash32(pair))
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(expected))


@pytest.mark.parametrize(
    ("pair", "facts"),
    [
        ("m2/99999", r"--pair=m2/99999:.*\bm2/\d"),
        ("m7/1", r"--pair=m7/1:.*\bpairs of m2$"),
        ("..", r"--pair=\.\.:.*\bpairs of m2$"),
        ("m2", r"--pair=m2:.*\bMODEL/NUMBER\b"),
        ("17", r"--pair=17:.*\bMODEL/NUMBER.*\bm2/\d+;"),
    ],
)
def test_an_unknown_pair_is_refused_on_one_line(finished_run, pair, facts):
    code, err = ended(explain, f"--workdir={finished_run}", f"--pair={pair}")
    assert code == 2
    assert re.search(facts, err.strip())
    assert len(err.strip().splitlines()) == 1


HOSTILE = "\x1b[31mred\x1b]0;title\x07 \u202eright to left \x00\x9b2J\r\ud800 <script>"


def test_control_characters_of_a_response_are_escaped(finished_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    artifact = JsonlArtifact(open_run(str(workdir)).workdir / "m2" / "responses.jsonl")
    edited = artifact.rows()
    edited[0]["responses"][0]["text"] = HOSTILE.replace("\ud800", "")
    artifact.finish(edited)
    pair = rows(workdir, "pairs")[0]["id"]
    assert pair == edited[0]["id"]
    assert ended(explain, f"--workdir={workdir}", f"--pair={pair}") == (0, "")
    shown = capsys.readouterr().out
    assert "\\x1b[31mred\\x1b]0;title\\x07 \\u202eright to left \\x00\\x9b2J\\r <script>" in shown
    assert not set("\x1b\x07\u202e\x00\x9b\r") & set(shown)


@given(st.text(st.characters(exclude_categories=())))
def test_escaped_text_has_no_control_character(text):
    shown = escape(text)
    assert all(c in "\n\t" or escape(c) == c for c in shown)
    assert escape(shown) == shown
    shown.encode()  # also a lone surrogate


def test_plain_text_in_any_script_is_unchanged():
    for text in ("Ünïcödé, 日本語, العربية, 🙂", "a\tb\nc", "\\x1b"):
        assert escape(text) == text


def test_a_changed_manifest_is_refused(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    path = workdir / "m1" / "manifest.json"
    path.write_text(path.read_text().replace('"weights": "', '"weights": "0'))
    code, err = ended(explain, f"--workdir={workdir}", f"--pair={rows(finished_run, 'pairs')[0]['id']}")
    assert code == 2
    assert "m1/manifest.json" in err
    assert read_checksummed(open_run(str(finished_run)).workdir / "m1" / "manifest.json")
