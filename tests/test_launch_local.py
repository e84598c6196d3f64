"""The script that starts the processes of a run on this machine, with a fake python."""

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import launch_stand_ins
import pytest
from launch_stand_ins import MAIN, ODD, wait_for

world = launch_stand_ins.world  # a fixture


def running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"  # a zombie has ended


# Each start of process I takes the next line of codes.I: an exit code, -SIGNAL, or how it waits for a signal.
PYTHON = """
for word in "$@"; do [[ $word != --process_id=* ]] || id=${word#*=}; done
echo "hello from $id"
echo "trouble in $id" >&2
echo "$XLA_FLAGS|$JAX_PLATFORMS" >"$STATE/env.$id"
code=$(next "$STATE/codes.$id")
echo $$ >"$STATE/pid.$id"
case $code in
  wait) exec sleep 60 ;;
  last)
    trap 'sleep 0.2; echo "last words from $id"; exit 143' TERM
    touch "$STATE/ready.$id"
    while sleep 0.02; do :; done ;;
  -*) kill "$code" $$ ;;
  *)
    printf 'bye from %s' "$id"
    exit "$code" ;;
esac
"""


@pytest.fixture
def local(world):
    def start(codes, *options, **env):
        world.stub("python", PYTHON)
        for i, each in enumerate(codes):
            world.lines(f"codes.{i}", *each)
        world.log.write_text("")
        return world.start("local.sh", f"--processes={len(codes)}", *options, "--", *MAIN, *ODD, **env)

    def run(*args, **env):
        process = start(*args, **env)
        process.out, process.err = process.communicate(timeout=60)
        return process

    run.start = start
    return run


def test_local_starts_each_process_with_its_flags_and_relays_its_output(local, world):
    done = local([[0], [0], [0]], "--devices=4", "--logs=logs", XLA_FLAGS="--xla_x=1")
    assert (done.returncode, done.err) == (0, "")
    calls = sorted(world.calls("python"), key=lambda c: c[5])
    port = int(calls[0][3].removeprefix("--coordinator_address=127.0.0.1:"))
    for i, call in enumerate(calls):
        flags = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=3", f"--process_id={i}"]
        assert call[1:] == ["-m", "selfreward_jax.main", *flags, *MAIN, *ODD]
        assert (world.path / f"env.{i}").read_text() == "--xla_x=1 --xla_force_host_platform_device_count=4|cpu\n"
        output = [f"hello from {i}", f"trouble in {i}", f"bye from {i}"]
        assert (world.path / "logs" / f"process_{i}.log").read_text().splitlines() == output
        assert [line for line in done.out.splitlines() if line.startswith(f"[{i}] ")] == [f"[{i}] {s}" for s in output]
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("codes", "combined"),
    [
        ([0, 0], 0),
        ([0, 75], 75),
        ([75, 2], 2),
        ([2, 1], 2),
        ([75, 1], 1),
        (["-KILL", 1], 1),
        ([75, "-KILL"], 137),
        (["-TERM", 0], 143),
    ],
)
def test_local_combines_the_exit_codes(codes, combined, local):
    assert local([[c] for c in codes]).returncode == combined


@pytest.mark.parametrize("first", [(75, 75), ("-KILL", 75), (75, 134)])
def test_local_restarts_all_processes_after_one_is_lost(first, local, world):
    done = local([[first[0], 0], [first[1], 0]], "--restarts=1")
    assert done.returncode == 0, done.err
    assert re.search(r"\b1\b.*\b1\b", done.err)
    assert sorted(c[5] for c in world.calls("python")) == ["--process_id=0"] * 2 + ["--process_id=1"] * 2
    log = (world.path / "runs/local/process_0.log").read_text()
    assert log.count("hello from 0") == 2


@pytest.mark.parametrize(("codes", "code"), [((75, 2), 2), ((1, 75), 1), ((0, 0), 0)])
def test_local_does_not_restart_after_bad_input_or_an_error(codes, code, local, world):
    assert local([[c] for c in codes], "--restarts=5").returncode == code
    assert len(world.calls("python")) == 2


def test_local_restarts_have_a_limit(local, world):
    done = local([[75], [75]], "--restarts=2")
    assert done.returncode == 75
    assert "--restarts=2" in done.err
    assert len(world.calls("python")) == 6


def test_local_restarts_after_a_process_was_killed_from_outside(local, world):
    process = local.start([["wait", 0], [75, 0]], "--restarts=1")
    wait_for((world.path / "pid.0").exists)
    wait_for(lambda: (world.path / "pid.0").read_text())
    os.kill(int((world.path / "pid.0").read_text()), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.count("[0] hello from 0") == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_processes_of_local_and_no_others(number, code, local, world):
    bystander = subprocess.Popen(["sleep", "60"])  # the same command as that of the processes
    try:
        process = local.start([["wait"], ["wait"]], "--restarts=5")
        wait_for(lambda: all((world.path / f"pid.{i}").exists() for i in range(2)))
        wait_for(lambda: all((world.path / f"pid.{i}").read_text() for i in range(2)))
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code
        assert not [i for i in range(2) if running((world.path / f"pid.{i}").read_text().strip())]
        assert bystander.poll() is None
        assert len(world.calls("python")) == 2
    finally:
        bystander.kill()


def test_local_waits_for_the_last_output_of_a_stopped_process(local, world):
    process = local.start([["last"]], "--logs=logs")
    wait_for((world.path / "ready.0").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert "last words from 0" in (world.path / "logs" / "process_0.log").read_text()
    assert "[0] last words from 0" in process.communicate()[0]
