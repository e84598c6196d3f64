"""Several real processes on this machine: they write the rows of one process, and a lost one ends the others."""

import json
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, assert_mentions, command
from conftest import ended as ended_here
from environment import simulated
from test_loop import MARKS

from selfreward_jax.cli import export
from selfreward_jax.runs.loading import load_model

# These runs start from a trained model, and their learning rates move its weights by about a tenth. So a difference in
# the last bit of a sum stays one in the last bit of a weight. Random weights need higher rates, which amplify it a
# hundredfold; then one sampled token in some thousands differs.
LOW_RATES = """
    --config.optimizer.name=adamw --config.sft.lr=1e-3 --config.sft.lr_end=1e-4
    --config.dpo.lr=1e-4 --config.dpo.lr_end=1e-5 --config.dpo.replay_batch_size=4
""".split()
SAME_WEIGHTS = 2e-6  # float32: 4e-7 to 5e-7 was measured
MOVED = 1e-2  # root mean square of the change by training: 2.6e-2 was measured


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(argv, count, devices=1, last=()):
    """Starts `count` processes of one program, each with its own number of simulated devices; the last one with some
    more options."""
    several = [f"--coordinator_address=localhost:{free_port()}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [*argv, *several, f"--process_id={i}", *(last if i == count - 1 else ())],
            cwd=ROOT,
            env=simulated(devices),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def ended(processes, timeout):
    """Exit code and standard error of each, when all have ended."""
    try:
        return [(p.wait(timeout), p.stderr.read()) for p in processes]
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()


def artifact_bytes(workdir):
    """The bytes of every JSONL artifact and of every eval.json."""
    contents = {p.relative_to(workdir): p.read_bytes() for p in workdir.rglob("*.jsonl") if p.name != "events.jsonl"}
    return contents | {p.relative_to(workdir): p.read_bytes() for p in workdir.rglob("eval.json")}


@pytest.fixture(scope="module")
def loop_command(finished_run, tmp_path_factory):
    """A function from a working directory to the command of a run that starts from a trained model."""
    folder = tmp_path_factory.mktemp("base") / "m1"
    assert ended_here(export, f"--workdir={finished_run}", "--model=m1", f"--out={folder}") == (0, "")
    return lambda workdir: [*command(workdir, 2), *LOW_RATES, f"--config.model.init={folder}"]


@pytest.fixture(scope="module")
def single_run(loop_command, tmp_path_factory):
    """The working directory of one process with one device."""
    workdir = tmp_path_factory.mktemp("single_run") / "run"
    done = subprocess.run(loop_command(workdir), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def weights_of(workdir, model):
    return [np.asarray(w) for w in jax.tree.leaves(load_model(str(workdir), model).params)]


def assert_equal_runs(workdir, single_run):
    """Asserts equal artifacts with each row once, and weights that training changed, equal up to rounding."""
    actual, expected = artifact_bytes(workdir), artifact_bytes(single_run)
    assert actual.keys() == expected.keys()
    assert [name for name in expected if actual[name] != expected[name]] == []
    for name in actual:
        if name.suffix == ".jsonl":
            ids = [json.loads(line)["id"] for line in actual[name].splitlines()]
            assert len(set(ids)) == len(ids)
    assert not list(workdir.rglob("*.partial*"))
    before = weights_of(single_run, "m0")
    for model in ("m1", "m2"):
        ours, theirs = weights_of(workdir, model), weights_of(single_run, model)
        assert max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) < SAME_WEIGHTS
        assert np.sqrt(np.mean([np.mean((a - b) ** 2) for a, b in zip(theirs, before, strict=True)])) > MOVED


# --- communication: seconds ----------------------------------------------------------------------------------------

COMMUNICATION = """
import json, os, signal, sys, time
from pathlib import Path
import jax
import numpy as np
from etils import epath
from jax.sharding import PartitionSpec
address, count, index, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), epath.Path(sys.argv[4])
from selfreward_jax.parallel import arrays, mesh, preemption, processes, sharding
from selfreward_jax.storage.artifacts import JsonlArtifact

processes.initialize({"coordinator_address": address, "num_processes": count, "process_id": index}, 60)
assert (processes.process_count(), processes.process_index(), processes.is_primary()) == (count, index, index == 0)
assert processes.broadcast_from_primary(lambda: {"from": index}) == {"from": 0}
assert processes.all_gather_json({"from": index}) == [{"from": 0}, {"from": 1}]

m = mesh.make_mesh(fsdp=2)
x = np.arange(24.0).reshape(8, 3)
placed = arrays.put(x, sharding.batch_sharding(m, 2))
assert not placed.is_fully_addressable
np.testing.assert_array_equal(arrays.fetch(placed), x)

# Each row is written once, by one of the processes; the file is complete for all at the same time.
rows = [{"id": str(i)} for i in range(11)]
file = JsonlArtifact(folder / "some.jsonl")
assert file.manifest is None and file.load_partial() == []
file.append(rows[:5]), file.append(rows[5:7])
processes.barrier("both have written")
mine = Path(f"{file.partial_path}-{index}-of-{count}").read_text().splitlines()
assert [json.loads(line.split(" ", 1)[1])["id"] for line in mine] == [str(i) for i in range(7) if i % count == index]
processes.barrier("both have read")
again = JsonlArtifact(folder / "some.jsonl")
assert again.load_partial() == rows[:7]  # merged in the order of appending
again.append(rows[7:])
again.finish(rows, note="x")
assert again.rows() == rows and again.manifest["note"] == "x"
names = {p.name for p in folder.iterdir()}
assert names == {"some.jsonl", "some.manifest.json"}, names

# One gets a signal: both stop at the same place.
with preemption.handle_signals(100):
    polls = 0
    while not preemption.stop_requested():
        polls += 1
        if index == 1 and polls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert polls >= 3 and processes.all_gather_json(polls) == [polls, polls]
if index == 1:
    time.sleep(1)
    processes.abort_all(7, "a fault of its own")
processes.barrier("the other process, which has ended")
"""


def test_processes_communicate_share_rows_and_end_together(tmp_path):
    address = f"localhost:{free_port()}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", COMMUNICATION, address, "2", str(i), str(tmp_path)],
            cwd=ROOT,
            env=simulated(1),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (0, 1)
    ]
    (code, err), (other_code, _) = ended(both, 120)
    assert (code, other_code) == (7, 7), err
    assert re.fullmatch(r"selfreward_jax: .*\b1\b.*: a fault of its own", err.splitlines()[-1])


