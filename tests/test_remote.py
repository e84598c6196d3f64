"""A working directory in an object store: no appending, no renaming, every object whole or not there.

The store here is a stand-in in memory behind the same interface (fsspec) as gcsfs; checkpoints, which Orbax writes by
other means, are not covered.
"""

import io
import json

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from selfreward_jax import config, storage
from selfreward_jax.runs.run import Run
from selfreward_jax.storage.artifacts import JsonlArtifact
from selfreward_jax.train import checkpoints


class Bucket(MemoryFileSystem):
    """What an object store cannot do, this one refuses."""

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


def test_rows_are_kept_batch_by_batch_and_become_one_file(bucket):
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


def test_a_run_claims_its_place_and_keeps_a_log(bucket, monkeypatch):
    run = Run(config.get_config("micro"), bucket)
    run.log(step=1)
    assert not storage.exists(run.workdir / "events.jsonl")  # not an object for each line
    run.log(step=2)
    run.flush_usage()
    monkeypatch.setattr(Run, "LOG_EVERY", 0.0)
    run.log(step=3)
    lines = map(json.loads, (run.workdir / "events.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "step" in line] == [1, 2, 3]
    other = config.get_config("micro")
    other.seed = 7
    with pytest.raises(config.ConfigError, match=r"\bseed\b.*\b0\b.*\b7\b"):
        Run(other, bucket)
    run.rollback()
    Run(other, bucket)


def test_a_saved_step_counts_when_its_seal_is_there_which_comes_last(bucket):
    steps = epath.Path(bucket) / "m1" / "steps"
    assert checkpoints.latest_step(steps) is None
    for step in (5, 10):
        (steps / str(step) / "params").write_bytes(b"x")
    assert checkpoints.latest_step(steps) is None
    (steps / "5.json").write_bytes(b"")
    assert checkpoints.latest_step(steps) == 5  # a kill came while 10 was written
