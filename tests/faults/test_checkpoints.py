"""A checkpoint is read back as it was saved, or not at all."""

import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mentions, on_eight_devices
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax import storage
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import replicated
from selfreward_jax.train import checkpoints
from selfreward_jax.train.fingerprint import fingerprint
from selfreward_jax.train.trainer import TrainState

FLIPS = 320  # spread over all files of a checkpoint


def state(step=4):
    """A small state with a leaf of each kind that a training state has."""
    rng = np.random.default_rng(step)
    params = {"embed": rng.normal(size=(29, 16)), "layers": {"wq": rng.normal(size=(2, 16, 2, 8))}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    moments = jax.tree.map(lambda x: (x**2).astype(jnp.bfloat16), params)
    return TrainState(jnp.int32(step), params, {"count": jnp.int32(step), "mu": moments})


def restored(path, of):
    return checkpoints.restore(path, of, jax.tree.map(lambda _: replicated(make_mesh()), of))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def files(path):
    return sorted(p for p in Path(path).glob("**/*") if p.is_file())


# --- the fingerprint -----------------------------------------------------------------------------------------------


@given(
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint8"]),
    seed=st.integers(0, 1 << 16),
    place=st.integers(0, 1 << 16),
    bit=st.integers(0, 31),
)
def test_one_bit_makes_another_fingerprint(dtype, seed, place, bit):
    x = np.asarray(jnp.asarray(np.random.default_rng(seed).integers(0, 200, (3, 5, 7)), dtype))
    changed = x.copy().reshape(-1)
    bits = changed.view(f"u{x.dtype.itemsize}")
    bits[place % x.size] ^= 1 << bit % (8 * x.dtype.itemsize)
    assert fingerprint({"x": jnp.asarray(changed.reshape(x.shape))}) != fingerprint({"x": jnp.asarray(x)})


MANY_SHARDED_ARRAYS = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from selfreward_jax.train.fingerprint import fingerprint

sharding = NamedSharding(jax.make_mesh((2, 2, 2), ("a", "b", "c")), PartitionSpec("a", "b"))
arrays = [jax.device_put(np.full((8, 64, 64), i, np.float32), sharding) for i in range(200)]
print(*{fingerprint(arrays) for _ in range(10)})
"""


@pytest.mark.slow
def test_the_fingerprint_of_many_sharded_arrays_ends():
    # XLA's CPU client hangs, and ends the process, where many programs with collectives are in flight at once.
    assert on_eight_devices(MANY_SHARDED_ARRAYS).split() == [
        fingerprint([jnp.full((8, 64, 64), i, jnp.float32) for i in range(200)])
    ]


def test_the_fingerprint_knows_names_places_shapes_and_types():
    x = jnp.arange(12.0).reshape(3, 4)
    others = ({"b": x}, {"a": x[::-1]}, {"a": x.T.reshape(3, 4)}, {"a": x.reshape(4, 3)}, {"a": x.astype(int)}, {})
    found = {fingerprint(tree) for tree in ({"a": x}, *others)}
    assert len(found) == 1 + len(others)
    assert fingerprint({"a": x + 0}) == fingerprint({"a": x})
    assert fingerprint({"a": jnp.zeros(3)}) != fingerprint({"a": -jnp.zeros(3)})  # bits, not values
    assert fingerprint({"a": jnp.full(3, jnp.nan)}) == fingerprint({"a": jnp.full(3, jnp.nan)})


# --- what is on disk -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint; tests must leave it as it is."""
    path = epath.Path(tmp_path_factory.mktemp("saved")) / "checkpoint"
    return path, checkpoints.save(path, state())


def test_what_was_saved_comes_back(saved):
    path, mark = saved
    found = restored(path, state())
    assert_same(found, state())
    assert mark == fingerprint(found) == storage.read_checksummed(path.with_name("checkpoint.json"))["fingerprint"]


def test_every_flipped_bit_is_seen(saved):
    path, _ = saved
    manifest = path.with_name("checkpoint.json")
    found = [f for f in (*files(path), Path(manifest)) if f.stat().st_size]
    kinds = {f.name.rpartition(".")[2] if "." in f.name else f.parent.name for f in found}
    assert {"d", "ocdbt", "_METADATA"} & (kinds | {f.name for f in found})
    rng, like = np.random.default_rng(0), state()
    for n in range(FLIPS):
        file = found[n % len(found)]
        data = file.read_bytes()
        at = int(rng.integers(8 * len(data)))
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        file.write_bytes(bytes(changed))
        try:
            with pytest.raises(storage.CorruptionError):
                restored(path, like)
        finally:
            file.write_bytes(data)
    assert_same(restored(path, like), like)


DAMAGE = {
    "deleted": lambda f, data: f.unlink(),
    "empty": lambda f, data: f.write_bytes(b""),
    "truncated": lambda f, data: f.write_bytes(data[: len(data) // 2]),
    "longer": lambda f, data: f.write_bytes(data + b"\0"),
    "a block of zeros": lambda f, data: f.write_bytes(
        data[: len(data) // 4] + bytes(len(data) // 2) + data[-(len(data) // 4) :]
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_every_damaged_file_is_seen(saved, how):
    path, _ = saved
    for file in [f for f in (*files(path), Path(path.with_name("checkpoint.json"))) if f.stat().st_size]:
        data = file.read_bytes()
        DAMAGE[how](file, data)
        try:
            with pytest.raises(storage.CorruptionError, match="checkpoint"):
                restored(path, state())
        finally:
            file.write_bytes(data)
    assert_same(restored(path, state()), state())


def test_a_file_too_many_is_seen(saved):
    path, _ = saved
    (path / "stray").write_bytes(b"x")
    try:
        with pytest.raises(storage.CorruptionError, match="stray"):
            restored(path, state())
    finally:
        (path / "stray").unlink()


def test_arrays_that_are_not_those_that_were_saved_are_seen(tmp_path, monkeypatch):
    """Should a disk and its hashes agree on something else than what the devices held."""
    path = epath.Path(tmp_path) / "checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "fingerprint", lambda tree: fingerprint(state(5)))
        checkpoints.save(path, state(4))
    with pytest.raises(storage.CorruptionError, match=fingerprint(state(4))) as caught:
        restored(path, state())
    assert caught.value.paths == (path, path.with_name("checkpoint.json"))


# --- which step a restart resumes from -----------------------------------------------------------------------------


def latest(path):
    like = state()
    found = checkpoints.restore_latest(path, like, jax.tree.map(lambda _: replicated(make_mesh()), like))
    return None if found is None else int(found.step)


@pytest.fixture
def steps(tmp_path):
    path = epath.Path(tmp_path) / "steps"
    assert latest(path) is None
    for step in (2, 4, 6):
        checkpoints.save_step(path, step, state(step))
    return path


def test_the_last_two_steps_are_kept(steps):
    assert sorted(p.name for p in steps.iterdir()) == ["4", "4.json", "6", "6.json"]
    assert latest(steps) == 6


@pytest.mark.parametrize("what", ["arrays", "manifest"])
def test_a_damaged_step_is_quarantined_and_the_one_before_is_used(steps, what, capsys):
    file = steps / "6.json" if what == "manifest" else max(files(steps / "6"), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))
    assert latest(steps) == 4
    assert_mentions(capsys.readouterr().err, "6.damaged", "6.json.damaged")
    assert sorted(p.name for p in steps.iterdir()) == ["4", "4.json", "6.damaged", "6.json.damaged"]
    checkpoints.save_step(steps, 6, state(6))
    assert latest(steps) == 6


def test_if_every_step_is_damaged_training_starts_again(steps, capsys):
    for step in ("4", "6"):
        (steps / f"{step}.json").write_bytes(b"{}")
    assert latest(steps) is None
    assert_mentions(capsys.readouterr().err, "4.json.damaged", "6.json.damaged")


def test_a_step_that_a_kill_cut_short_does_not_count(steps):
    (steps / "6.json").unlink()  # which is written last
    assert latest(steps) == 4


def test_what_a_save_cut_short_left_behind_is_swept_away(steps):
    stray = steps / "8.orbax-checkpoint-tmp"
    (stray / "state").mkdir(parents=True)
    checkpoints.save_step(steps, 8, state(8))
    assert not stray.exists()
    assert latest(steps) == 8


def test_a_full_disk_is_one_line_and_loses_nothing(steps, monkeypatch):
    def full(*_, **__):
        raise ValueError("Error writing: RESOURCE_EXHAUSTED: write failed: No space left on device")

    monkeypatch.setattr(checkpoints.ocp, "save", full)
    with pytest.raises(storage.StorageError, match=r"steps/8\b.*No space left on device"):
        checkpoints.save_step(steps, 8, state(8))
    assert latest(steps) == 6


def test_a_save_outlasts_a_clock_that_is_set_at_every_look(tmp_path, monkeypatch):
    looks, now = itertools.count(1), time.time
    monkeypatch.setattr(time, "time", lambda: now() + 7200 * next(looks))
    path = epath.Path(tmp_path) / "4"
    checkpoints.save(path, state())
    monkeypatch.undo()
    assert next(looks) > 2
    assert_same(restored(path, state()), state())