def test_missing_processes_are_reported(tmp_path):
    argv = [*command(tmp_path, 1), "--config.parallel.timeout_s=3"]
    several = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", "--process_id=1"]
    done = subprocess.run([*argv, *several], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 75
    assert_mentions(done.stderr.splitlines()[-1], "selfreward_jax", 1, 2, 3)
    assert not list(tmp_path.iterdir())


def test_an_environment_without_the_other_processes_is_refused(tmp_path):
    done = subprocess.run([*command(tmp_path, 1), "--distributed"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert_mentions(done.stderr.splitlines()[-1], "--coordinator_address", "--num_processes", "--process_id")


def test_invalid_input_ends_all_processes_with_its_line(tmp_path):
    argv = [*command(tmp_path / "run", 1), "--config.parallel.fsdp=3"]
    for code, err in ended(start(argv, 2), 120):
        assert code == 2
        assert_mentions(err.splitlines()[-1], "parallel.fsdp", 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "facts"),
    [
        ("--config.dpo.beta=0.3", ["dpo.beta", "0.1", "0.3"]),
        ("--config.seed=5", ["seed", "0", "5"]),
        ("--workdir=HERE/other", ["workdir"]),
    ],
)
def test_processes_with_different_settings_end_with_the_field(option, facts, tmp_path):
    option = option.replace("HERE", str(tmp_path))
    began = time.monotonic()
    for code, err in ended(start(command(tmp_path / "run", 1), 2, last=[option]), 120):
        assert code == 2
        assert_mentions(err.splitlines()[-1], *facts)
    assert time.monotonic() - began < 60
    assert list(tmp_path.iterdir()) == []


# --- full runs: minutes --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("count", "options"), [(2, ["fsdp=2"]), (4, ["fsdp=2", "tensor=2", "sampling_tensor=1"])])
def test_several_processes_write_the_rows_of_one(count, options, loop_command, single_run, tmp_path):
    argv = [*loop_command(tmp_path / "run"), *[f"--config.parallel.{o}" for o in options]]
    for code, err in ended(start(argv, count), 900):
        assert code == 0, err[-3000:]
    assert_equal_runs(tmp_path / "run", single_run)


@pytest.mark.slow
def test_eight_devices_give_the_rows_of_one(loop_command, single_run, tmp_path):
    options = [f"--config.parallel.{o}" for o in ("fsdp=2", "tensor=2")]
    argv = [*loop_command(tmp_path / "run"), *options]
    done = subprocess.run(argv, cwd=ROOT, env=simulated(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(tmp_path / "run", single_run)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_process_ends_the_others_and_a_restart_of_all_completes_the_run(
    killed, loop_command, single_run, tmp_path
):
    limit = 60
    options = ["--config.parallel.fsdp=2", f"--config.parallel.timeout_s={limit}", "--config.checkpoint_every=2"]
    argv = [*loop_command(tmp_path / "run"), *options]
    processes = start(argv, 2)
    steps = tmp_path / "run" / "m1" / "steps"
    while not (steps.exists() and any(steps.iterdir())):  # until M1 is in training
        assert all(p.poll() is None for p in processes)
        time.sleep(0.2)
    processes[killed].send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    (code, err) = ended(processes, 3 * limit)[1 - killed]
    assert time.monotonic() - killed_at < limit
    assert code == 75, err[-3000:]
    assert err.splitlines()[-1].startswith("selfreward_jax: ")
    assert not (tmp_path / "run" / "summary.json").exists()
    for code, err in ended(start(argv, 2), 900):
        assert code == 0, err[-3000:]
    assert_equal_runs(tmp_path / "run", single_run)


def num_starts(workdir):
    """How often a run started in the directory."""
    log = workdir / "events.jsonl"
    return log.read_text().count('"begins"') if log.exists() else 0


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_in_every_stage(loop_command, single_run, tmp_path):
    workdir, limit, interrupted = tmp_path / "run", 45, 0
    argv = [*loop_command(workdir), "--config.parallel.fsdp=2", "--config.checkpoint_every=2"]
    for i, (stage, started, over) in enumerate(MARKS):
        processes, starts = start(argv, 2), num_starts(workdir)
        missed = lambda over=over: over is not None and (workdir / over).exists()  # noqa: E731
        # A start that finds nothing left to do just ends.
        while num_starts(workdir) == starts or not (any(workdir.glob(started)) or missed()):
            assert all(p.poll() is None for p in processes), stage
            time.sleep(0.01)
        processes[i % 2].send_signal(signal.SIGTERM)
        signaled_at = time.monotonic()
        codes = set()
        for code, err in ended(processes, 2 * limit):
            codes.add(code)
            assert "Traceback" not in err, err
            assert code == 0 or err.splitlines()[-1].startswith("selfreward_jax: "), err[-3000:]
        assert time.monotonic() - signaled_at < limit, stage
        assert len(codes) == 1, (stage, codes)
        interrupted += codes == {75}
    assert interrupted >= len(MARKS) - 3
    for code, err in ended(start(argv, 2), 900):
        assert code == 0, err[-3000:]
    assert_equal_runs(workdir, single_run)
    steps = [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]
    steps = [(e["model"], e["stage"], e["step"]) for e in steps if "step" in e]
    assert len(steps) == len(set(steps))
