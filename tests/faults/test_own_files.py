"""A user's own files in a working directory, and beside an output, are never deleted, renamed or overwritten."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from conftest import arguments, assert_mentions, ended, micro, refused, run
from etils import epath

from selfreward_jax import loop, main, storage
from selfreward_jax.cli import export, generate
from selfreward_jax.config import ConfigError
from selfreward_jax.data.readers import DataError
from selfreward_jax.report.export import INCOMPLETE, write_hf_folder
from selfreward_jax.runs.loading import load_model
from selfreward_jax.runs.run import make_run
from selfreward_jax.storage import lock
from selfreward_jax.storage.artifacts import JsonlArtifact, encode_crc
from selfreward_jax.train import checkpoints

OWN = {
    "notes.txt": "mine",
    "notes.txt.damaged": "mine",
    "notes.txt.tmp": "mine",
    "notes.txt.partial": "mine",
    ".git/HEAD": "ref: refs/heads/main",
    ".git/objects/pairs.jsonl": "mine",
    "data/pairs.jsonl": '{"id": "1"}\n',
    "data/pairs.manifest.json": '{"rows": 1}',
    "data/manifest.json": "{}",
    "data/events.jsonl.partial": "mine",
    "m1-notes/judgments.manifest.json": "not ours",
    "m1/notes.txt": "mine",
    "m1/x.orbax-checkpoint-tmp": "mine",
    "m2/pairs.jsonl.partial.mine": "mine",
    "seeds/documents.manifest.json": "mine",
    "tensorboard.tmp": "mine",
}


def put_own(workdir):
    for name, text in OWN.items():
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text(text)


def own(workdir):
    return {name: (workdir / name).read_text() for name in OWN if (workdir / name).exists()}


def test_a_run_leaves_other_files_alone(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    put_own(workdir)
    for name in ("eval.json", "eval_judgments.manifest.json"):
        (workdir / "m2" / name).unlink()
    (workdir / "m2" / "pairs.jsonl").write_text("damaged")  # so that a file of the run is quarantined
    private = workdir / "private"
    private.mkdir(mode=0)
    try:
        run(workdir, 2)
    finally:
        private.chmod(stat.S_IRWXU)
    assert own(workdir) == OWN
    assert (workdir / "m2" / "pairs.jsonl.damaged").read_text() == "damaged"
    # They are no artifacts either, which other settings would have made in another way.
    files = make_run(micro(2), str(workdir)).files
    assert not {folder for folder, _ in files.complete_artifacts()} - {"seed", "m1", "m2"}
    assert files.first_match(("data/*", ".git/*", "private*/*", "m1-notes/*")) is None


@pytest.mark.slow
def test_a_run_from_nothing_among_other_files(finished_run, tmp_path):
    put_own(tmp_path)
    run(tmp_path, 2)
    assert own(tmp_path) == OWN
    for name in ("m2/pairs.jsonl", "m2/judgments.jsonl", "seed/ift.jsonl"):
        assert (tmp_path / name).read_bytes() == (finished_run / name).read_bytes()


@pytest.mark.parametrize("name", ["seed", "tokenizer", pytest.param("m0", marks=pytest.mark.slow)])
def test_a_file_where_a_folder_of_the_run_should_be_is_left_alone(name, tmp_path):
    (tmp_path / name).write_text("mine")
    code, err = ended(main, *arguments(tmp_path, 1))
    assert code == 2
    assert err.splitlines()[-1].startswith("selfreward_jax: ")
    assert "Traceback" not in err
    assert_mentions(err, tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("text", ["my notes\n", "process", "x" * 1000])
def test_a_file_named_lock_is_not_overwritten(text, tmp_path):
    path = tmp_path / "lock"
    path.write_text(text)
    if text == "process":  # the start of our own line, which a kill cut off
        with lock.workdir_lock(epath.Path(tmp_path)):
            pass
        return
    assert_mentions(refused(*arguments(tmp_path, 1)), path)
    assert path.read_text() == text
    assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.parametrize("before", [{}, {"log.txt": "my log\n"}, {"log.txt": "my log\n", "events.jsonl": "mine\n"}])
def test_a_start_that_is_refused_leaves_all_as_it_was(before, tmp_path):
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    cfg = micro(1)
    cfg.data.update(ift=str(tmp_path / "none.jsonl"), eft=str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError):
        loop.run(cfg, str(tmp_path))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


def test_copies_of_damaged_files_are_kept(tmp_path):
    artifact = JsonlArtifact(epath.Path(tmp_path / "pairs.jsonl"))
    copy = tmp_path / "pairs.jsonl.partial.damaged"
    copy.write_text("mine")
    for number in (2, 3):
        artifact.partial_path.write_bytes(encode_crc([{"id": "1"}]) + b"damaged\n")
        assert artifact.load_partial() == [{"id": "1"}]
        assert (tmp_path / f"pairs.jsonl.partial.damaged-{number}").read_bytes().endswith(b"damaged\n")
    assert copy.read_text() == "mine"
    (tmp_path / "x").write_text("1")
    os.symlink("nowhere", tmp_path / "x.damaged")
    assert storage.quarantine(epath.Path(tmp_path / "x")) == "x.damaged-2"


@pytest.mark.parametrize(
    "name", ["5.orbax-notes", "5.json.tmp", "50.orbax-checkpoint-tmp", "my 5.orbax-checkpoint-tmp"]
)
def test_only_temporary_folders_of_that_checkpoint_are_removed(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    checkpoints.remove_stale_tmp(epath.Path(tmp_path / "5"))
    assert os.listdir(tmp_path) == [name]


# --- beside an output ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hf.partial/notes.txt", "hf.partial", "hf.partial/config.json"])
def test_an_export_removes_nothing_that_it_did_not_write(name, finished_run, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    code, err = ended(export, f"--workdir={finished_run}", f"--out={tmp_path}/hf")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, tmp_path / "hf.partial")
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "hf").exists()


def test_an_incomplete_export_is_replaced(finished_run, tmp_path):
    (tmp_path / "hf.partial").mkdir()
    (tmp_path / "hf.partial" / INCOMPLETE).touch()
    (tmp_path / "hf.partial" / "old").touch()
    write_hf_folder(load_model(str(finished_run), "m2"), epath.Path(tmp_path / "hf"), "float32", 5e9)
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]
    assert not {"old", INCOMPLETE} & set(os.listdir(tmp_path / "hf"))


BESIDE = {
    "answers.jsonl.partial": "mine\n",
    "answers.manifest.json": json.dumps({"rows": 1}),
    "answers.jsonl.partial as a torn line": "mine",
    "answers.jsonl.partial/": "",
}


@pytest.mark.parametrize("name", BESIDE)
def test_generate_overwrites_nothing_beside_its_output(name, finished_run, tmp_path):
    path = Path(tmp_path / name.partition(" ")[0])
    path.mkdir() if name.endswith("/") else path.write_text(BESIDE[name])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Name three fish."}\n')
    code, err = ended(generate, f"--workdir={finished_run}", f"--prompts={prompts}", f"--out={tmp_path}/answers.jsonl")
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, path)
    assert path.is_dir() or path.read_text() == BESIDE[name]
    assert len(os.listdir(tmp_path)) == 2


def test_generate_replaces_what_a_killed_one_left(tmp_path):
    out = JsonlArtifact(epath.Path(tmp_path / "answers.jsonl"))
    generate._check_beside(out)
    out.append([{"id": "1"}])
    generate._check_beside(out)
    out.finish([{"id": "1"}])
    generate._check_beside(out)
    out.manifest_path.write_text("{}")
    with pytest.raises(ConfigError):
        generate._check_beside(out)
