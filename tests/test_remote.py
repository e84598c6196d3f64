"""A working directory in an object store: no appending, no renaming, every object complete or absent.

The store is a fake in memory with the same interface (fsspec) as gcsfs. Checkpoints are not covered: Orbax writes them
by other means.
"""

import io
import json

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from selfreward_jax import config, storage
from selfreward_jax.evaluate import endpoint
from selfreward_jax.runs.log import EventLog
from selfreward_jax.runs.run import claim, make_run, rollback
from selfreward_jax.stages.table import TABLE
from selfreward_jax.storage.artifacts import JsonlArtifact
from selfreward_jax.telemetry import terminal
from selfreward_jax.train import checkpoints


class Bucket(MemoryFileSystem):
    """Refuses what an object store cannot do."""

    protocol = ("gcs", "gs")

    def _open(self, path, mode="rb", **options):
        if "a" in mode or "+" in mode:
            raise io.UnsupportedOperation(f"mode {mode}")
        return super()._open(path, mode, **options)

    def mv(self, *paths, **options):
        raise io.UnsupportedOperation("move")


@pytest.fixture
def bucket(monkeypatch):
    store = Bucket(skip_instance_cache=True)
    store.store.clear()
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: store)
    return "gs://bucket/run"


ROWS = [{"id": str(i), "text": "ü"} for i in range(5)]


def test_rows_are_stored_batch_by_batch_and_become_one_file(bucket):
    path = epath.Path(bucket) / "m2" / "some.jsonl"
    file = JsonlArtifact(path)
    assert file.manifest is None
    assert file.load_partial() == []
    file.append(ROWS[:2])
    file.append(ROWS[2:3])
    again = JsonlArtifact(path)  # after a kill
    assert again.load_partial() == ROWS[:3]
    again.append(ROWS[3:])
    assert JsonlArtifact(path).load_partial() == ROWS
    again.finish(ROWS, tokens=7)
    assert JsonlArtifact(path).rows() == ROWS
    assert again.manifest["tokens"] == 7
    assert sorted(p.name for p in path.parent.iterdir()) == ["some.jsonl", "some.manifest.json"]


def test_a_run_claims_its_directory_and_writes_a_log(bucket, monkeypatch):
    run = make_run(config.get_config("micro"), bucket)
    with claim(run, TABLE.dependents):
        run.log.event(step=1)
        assert not storage.exists(run.workdir / "events.jsonl")  # not an object for each line
        run.log.event(step=2)
        run.log.flush()
        monkeypatch.setattr(EventLog, "UPLOAD_EVERY", 0.0)
        run.log.event(step=3)
    lines = map(json.loads, (run.workdir / "events.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "step" in line] == [1, 2, 3]
    other = config.get_config("micro")
    other.seed = 7
    refused = pytest.raises(config.ConfigError, match=r"\bseed\b.*\b0\b.*\b7\b")
    with refused, claim(make_run(other, bucket), TABLE.dependents):
        pass
    rollback(run)
    assert not storage.exists(run.workdir / "events.jsonl")
    with claim(make_run(other, bucket), TABLE.dependents):
        assert storage.read_json(run.workdir / "config.json")["seed"] == 7


def test_printed_lines_are_kept_in_one_object(bucket, monkeypatch):
    for start in ("first", "second"):
        with terminal.log_to(epath.Path(bucket)):
            terminal.log_line(f"{start} start")
            kept = epath.Path(bucket) / "log.txt"
            assert not kept.exists() or f"{start} start" not in kept.read_text()  # not an object for each line
            monkeypatch.setattr(terminal._LogFile, "UPLOAD_EVERY", 0.0)
            terminal.show("shown")
            assert f"{start} start" in (epath.Path(bucket) / "log.txt").read_text()
            monkeypatch.setattr(terminal._LogFile, "UPLOAD_EVERY", 1000.0)
            terminal.keep("end")
    lines = (epath.Path(bucket) / "log.txt").read_text().splitlines()
    assert [line[20:] for line in lines] == ["first start", "shown", "end", "second start", "shown", "end"]


@pytest.mark.parametrize("before", [None, "an earlier start\n"])
def test_a_log_that_is_discarded_is_as_it_was_before(bucket, before):
    log = epath.Path(bucket) / "log.txt"
    if before is not None:
        log.write_text(before)
    with terminal.log_to(epath.Path(bucket)):
        terminal.log_line("shown")
        terminal.discard_log()
        terminal.log_line("only shown")
    assert (log.read_text() if log.exists() else None) == before


def test_a_saved_step_counts_only_with_its_manifest_which_is_written_last(bucket):
    steps = epath.Path(bucket) / "m1" / "steps"
    assert checkpoints.latest_step(steps) is None
    for step in (5, 10):
        (steps / str(step) / "params").write_bytes(b"x")
    assert checkpoints.latest_step(steps) is None
    (steps / "5.json").write_bytes(b"")
    assert checkpoints.latest_step(steps) == 5  # a kill interrupted the writing of 10


def test_replies_of_an_endpoint_are_objects_of_their_own(bucket):
    cache = epath.Path(bucket) / "evaluation" / "endpoint.jsonl"
    assert endpoint._load_cache(cache) == []
    replies = [{"id": name, "text": f"re: {name}", "finish": "stop"} for name in "ab"]
    for reply in replies:
        endpoint._append(cache, reply)
    assert sorted(endpoint._load_cache(cache), key=lambda row: row["id"]) == replies
