"""The working directory: whatever a kill leaves behind, nothing whole is lost and nothing torn is kept."""

import hashlib
import json

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax import storage
from selfreward_jax.storage import RowFile, encode_rows, read_rows, write_atomic, write_json

ROWS = [{"id": "a/0", "text": "eins\nzwei"}, {"id": "a/1", "text": "drei\u2028vier"}, {"id": "a/2", "text": "\u00fc"}]


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


@pytest.fixture
def file(folder):
    return RowFile(folder / "m2" / "pairs.jsonl")


def names(file):
    return sorted(p.name for p in file.path.parent.iterdir())


@settings(deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text())))
def test_rows_survive_writing_and_reading(rows, tmp_path_factory):
    path = epath.Path(tmp_path_factory.getbasetemp() / "rows.jsonl")
    path.write_bytes(encode_rows(rows))
    assert read_rows(path) == rows


def test_a_file_cut_anywhere_holds_the_rows_before_the_cut(folder):
    data, path = encode_rows(ROWS), folder / "rows.jsonl"
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        assert read_rows(path) == ROWS[: data[:cut].count(b"\n")]


def test_appending_after_a_torn_line_loses_only_that_line(file):
    file.append(ROWS[:2])
    file.partial.write_bytes(file.partial.read_bytes()[:-4])
    assert file.begun() == ROWS[:1]
    file.append(ROWS[1:])
    assert file.begun() == ROWS
    assert read_rows(file.partial) == ROWS


def test_nothing_is_begun_before_the_first_row(file):
    assert file.begun() == []
    assert file.manifest is None
    file.append([])
    assert file.begun() == []


def test_restart_from_cuts_to_the_rows_given(file):
    file.append(ROWS)
    file.restart_from(ROWS[:1])
    assert file.begun() == ROWS[:1]
    file.append(ROWS[2:])
    assert file.begun() == [ROWS[0], ROWS[2]]


def test_a_finished_file_has_its_rows_in_the_given_order_and_says_so(file):
    file.append(ROWS)
    file.finish(ROWS[::-1], tokens=7)
    assert file.rows() == ROWS[::-1]
    assert file.manifest["rows"] == len(ROWS)
    assert file.manifest["sha256"] == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert file.manifest["tokens"] == 7
    assert names(file) == ["pairs.jsonl", "pairs.manifest.json"]  # nothing in the making is left


def test_an_empty_file_can_be_whole(file):
    file.finish([])
    assert file.rows() == []
    assert file.manifest["rows"] == 0


@pytest.mark.parametrize("killed_in", ["write_atomic", "write_json"])
def test_a_finish_cut_short_is_redone(file, monkeypatch, killed_in):
    def killed(*args):
        raise KeyboardInterrupt

    file.append(ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(storage, killed_in, killed)  # before the rename, or between it and the manifest
        with pytest.raises(KeyboardInterrupt):
            file.finish(ROWS)
    assert file.path.exists() == (killed_in == "write_json")
    assert file.manifest is None
    assert file.begun() == ROWS
    file.finish(ROWS)
    assert file.rows() == ROWS
    assert names(file) == ["pairs.jsonl", "pairs.manifest.json"]


def test_a_write_cut_short_leaves_the_old_bytes(folder, monkeypatch):
    path = folder / "config.json"
    write_atomic(path, b"old")

    def killed(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(path, b"new, and longer")
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in folder.iterdir()] == ["config.json"]


def test_write_atomic_makes_the_folders_it_needs(folder):
    write_atomic(folder / "a" / "b" / "c", b"x")
    assert (folder / "a" / "b" / "c").read_bytes() == b"x"


def test_json_files(folder):
    path = folder / "eval.json"
    assert storage.read_json(path) is None
    value = {"mean": 3.5, "name": "\u00fc", "none": None, "list": [1, 2]}
    write_json(path, value)
    assert storage.read_json(path) == json.loads(path.read_text()) == value


def test_a_damaged_file_is_named(folder):
    (folder / "eval.json").write_text('{"mean": 3')
    with pytest.raises(storage.StorageError, match=r"eval.json is damaged"):
        storage.read_json(folder / "eval.json")
    file = storage.RowFile(folder / "pairs.jsonl")
    file.finish(ROWS)
    file.path.unlink()
    with pytest.raises(storage.StorageError, match=r"pairs.jsonl is not the file that its manifest describes"):
        file.rows()


def test_rows_of_a_file_that_is_not_there_are_not_no_rows(folder):
    with pytest.raises(storage.StorageError, match=r"pairs.jsonl"):
        storage.RowFile(folder / "pairs.jsonl").rows()
