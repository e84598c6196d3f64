"""What stands where a file should be: only regular files are read, nothing waits, and writing follows no link."""

import errno
import json
import os
import shutil
import socket
import threading

import hf_folders
import pytest
from conftest import assert_mentions
from etils import epath

from selfreward_jax import foreign, loop, storage
from selfreward_jax.config import ConfigError, InputError, get_config
from selfreward_jax.data.readers import DataError, read_records
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.hf_tokenizer import read_chat
from selfreward_jax.method import templates
from selfreward_jax.runs.log import read_events
from selfreward_jax.runs.run import stored_settings
from selfreward_jax.storage.artifacts import JsonlArtifact


def put_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


KINDS = {
    "pipe": os.mkfifo,
    "link to a pipe": lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")),
    "folder": lambda path: path.mkdir(),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path),
    "socket": put_socket,
}


@pytest.fixture(params=KINDS)
def put(request, tmp_path, monkeypatch):
    """A function that puts something that is no regular file at a path."""
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short

    def make(path):
        path.unlink(missing_ok=True)
        KINDS[request.param](path.relative_to(tmp_path))

    return make


def within(seconds, function):
    """The error of a call, which must end within that time."""
    errors = []

    def call():
        try:
            function()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits"
    return errors[0] if errors else None


def test_only_a_regular_file_is_read(put, tmp_path):
    put(tmp_path / "x")
    assert isinstance(within(5, lambda: foreign.read_bytes(epath.Path(tmp_path / "x"))), OSError)


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = epath.Path(tmp_path / "x")
    path.write_bytes(b"12345")
    assert foreign.read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match=r"\b4\b") as caught:
        foreign.read_bytes(path, 4)
    assert caught.value.errno == errno.EFBIG
    link = epath.Path(tmp_path / "link")
    os.symlink(path, link)
    assert foreign.read_text(link) == "12345"


def test_a_template_is_a_regular_file(put, tmp_path):
    put(tmp_path / "t.txt")
    error = within(5, lambda: templates.load(str(tmp_path / "t.txt"), {"prompt"}))
    assert isinstance(error, templates.TemplateError)
    assert_mentions(str(error), tmp_path / "t.txt")


@pytest.mark.parametrize("name", ["seeds.jsonl", "seeds.parquet", "seeds.jsonl.gz"])
def test_seeds_and_prompts_are_regular_files(name, put, tmp_path):
    put(tmp_path / name)
    error = within(5, lambda: list(read_records(str(tmp_path / name))))
    assert isinstance(error, DataError), error
    assert_mentions(str(error), tmp_path / name)


def test_a_log_with_lines_of_others_is_read(tmp_path):
    log = epath.Path(tmp_path / "events.jsonl")
    log.write_bytes(b'{"begins": true}\n\xff\n[[\n' + b"[" * 100_000 + b'\n3\n{"step": 1}\n{"st')
    assert list(read_events(log)) == [{"begins": True}, {"step": 1}]


FOLDER_FILES = {"config.json": read_config, "tokenizer.json": read_chat, "tokenizer_config.json": read_chat}


@pytest.mark.parametrize("name", FOLDER_FILES)
def test_the_files_of_a_model_folder_are_regular(name, put, finished_run, tmp_path):
    hf_folders.write(tmp_path, "llama2")
    shutil.copy(finished_run / "tokenizer" / "tokenizer.model", tmp_path)
    put(tmp_path / name)
    if not (tmp_path / name).exists():  # a link to itself is as good as no file
        return
    error = within(5, lambda: FOLDER_FILES[name](epath.Path(tmp_path)))
    assert isinstance(error, InputError), error
    assert_mentions(str(error), name)


def test_config_json_of_a_run_is_a_regular_file(put, tmp_path):
    put(tmp_path / "config.json")
    workdir = epath.Path(tmp_path)
    for function in (lambda: stored_settings(workdir), lambda: loop.run(get_config("micro"), str(workdir))):
        if (tmp_path / "config.json").exists():
            error = within(20, function)
            assert isinstance(error, ConfigError), error
            assert_mentions(str(error), tmp_path / "config.json")


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.manifest.json", "pairs.jsonl.partial"])
def test_what_is_no_file_of_ours_is_damaged(name, put, tmp_path):
    artifact = JsonlArtifact(epath.Path(tmp_path / "pairs.jsonl"))
    artifact.finish([{"id": "1"}])
    put(tmp_path / name)
    if not (tmp_path / name).exists():
        return

    def read():
        assert artifact.manifest is not None
        artifact.rows()
        if artifact.partial_path.exists():
            artifact.load_partial()

    error = within(5, read)
    assert isinstance(error, storage.CorruptionError), error
    assert epath.Path(tmp_path / name) in error.paths


LINKED = {
    "a whole file": lambda path: storage.write_atomic(path.with_name("x"), b"ours"),
    "appended rows": lambda path: storage.append(path.with_name("x.tmp"), b"ours"),
}


@pytest.mark.parametrize("write", LINKED)
def test_writing_follows_no_link(write, tmp_path):
    (tmp_path / "other").write_bytes(b"theirs")
    (tmp_path / "x.tmp").symlink_to(tmp_path / "other")
    try:
        LINKED[write](epath.Path(tmp_path / "x.tmp"))
    except storage.StorageError as error:
        assert_mentions(str(error), tmp_path / "x.tmp")
    else:
        assert (tmp_path / "x").read_bytes() == b"ours"
    assert (tmp_path / "other").read_bytes() == b"theirs"


@pytest.mark.parametrize("name", ["log.txt", "events.jsonl", "config.json.tmp", "summary.json.tmp", "report.html.tmp"])
def test_a_run_writes_through_no_link(name, finished_run, tmp_path):
    (tmp_path / "other").write_bytes(b"theirs")
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "other")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    try:
        loop.run(stored_settings(epath.Path(tmp_path / "run")), str(tmp_path / "run"))
    except storage.StorageError as error:
        assert_mentions(str(error), tmp_path / "run" / name)
    assert (tmp_path / "other").read_bytes() == b"theirs"
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == settings
