"""One run at a time in a working directory."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, arguments, assert_mentions, refused
from etils import epath

from selfreward_jax import storage
from selfreward_jax.storage import lock

HOLDER = """
import sys, time
from etils import epath
from selfreward_jax import lock
with lock.alone(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_told_who_is_there(holder, tmp_path):
    assert_mentions(refused(*arguments(tmp_path, 1)), tmp_path, holder.pid)
    assert {p.name for p in tmp_path.iterdir()} == {"lock", "config.json"}


def test_a_kill_leaves_nothing_locked(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "lock").exists()
    start = time.monotonic()
    refused = pytest.raises(storage.StorageError, match=rf"\b{os.getpid()}\b")
    with lock.workdir_lock(epath.Path(tmp_path)), refused, lock.workdir_lock(epath.Path(tmp_path)):
        pass
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []  # who ends in order cleans up
    with lock.workdir_lock(epath.Path(tmp_path)):
        pass
