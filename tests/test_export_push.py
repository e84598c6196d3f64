"""Exports for other people: the permissions of the files, and the upload to the hub."""

import os
import stat
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import assert_mentions, ended
from safetensors import SafetensorError

from selfreward_jax.cli import export
from selfreward_jax.llm import hf
from selfreward_jax.runs.loading import load_model

# --- permissions -----------------------------------------------------------------------------------------------


def modes(path):
    """The permissions of a file, or of a folder and all that is in it, by path."""
    return {p: stat.S_IMODE(p.stat().st_mode) for p in [path, *path.rglob("*")]}


def allowed(path, umask):
    return (0o777 if path.is_dir() else 0o666) & ~umask


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_exported_files_have_the_permissions_of_the_umask(finished_run, tmp_path, umask):
    before = os.umask(umask)
    try:
        for options in (["--out=A/m2"], ["--out=A/shards", "--shard_gb=0.0001"], ["--pairs=m2", "--out=A/pairs.jsonl"]):
            options = [o.replace("A/", f"{tmp_path}/new/") for o in options]
            assert ended(export, f"--workdir={finished_run}", *options) == (0, "")
    finally:
        os.umask(before)
    found = modes(tmp_path / "new")
    assert sum(path.suffix == ".safetensors" for path in found) == 3
    assert found == {path: allowed(path, umask) for path in found}


def test_a_working_directory_has_the_permissions_of_the_umask(finished_run):
    os.umask(umask := os.umask(0o077))  # there is no other way to read it
    found = modes(finished_run)
    assert len(found) > 50
    assert found == {path: allowed(path, umask) for path in found}


def test_a_full_disk_is_reported_on_one_line(finished_run, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(hf, "save_file", full)
    code, err = ended(export, f"--workdir={finished_run}", f"--out={tmp_path}/new")
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, "model.safetensors", "No space left on device")
    assert not (tmp_path / "new").exists()


# --- the hub ---------------------------------------------------------------------------------------------------


class HfApi:
    """Stands in for huggingface_hub's. It notes the calls, and fails where `fault` says so."""

    calls, fault = [], ""

    def called(self, name, options):
        if name == self.fault:
            raise OSError(f"{name} failed:\n403 Forbidden")
        self.calls.append((name, options))

    def create_repo(self, repo_id, **options):
        self.called("create_repo", {"repo_id": repo_id, **options})
        return f"hub/{repo_id}"

    def upload_folder(self, **options):
        files = {path.name for path in Path(options["folder_path"]).iterdir()}
        assert {"config.json", "tokenizer.json", "README.md", "model.safetensors"} <= files
        self.called("upload_folder", options)

    def upload_file(self, **options):
        assert Path(options["path_or_fileobj"]).stat().st_size > 0
        self.called("upload_file", options)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(HfApi, "calls", [])
    monkeypatch.setattr("huggingface_hub.HfApi", HfApi)
    return HfApi


def test_an_exported_model_is_uploaded_to_a_private_repository(finished_run, tmp_path, hub, capsys):
    out = tmp_path / "m2"
    assert ended(export, f"--workdir={finished_run}", f"--out={out}", "--push=me/m2") == (0, "")
    (first, created), (second, uploaded) = hub.calls
    assert (first, second) == ("create_repo", "upload_folder")
    assert created == {"repo_id": "me/m2", "repo_type": "model", "exist_ok": True, "private": True}
    assert uploaded | {"repo_id": "me/m2", "repo_type": "model", "folder_path": str(out)} == uploaded
    # What the repository held before is not loaded instead: weights in other files than these.
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json"):
        assert any(fnmatch(name, pattern) for pattern in uploaded["delete_patterns"]), name
    assert not any(fnmatch("run2/model.safetensors", pattern) for pattern in uploaded["delete_patterns"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("hub/me/m2")


def test_exported_pairs_are_uploaded_as_a_data_set(finished_run, tmp_path, hub):
    options = [f"--workdir={finished_run}", "--pairs=m2", f"--out={tmp_path}/pairs.jsonl"]
    assert ended(export, *options, "--push=hub:me/pairs", "--public") == (0, "")
    (first, created), (second, uploaded) = hub.calls
    assert (first, second) == ("create_repo", "upload_file")
    assert created == {"repo_id": "me/pairs", "repo_type": "dataset", "exist_ok": True, "private": False}
    file = {"path_or_fileobj": f"{tmp_path}/pairs.jsonl", "path_in_repo": "pairs.jsonl"}
    assert uploaded == {"repo_id": "me/pairs", "repo_type": "dataset", **file}


@pytest.mark.parametrize("fault", ["create_repo", "upload_folder", "no token"])
def test_a_failed_upload_leaves_the_export_and_names_the_remedy(finished_run, tmp_path, hub, monkeypatch, fault):
    monkeypatch.setattr(hub, "fault", fault)
    if fault == "no token":
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    out = tmp_path / "m2"
    code, err = ended(export, f"--workdir={finished_run}", f"--out={out}", "--push=me/m2")
    assert (code, err.count("\n")) == (2, 1), err
    assert_mentions(err, "me/m2", f"hf upload me/m2 {out} . --repo-type=model --private")
    assert_mentions(err, "HF_TOKEN") if fault == "no token" else assert_mentions(err, "403 Forbidden")
    assert "hf_secret" not in err
    assert [name for name, _ in hub.calls] == ["create_repo"] * (fault == "upload_folder")
    assert load_model(str(out)).name == "m2"


def test_nothing_is_uploaded_unasked(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("used the hub"))
    for number, options in enumerate((["--model=m1"], ["--pairs=m2"])):
        assert ended(export, f"--workdir={finished_run}", f"--out={tmp_path}/{number}", *options) == (0, "")
