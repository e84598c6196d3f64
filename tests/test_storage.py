"""The working directory: after a kill, no complete row is lost and no torn row is kept."""

import errno
import hashlib
import json
import os

import pytest
from conftest import assert_mentions
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax import storage
from selfreward_jax.storage import files, write_atomic, write_checksummed, write_json
from selfreward_jax.storage.artifacts import JsonlArtifact, decode_crc, encode_crc

ROWS = [{"id": "a/0", "text": "eins\nzwei"}, {"id": "a/1", "text": "drei\u2028vier"}, {"id": "a/2", "text": "\u00fc"}]


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


@pytest.fixture
def file(folder):
    return JsonlArtifact(folder / "m2" / "pairs.jsonl")


def names(file):
    return sorted(p.name for p in file.path.parent.iterdir())


@given(rows=st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text())))
def test_rows_survive_writing_and_reading(rows):
    assert decode_crc(encode_crc(rows)) == (rows, 0)


def test_a_file_cut_anywhere_holds_the_rows_before_the_cut():
    data = encode_crc(ROWS)
    for cut in range(len(data) + 1):
        assert decode_crc(data[:cut]) == (ROWS[: data[:cut].count(b"\n")], 0)


def test_a_row_with_a_flipped_bit_is_dropped():
    for bit in range(8 * len(encode_crc(ROWS))):
        data = bytearray(encode_crc(ROWS))
        data[bit // 8] ^= 1 << bit % 8
        rows, damaged = decode_crc(bytes(data))
        assert all(row in ROWS for row in rows)
        # A line break that is lost or new joins lines or cuts them; then the last one looks torn.
        assert len(rows) < len(ROWS)
        assert damaged or rows == ROWS[: len(rows)]


def test_appending_after_a_torn_line_loses_only_that_line(file):
    file.append(ROWS[:2])
    file.partial_path.write_bytes(file.partial_path.read_bytes()[:-4])
    assert file.load_partial() == ROWS[:1]
    file.append(ROWS[1:])
    assert file.load_partial() == ROWS
    assert decode_crc(file.partial_path.read_bytes()) == (ROWS, 0)


def test_damaged_lines_are_dropped_reported_and_copied(file, capsys):
    file.append(ROWS)
    data = file.partial_path.read_bytes()
    file.partial_path.write_bytes(data.replace(b"drei", b"dree"))
    assert file.load_partial() == [ROWS[0], ROWS[2]]
    assert_mentions(capsys.readouterr().err, "pairs.jsonl.partial", 1, 3, "pairs.jsonl.partial.damaged")
    assert names(file) == ["pairs.jsonl.partial", "pairs.jsonl.partial.damaged"]
    assert file.load_partial() == [ROWS[0], ROWS[2]]
    assert capsys.readouterr().err == ""


def test_there_are_no_partial_rows_before_the_first_append(file):
    assert file.load_partial() == []
    assert file.manifest is None
    file.append([])
    assert file.load_partial() == []


def test_rewrite_partial_replaces_all_rows(file):
    file.append(ROWS)
    file.rewrite_partial(ROWS[:1])
    assert file.load_partial() == ROWS[:1]
    file.append(ROWS[2:])
    assert file.load_partial() == [ROWS[0], ROWS[2]]


def test_a_finished_file_has_its_rows_in_the_given_order_and_a_manifest(file):
    file.append(ROWS)
    file.finish(ROWS[::-1], tokens=7)
    assert file.rows() == ROWS[::-1]
    assert file.manifest["rows"] == len(ROWS)
    assert file.manifest["sha256"] == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert file.manifest["tokens"] == 7
    assert names(file) == ["pairs.jsonl", "pairs.manifest.json"]  # no partial file is left


def test_an_empty_file_can_be_complete(file):
    file.finish([])
    assert file.rows() == []
    assert file.manifest["rows"] == 0


@pytest.mark.parametrize("killed_in", ["write_atomic", "write_checksummed"])
def test_a_finish_cut_short_is_redone(file, monkeypatch, killed_in):
    def killed(*args):
        raise KeyboardInterrupt

    file.append(ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(storage, killed_in, killed)  # before the rename, or between it and the manifest
        with pytest.raises(KeyboardInterrupt):
            file.finish(ROWS)
    assert file.path.exists() == (killed_in == "write_checksummed")
    assert file.manifest is None
    assert file.load_partial() == ROWS
    file.finish(ROWS)
    assert file.rows() == ROWS
    assert names(file) == ["pairs.jsonl", "pairs.manifest.json"]


def test_a_write_cut_short_leaves_the_old_bytes(folder, monkeypatch):
    path = folder / "config.json"
    write_atomic(path, b"old")

    def killed(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(path, b"new, and longer")
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in folder.iterdir()] == ["config.json"]


def test_write_atomic_creates_missing_folders(folder):
    write_atomic(folder / "a" / "b" / "c", b"x")
    assert (folder / "a" / "b" / "c").read_bytes() == b"x"


def test_json_files(folder):
    path = folder / "eval.json"
    assert storage.read_json(path) is None
    value = {"mean": 3.5, "name": "\u00fc", "none": None, "list": [1, 2]}
    write_json(path, value)
    assert storage.read_json(path) == json.loads(path.read_text()) == value


def test_a_checksummed_file_with_any_change_is_damaged(folder):
    path = folder / "m1" / "manifest.json"
    assert storage.read_checksummed(path) is None
    value = {"weights": "00ff", "steps": 12, "counts": {"pairs": 3}, "seconds": 0.1}
    write_checksummed(path, value)
    assert storage.read_checksummed(path) == value
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        with pytest.raises(storage.CorruptionError, match=r"manifest\.json\b") as caught:
            storage.read_checksummed(path)
        assert caught.value.paths == (path,)
    for other in (b"", b"{}", b"[]", b"null", data[:-9], b"\0" * len(data)):
        path.write_bytes(other)
        with pytest.raises(storage.CorruptionError):
            storage.read_checksummed(path)


def test_a_damaged_file_is_named(folder):
    (folder / "config.json").write_text('{"mean": 3')
    with pytest.raises(storage.StorageError, match=r"config\.json\b"):
        storage.read_json(folder / "config.json")


DAMAGE = {
    "deleted": lambda data: None,
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-5],
    "zeroed": lambda data: data[:9] + b"\0" * 8 + data[17:],
    "a row twice": lambda data: data + data.splitlines(keepends=True)[-1],
    "a bit": lambda data: data.replace(b"eins", b"einr"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_complete_file_is_quarantined_with_its_manifest(file, damage):
    file.finish(ROWS)
    changed = DAMAGE[damage](file.path.read_bytes())
    file.path.unlink() if changed is None else file.path.write_bytes(changed)
    with pytest.raises(storage.CorruptionError, match=r"pairs\.jsonl\b") as caught:
        file.rows()
    assert caught.value.paths == (file.path, file.manifest_path)
    moved = [storage.quarantine(path) for path in caught.value.paths]
    assert moved == ["" if changed is None else "pairs.jsonl.damaged", "pairs.manifest.json.damaged"]
    assert file.manifest is None
    file.finish(ROWS)
    assert file.rows() == ROWS
    assert storage.quarantine(file.manifest_path) == (
        "pairs.manifest.json.damaged-2"  # the file that was quarantined before is not lost
    )


def test_the_rows_of_a_missing_file_are_an_error(folder):
    with pytest.raises(storage.StorageError, match=r"pairs\.jsonl\b"):
        JsonlArtifact(folder / "pairs.jsonl").rows()


@pytest.mark.parametrize("write", [write_atomic, storage.append])
def test_a_failed_write_is_reported_with_path_reason_and_size(folder, monkeypatch, write):
    path = folder / "m2" / "pairs.jsonl"
    write(path, b"old")

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(storage.StorageError, match=r"pairs\.jsonl\b.*No space left.*\b1,000,000\b"):
            write(path, b"x" * 1_000_000)
    assert [p.name for p in path.parent.iterdir()] == ["pairs.jsonl"]
