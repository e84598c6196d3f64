"""Agreements between real processes on this machine: their order, the keys that they leave, and a lost process."""

import os
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from selfreward_jax.parallel import coordinator

START = """
import os, signal, sys, time
from selfreward_jax.parallel import coordinator, processes
port, count, index, timeout, killed = map(int, sys.argv[1:])
address = {"coordinator_address": f"localhost:{port}", "num_processes": count, "process_id": index}
BLOCK = coordinator.BLOCK
"""

AGREEMENTS = (
    START
    + """
GATHERS = (0, 1, 1500, 1999)

def num_keys():
    return len(coordinator.coordinator().client.key_value_dir_get(coordinator.PREFIX))

def wait_for_the_primary():
    # It makes agreements until its keys fill two blocks, and then waits for this process.
    while coordinator.try_get_value(f"agreement/1/{2 * BLOCK - 1}") is None:
        time.sleep(0.05)
    time.sleep(1)
    assert coordinator.try_get_value(f"agreement/2/{2 * BLOCK}") is None

processes.initialize(address, timeout)
assert coordinator.coordinator()[1:] == (index, count)
most = 0
for number in range(2000):
    if number in GATHERS:
        assert processes.all_gather_json([number, index]) == [[number, i] for i in range(count)]
        continue
    if number == 100 and index == count - 1:
        wait_for_the_primary()
    assert processes.broadcast_from_primary(lambda: [number, index]) == [number, 0]
    if index == 0 and number % 50 == 11 or number == 2 * BLOCK - 1:
        most = max(most, num_keys())
if index == 0:
    # Of two blocks: a key of each agreement, the gathered values, and who has entered.
    assert 2 * BLOCK - 10 <= most <= 2 * BLOCK + count * (len(GATHERS) + 4), most
    assert num_keys() <= 2 * BLOCK + count * (len(GATHERS) + 4), num_keys()
processes.shutdown()
assert coordinator.coordinator().client is None and coordinator.try_get_value("agreement/7/1998") is None
"""
)

LOST = (
    START
    + """
def run():
    processes.initialize(address, timeout)
    try:
        for number in range(10**9):
            if number == BLOCK + 50 and index == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            assert processes.broadcast_from_primary(lambda: number) == number
    except processes.ProcessError as error:
        processes.abort_all(error.code, str(error))

sys.exit(processes.supervise(run))
"""
)


def run_all(script, count, timeout, limit, killed=-1):
    """Exit code and standard error of each of `count` processes; `limit` is in seconds."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    arguments = lambda index: map(str, (port, count, index, timeout, killed))  # noqa: E731
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments(index)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    deadline = time.monotonic() + limit
    try:
        errors = [p.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for p in started]
        return [(p.returncode, error) for p, error in zip(started, errors, strict=True)]
    finally:
        for p in started:
            p.kill()


def test_without_other_processes_there_is_no_connection():
    assert coordinator.coordinator() == (None, 0, 1)
    assert coordinator.try_get_value("stop") is None


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_values_arrive_in_order_and_keys_are_deleted_when_all_have_read_them(count):
    for code, error in run_all(AGREEMENTS, count, timeout=60, limit=120):
        assert code == 0, error[-3000:]


@pytest.mark.parametrize(
    ("count", "killed"), [(2, 0), *(pytest.param(*c, marks=pytest.mark.slow) for c in ((2, 1), (4, 2)))]
)
def test_a_lost_process_ends_the_others(count, killed):
    # 10 seconds until it is noticed, 3 in which the primary answers the others; the rest is for starting.
    ended = run_all(LOST, count, timeout=10, limit=60, killed=killed)
    assert ended.pop(killed)[0] == 128 + 9
    for code, error in ended:
        assert code == 75, error[-3000:]
        assert "start all" in error.splitlines()[-1]
