"""Several real processes on this machine: they end with the rows of one, and a lost one ends the others."""

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

# From a model that can judge, as the paper starts from Llama 2, and at rates that move its weights by a tenth and keep
# the last bit of a sum the last bit of a weight. From random weights, at the rates that they need, it grows a hundred
# times over, and then one drawn token of some thousands falls on the other side of its random number.
GENTLE = """
    --config.optimizer.name=adamw --config.sft.lr=1e-3 --config.sft.lr_end=1e-4
    --config.dpo.lr=1e-4 --config.dpo.lr_end=1e-5 --config.dpo.replay_batch_size=4
""".split()
SAME_WEIGHTS = 2e-6  # float32: 4e-7 to 5e-7 was seen
MOVED = 1e-2  # root mean square of what training does to them: 2.6e-2 was seen


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(argv, count, devices=1):
    """Starts `count` processes of one program, each with its own number of simulated devices."""
    several = [f"--coordinator_address=localhost:{free_port()}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [*argv, *several, f"--process_id={i}"],
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


def row_files(workdir):
    """The bytes of every row file, and of what the models were measured to be."""
    found = {p.relative_to(workdir): p.read_bytes() for p in workdir.rglob("*.jsonl") if p.name != "events.jsonl"}
    return found | {p.relative_to(workdir): p.read_bytes() for p in workdir.rglob("eval.json")}


@pytest.fixture(scope="module")
def gentle(finished_run, tmp_path_factory):
    """A function from a working directory to the command of the loop that goes on from a trained model."""
    folder = tmp_path_factory.mktemp("base") / "m1"
    assert ended_here(export, f"--workdir={finished_run}", "--model=m1", f"--to={folder}") == (0, "")
    return lambda workdir: [*command(workdir, 2), *GENTLE, f"--config.model.init={folder}"]


@pytest.fixture(scope="module")
def alone(gentle, tmp_path_factory):
    """The working directory of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    done = subprocess.run(gentle(workdir), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def weights_of(workdir, model):
    return [np.asarray(w) for w in jax.tree.leaves(load_model(str(workdir), model).params)]


def assert_equal_runs(workdir, alone):
    """The same bytes in every row file, each row once; the same weights but for rounding, which training has moved."""
    found, expected = row_files(workdir), row_files(alone)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    for name in found:
        if name.suffix == ".jsonl":
            ids = [json.loads(line)["id"] for line in found[name].splitlines()]
            assert len(set(ids)) == len(ids)
    assert not list(workdir.rglob("*.partial*"))
    before = weights_of(alone, "m0")
    for model in ("m1", "m2"):
        ours, theirs = weights_of(workdir, model), weights_of(alone, model)
        assert max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) < SAME_WEIGHTS
        assert np.sqrt(np.mean([np.mean((a - b) ** 2) for a, b in zip(theirs, before, strict=True)])) > MOVED


# --- what they agree on: seconds -----------------------------------------------------------------------------------

AGREEMENTS = """
import json, os, signal, sys, time
from pathlib import Path
import jax
import numpy as np
from etils import epath
from jax.sharding import PartitionSpec
address, count, index, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), epath.Path(sys.argv[4])
from selfreward_jax.storage.artifacts import RowFile
from selfreward_jax.parallel import arrays, mesh, processes, sharding, stopping

processes.start({"coordinator_address": address, "num_processes": count, "process_id": index}, 60)
assert (processes.count(), processes.index(), processes.first()) == (count, index, index == 0)
assert processes.agreed(lambda: {"from": index}) == {"from": 0}
assert processes.gathered({"from": index}) == [{"from": 0}, {"from": 1}]

m = mesh.make_mesh(fsdp=2)
x = np.arange(24.0).reshape(8, 3)
placed = arrays.put(x, sharding.by_row(m, 2))
assert not placed.is_fully_addressable
np.testing.assert_array_equal(arrays.fetch(placed), x)

# Rows: each once, whoever wrote them; the file is whole for all at the same time.
rows = [{"id": str(i)} for i in range(11)]
file = RowFile(folder / "some.jsonl")
assert file.manifest is None and file.begun() == []
file.append(rows[:5]), file.append(rows[5:7])
processes.wait("both have written")
mine = Path(f"{file.partial}-{index}-of-{count}").read_text().splitlines()
assert [json.loads(line.split(" ", 1)[1])["id"] for line in mine] == [str(i) for i in range(7) if i % count == index]
processes.wait("both have looked")
again = RowFile(folder / "some.jsonl")
assert again.begun() == rows[:7]  # gathered in the order in which they came
again.append(rows[7:])
again.finish(rows, note="x")
assert again.rows() == rows and again.manifest["note"] == "x"
names = {p.name for p in folder.iterdir()}
assert names == {"some.jsonl", "some.manifest.json"}, names

# One is asked to stop: both stop, at the same place.
with stopping.listening(100):
    asked = 0
    while not stopping.asked():
        asked += 1
        if index == 1 and asked == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert asked >= 3 and processes.gathered(asked) == [asked, asked]
if index == 1:
    time.sleep(1)
    processes.end(7, "has had enough")
