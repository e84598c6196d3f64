"""SIGTERM and SIGINT: the step or the rows in progress are finished and saved, and the same command resumes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, assert_mentions, command, run
from etils import epath
from test_kills import results
from test_loop import MARKS

from selfreward_jax.parallel import preemption
from selfreward_jax.report import time_report
from selfreward_jax.stages.table import TABLE

BOUND = 45.0  # shutdown_timeout_s
ANSWER = "selfreward_jax: stopping after the step at hand (at most 45 s); Ctrl-C again ends at once\n"


def stopped(workdir, started, ended, number):
    """Starts the run and asks it to stop when it is in the midst of a stage. Its exit code, seconds, and last words."""
    log = workdir.with_name("stderr")
    with log.open("w") as f:
        process = subprocess.Popen(command(workdir, 2), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=f)
    while (
        process.poll() is None and not log.read_text()
    ):  # a program that only loads has nothing at hand, and just ends
        time.sleep(0.01)
    missed = lambda: ended is not None and (workdir / ended).exists()  # noqa: E731
    while process.poll() is None and not any(workdir.glob(started)) and not missed():
        time.sleep(0.002)
    start = time.monotonic()
    if process.poll() is None:
        os.kill(process.pid, number)
    process.wait()
    return process.returncode, time.monotonic() - start, log.read_text()


@pytest.mark.slow
def test_stopped_in_every_stage_no_step_is_repeated(finished_run, tmp_path):
    workdir, in_the_midst = tmp_path / "run", 0
    for i, (stage, started, ended) in enumerate(MARKS):
        code, seconds, err = stopped(workdir, started, ended, (signal.SIGTERM, signal.SIGINT)[i % 2])
        assert "Traceback" not in err, err
        if code == 0:  # it ended before the signal came
            continue
        assert code == 75, err
        assert err.splitlines()[-1].startswith("selfreward_jax: ")
        assert seconds < BOUND, stage
        assert err.count(ANSWER) == 1, err
        in_the_midst += 1
    assert in_the_midst >= len(MARKS) - 3
    run(workdir, 2)
    assert results(workdir) == results(finished_run)
    steps = [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]
    steps = [(e["model"], e["stage"], e["step"]) for e in steps if "step" in e]
    assert len(steps) == len(set(steps))
    # And the time report shows that next to nothing was lost: the loading of states, and of programs, before each stop.
    found = time_report.read(epath.Path(workdir), TABLE.kind_of)
    assert found["starts"] >= len(MARKS) - 2
    assert time_report.totals(found["lost"]).get("training", 0) < 0.05 * time_report.totals(found["stages"])["training"]


def test_a_signal_requests_a_stop():
    with preemption.handle_signals(1000):
        assert not preemption.stop_requested()
        preemption.raise_if_stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.stop_requested()
        with pytest.raises(preemption.Stopped):
            preemption.raise_if_stopped()
    with preemption.handle_signals(1000):  # another run in this process starts without a request
        assert not preemption.stop_requested()


STUCK = """
import os, signal, sys, time
from selfreward_jax.parallel import preemption
with preemption.handle_signals(float(sys.argv[1])):
    for name in sys.argv[2:]:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0 if name == "SIGTERM" else 1.2)
    while True:
        time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("within", "signals", "facts"),
    [
        ("0.5", ["SIGTERM"], ["0.5", "shutdown_timeout_s"]),
        ("2", ["SIGTERM", "SIGTERM", "SIGINT"], ["2", "shutdown_timeout_s"]),  # a group's signal, and its parent's
        ("1000", ["SIGINT", "SIGINT"], []),  # at once
    ],
)
def test_what_cannot_stop_is_ended(within, signals, facts):
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUCK, within, *signals], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 75
    assert_mentions(done.stderr, "selfreward_jax", *facts)
    assert ("shutdown_timeout_s" in done.stderr) == bool(facts)
    assert time.monotonic() - start < 60


# Python runs no signal handler before this long call into C returns, as none runs while a program compiles.
COMPILING = """
import hashlib, sys
from selfreward_jax.parallel import preemption
with preemption.handle_signals(45.0):
    print("started", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_at_once_whatever_the_program_does(number):
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        process.stdout.readline()
        start = time.monotonic()
        process.send_signal(number)
        assert process.stderr.readline() == ANSWER
        time.sleep(preemption.REPEAT_WINDOW + 0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND) == 75
        assert time.monotonic() - start < BOUND / 2
        assert process.stderr.read().startswith("selfreward_jax: second stop request")
    finally:
        process.kill()


def test_other_signals_are_left_alone():
    received = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    with preemption.handle_signals(1000):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not preemption.stop_requested()
    signal.signal(signal.SIGUSR1, previous)
    assert received == [1]
    assert signal.set_wakeup_fd(-1) == -1  # the pipe is no longer in use
