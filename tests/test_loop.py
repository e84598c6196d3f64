"""The whole loop on a micro configuration, and what it promises after a kill."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, arguments, assert_mentions, command, ended, refused, run
from etils import epath
from orbax.checkpoint.experimental import v1 as ocp

from selfreward_jax import main
from selfreward_jax.storage.artifacts import encode_crc

FILES = ("prompts", "responses", "judgments", "pairs")


def contents(workdir: Path) -> dict[str, str]:
    """Hashes of every row file, and of every array of every checkpoint, read back through Orbax."""
    found = {}
    for path in workdir.glob("m*/checkpoint"):
        for place, x in jax.tree_util.tree_leaves_with_path(ocp.load(epath.Path(path))):
            name = f"{path.parent.name} {jax.tree_util.keystr(place)}"
            found[name] = hashlib.sha256(np.asarray(x).tobytes()).hexdigest()
    assert found, "no checkpoint was read"
    for path in workdir.glob("*/*.jsonl"):
        found[str(path.relative_to(workdir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_the_loop_reaches_m2_and_writes_a_summary(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    assert list(summary["models"]) == ["m1", "m2"]
    for name, other in (("m1", "m2"), ("m2", "m1")):
        model = summary["models"][name]
        assert 0 <= model["oracle"]["perfect"] <= 1
        assert 0 <= model["oracle"]["mean"] <= 5
        assert {"pairwise_accuracy", "exact_match", "five_best", "spearman", "kendall"} <= model["judge"].keys()
        versus = model["versus"][other]
        assert versus["win"] + versus["tie"] + versus["lose"] == pytest.approx(1)
        assert model["mean_length"] > 0
    ours, theirs = (summary["models"][n]["versus"][o] for n, o in (("m1", "m2"), ("m2", "m1")))
    assert (ours["win"], ours["tie"]) == (theirs["lose"], theirs["tie"])
    made = [(s["model"], s["name"]) for s in summary["stages"]]
    assert made[0] == ("seed", "documents")
    assert made[1:3] == [("m0", "pretrain"), ("m1", "sft")]
    assert {("m2", name) for name in (*FILES, "dpo")} <= set(made)
    assert all(s["rows"] > 0 and s["seconds"] >= 0 and s["tokens"] >= 0 for s in summary["stages"])
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 1e7


def test_rows_of_all_stages_agree(finished_run):
    rows = {f: [json.loads(x) for x in (finished_run / f"m2/{f}.jsonl").read_text().splitlines()] for f in FILES}
    prompts = {r["id"]: r["prompt"] for r in rows["prompts"]}
    assert [r["id"] for r in rows["responses"]] == list(prompts)
    finished = {
        f"{r['id']}/{i}": a["text"]
        for r in rows["responses"]
        for i, a in enumerate(r["responses"])
        if a["finished"] and a["text"]
    }
    assert [r["id"] for r in rows["judgments"]] == list(finished)
    for pair in rows["pairs"]:
        assert pair["prompt"] == prompts[pair["id"]]
        assert pair["chosen_score"] > pair["rejected_score"]
        assert {pair["chosen"], pair["rejected"]} <= {v for k, v in finished.items() if k.startswith(pair["id"] + "/")}


def test_a_second_run_changes_nothing(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    before = contents(workdir)
    times = {p: p.stat().st_mtime_ns for p in workdir.glob("m*/**/*") if p.is_file()}
    run(workdir, 1)
    run(workdir, 2)
    assert contents(workdir) == before
    assert {p: p.stat().st_mtime_ns for p in times} == times


@pytest.mark.slow
def test_a_longer_run_adds_a_round(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    before = contents(workdir)
    times = {p: p.stat().st_mtime_ns for p in workdir.glob("m*/**/*") if p.is_file()}
    run(workdir, 3)
    after = contents(workdir)
    assert {name: after[name] for name in before} == before
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert (workdir / "m3" / "eval.json").exists()
    assert list(json.loads((workdir / "summary.json").read_text())["models"]) == ["m1", "m2", "m3"]


def test_another_configuration_is_refused_in_one_line(finished_run):
    assert_mentions(refused(*arguments(finished_run, 2, "--config.dpo.beta=0.3")), "dpo.beta", 0.1, 0.3)


@pytest.mark.parametrize("field", ["judge.template", "prompts.template", "data.ift", "model.init"])
def test_a_refused_file_leaves_the_directory_free(tmp_path, field):
    wrong = [f"--config.{field}={tmp_path}/none"] + [f"--config.data.eft={tmp_path}/none"] * (field == "data.ift")
    code, err = ended(main, *arguments(tmp_path / "run", 2, *wrong))
    assert code == 2
    assert "Traceback" not in err
    assert_mentions(err.splitlines()[-1], tmp_path / "none")
    assert not (tmp_path / "run").exists()  # it was new: the start leaves no trace


# What a stage has on disk when it has started and is not complete. A kill right then must cost nothing but time.
MARKS = (
    ("seed", "tokenizer/tokenizer.model", None),
    ("pretrain", "m0/steps/*", "m0/manifest.json"),
    ("sft", "m1/steps/*", "m1/manifest.json"),
    ("sft done", "m1/manifest.json", "m1/eval.json"),
    ("answers", "m1/eval_answers.manifest.json", "m1/eval_judgments.manifest.json"),
    ("prompts", "m2/prompts.jsonl.partial", "m2/prompts.manifest.json"),
    ("responses", "m2/responses.jsonl.partial", "m2/responses.manifest.json"),
    ("judgments", "m2/judgments.jsonl.partial", "m2/judgments.manifest.json"),
    ("pairs", "m2/pairs.manifest.json", "m2/manifest.json"),
    ("dpo", "m2/steps/*", "m2/manifest.json"),
    ("evaluation", "m2/manifest.json", "summary.json"),
)


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bits(finished_run, tmp_path):
    workdir, caught = tmp_path / "run", []
    for stage, started, over in MARKS:
        process = subprocess.Popen(command(workdir, 2), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # A stage that starts and ends between two polls is missed; later ones need not be.
        missed = lambda over=over: over is not None and (workdir / over).exists()  # noqa: E731
        while process.poll() is None and not any(workdir.glob(started)) and not missed():
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        else:
            assert process.returncode == 0
        if over is None or not (workdir / over).exists():
            caught.append(stage)
    # A stage may end between its mark and the kill, but not most of them.
    assert len(caught) >= len(MARKS) - 3, f"only caught in the middle of {caught}"
    run(workdir, 2)
    assert contents(workdir) == contents(finished_run)


@pytest.mark.slow
def test_a_torn_line_is_regenerated(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for name in ("responses", "judgments"):
        path = workdir / f"m2/{name}.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        partial = encode_crc(map(json.loads, lines[:3]))
        (workdir / f"m2/{name}.jsonl.partial").write_bytes(partial[:-17])
        path.unlink()
        (workdir / f"m2/{name}.manifest.json").unlink()
    run(workdir, 2)
    assert contents(workdir) == contents(finished_run)