processes.wait("what never comes")
"""


def test_processes_agree_share_rows_and_end_together(tmp_path):
    address = f"localhost:{free_port()}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", AGREEMENTS, address, "2", str(i), str(tmp_path)],
            cwd=ROOT,
            env=simulated(1),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (0, 1)
    ]
    (code, said), (other_code, _) = ended(both, 120)
    assert (code, other_code) == (7, 7), said
    assert re.fullmatch(r"selfreward_jax: .*\b1\b.*: has had enough", said.splitlines()[-1])


def test_hosts_that_do_not_come_are_said_to_be_missing(tmp_path):
    lonely = [*command(tmp_path, 1), "--config.parallel.timeout_s=3"]
    several = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", "--process_id=1"]
    done = subprocess.run([*lonely, *several], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 75
    assert_mentions(done.stderr.splitlines()[-1], "selfreward_jax", 1, 2, 3)
    assert not list(tmp_path.iterdir())


def test_an_environment_that_knows_no_others_is_refused(tmp_path):
    done = subprocess.run([*command(tmp_path, 1), "--distributed"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert_mentions(done.stderr.splitlines()[-1], "--coordinator_address", "--num_processes", "--process_id")


def test_bad_input_ends_all_with_its_own_line(tmp_path):
    argv = [*command(tmp_path / "run", 1), "--config.parallel.fsdp=3"]
    for code, said in ended(start(argv, 2), 120):
        assert code == 2
        assert_mentions(said.splitlines()[-1], "parallel.fsdp", 3)


# --- the whole loop: minutes ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("count", "options"), [(2, ["fsdp=2"]), (4, ["fsdp=2", "tensor=2", "sample_tensor=1"])])
def test_several_processes_end_with_the_rows_of_one(count, options, gentle, alone, tmp_path):
    argv = [*gentle(tmp_path / "run"), *[f"--config.parallel.{o}" for o in options]]
    for code, said in ended(start(argv, count), 900):
        assert code == 0, said[-3000:]
    assert_equal_runs(tmp_path / "run", alone)


@pytest.mark.slow
def test_eight_devices_end_with_the_rows_of_one(gentle, alone, tmp_path):
    options = [f"--config.parallel.{o}" for o in ("fsdp=2", "tensor=2")]
    argv = [*gentle(tmp_path / "run"), *options]
    done = subprocess.run(argv, cwd=ROOT, env=simulated(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_process_ends_the_others_and_a_restart_of_all_completes_the_run(killed, gentle, alone, tmp_path):
    limit = 60
    options = ["--config.parallel.fsdp=2", f"--config.parallel.timeout_s={limit}", "--config.checkpoint_every=2"]
    argv = [*gentle(tmp_path / "run"), *options]
    processes = start(argv, 2)
    begun = tmp_path / "run" / "m1" / "steps"
    while not (begun.exists() and any(begun.iterdir())):  # in the midst of training M1
        assert all(p.poll() is None for p in processes)
        time.sleep(0.2)
    processes[killed].send_signal(signal.SIGKILL)
    at = time.monotonic()
    (code, said) = ended(processes, 3 * limit)[1 - killed]
    assert time.monotonic() - at < limit
    assert code == 75, said[-3000:]
    assert said.splitlines()[-1].startswith("selfreward_jax: ")
    assert not (tmp_path / "run" / "summary.json").exists()
    for code, said in ended(start(argv, 2), 900):
        assert code == 0, said[-3000:]
    assert_equal_runs(tmp_path / "run", alone)


def begins(workdir):
    """How often a run began in the directory."""
    log = workdir / "events.jsonl"
    return log.read_text().count('"begins"') if log.exists() else 0


@pytest.mark.slow
def test_one_process_that_is_asked_to_stop_stops_both_in_every_stage(gentle, alone, tmp_path):
    workdir, limit, in_the_midst = tmp_path / "run", 45, 0
    argv = [*gentle(workdir), "--config.parallel.fsdp=2", "--config.checkpoint_every=2"]
    for i, (stage, begun, over) in enumerate(MARKS):
        processes, starts = start(argv, 2), begins(workdir)
        missed = lambda over=over: over is not None and (workdir / over).exists()  # noqa: E731
        # Programs that only load have nothing at hand, and just end.
        while begins(workdir) == starts or not (any(workdir.glob(begun)) or missed()):
            assert all(p.poll() is None for p in processes), stage
            time.sleep(0.01)
        processes[i % 2].send_signal(signal.SIGTERM)
        at = time.monotonic()
        codes = set()
        for code, said in ended(processes, 2 * limit):
            codes.add(code)
            assert "Traceback" not in said, said
            assert code == 0 or said.splitlines()[-1].startswith("selfreward_jax: "), said[-3000:]
        assert time.monotonic() - at < limit, stage
        assert len(codes) == 1, (stage, codes)
        in_the_midst += codes == {75}
    assert in_the_midst >= len(MARKS) - 3
    for code, said in ended(start(argv, 2), 900):
        assert code == 0, said[-3000:]
    assert_equal_runs(workdir, alone)
    steps = [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]
    steps = [(e["model"], e["stage"], e["step"]) for e in steps if "step" in e]
    assert len(steps) == len(set(steps))
