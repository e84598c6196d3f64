"""One run at a time in a working directory."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, arguments, assert_mentions, micro, refused
from etils import epath

from selfreward_jax import storage
from selfreward_jax.config import ConfigError
from selfreward_jax.runs.run import claim, make_run
from selfreward_jax.stages.table import TABLE
from selfreward_jax.storage import lock

HOLDER = """
import sys, time
from etils import epath
from selfreward_jax.storage import lock
with lock.workdir_lock(epath.Path(sys.argv[1])):
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


def error_of(directory):
    """The message of the StorageError with which the directory cannot be locked."""
    with pytest.raises(storage.StorageError) as error, lock.workdir_lock(epath.Path(directory)):
        pass
    return str(error.value)


def before_first_flock(monkeypatch, change):
    """Runs `change` between the opening of the lock file and its first flock. Returns the list of flock calls."""
    flock, calls = fcntl.flock, []

    def patched(file, operation):
        if not calls:
            change()
        calls.append(operation)
        return flock(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", patched)
    return calls


def test_a_second_run_is_refused_with_the_process_id_of_the_holder(holder, tmp_path):
    assert_mentions(refused(*arguments(tmp_path, 1)), tmp_path, holder.pid)
    assert {p.name for p in tmp_path.iterdir()} == {"lock"}


def test_a_kill_leaves_nothing_locked(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "lock").exists()
    start = time.monotonic()
    with lock.workdir_lock(epath.Path(tmp_path)):
        assert_mentions(error_of(tmp_path), os.getpid())
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []  # a run that ends normally removes the file
    with lock.workdir_lock(epath.Path(tmp_path)):
        pass


def test_whether_a_run_holds_a_directory_can_be_asked(holder, tmp_path):
    directory = epath.Path(tmp_path)
    assert lock.is_locked(directory)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not lock.is_locked(directory)  # the file is left behind
    assert not lock.is_locked(directory / "none")
    with lock.workdir_lock(directory):
        assert lock.is_locked(directory)  # asking does not take it
        assert_mentions(error_of(tmp_path), os.getpid())


@pytest.mark.parametrize("kind", ["link", "dangling link", "loop", "directory", "fifo"])
def test_a_lock_that_is_no_regular_file_is_refused_and_left_alone(tmp_path, kind):
    directory, target = tmp_path / "run", tmp_path / "target"
    directory.mkdir()
    path = directory / "lock"
    if kind == "link":
        target.write_text("not a lock")
    if kind in ("link", "dangling link"):
        path.symlink_to(target)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    before = path.lstat()
    assert_mentions(error_of(directory), path)
    assert os.path.samestat(path.lstat(), before)
    assert target.exists() == (kind == "link")  # nothing is created at the end of a link
    assert kind != "link" or target.read_text() == "not a lock"


def test_a_lock_file_that_is_removed_while_it_is_opened_is_created_again(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.write_text("old")
    calls = before_first_flock(monkeypatch, path.unlink)
    with lock.workdir_lock(epath.Path(tmp_path)):
        assert len(calls) == 2
        assert_mentions(path.read_text(), os.getpid())
        assert "old" not in path.read_text()
        assert_mentions(error_of(tmp_path), os.getpid())  # the new file is the locked one


def test_a_lock_file_that_becomes_a_link_while_it_is_opened_is_refused(tmp_path, monkeypatch):
    path, moved = tmp_path / "lock", tmp_path / "moved"
    path.write_text("old")

    def replace_by_link():
        path.rename(moved)
        path.symlink_to(moved)  # to the very file that is open

    calls = before_first_flock(monkeypatch, replace_by_link)
    assert_mentions(error_of(tmp_path), path)
    assert len(calls) == 1
    assert path.is_symlink()
    assert moved.read_text() == "old"


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.workdir_lock(epath.Path(tmp_path)):
        warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert_mentions(warning, tmp_path / "lock", os.strerror(errno.ENOLCK))


def test_a_message_repeats_only_the_beginning_of_a_long_holder_line(tmp_path):
    data = b"\xff" * 1_000_000  # no UTF-8 either
    (tmp_path / "lock").write_bytes(data)
    with (tmp_path / "lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = error_of(tmp_path)
    assert_mentions(message, tmp_path)
    assert message.count("\ufffd") == lock.MAX_HOLDER
    assert (tmp_path / "lock").read_bytes() == data


def test_a_message_is_one_line_without_escape_sequences(tmp_path):
    (tmp_path / "lock").write_bytes(b"a\x1b[31mb\nc\n")
    with (tmp_path / "lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = error_of(tmp_path)
    assert "\n" not in message
    assert "\x1b" not in message
    assert_mentions(message, tmp_path, "a\\x1b[31mb")


def test_of_two_starts_at_once_one_goes_on_and_its_settings_stay(tmp_path):
    """Fifty times, each time with other settings: what stands in config.json is that of the run that holds the lock."""

    def attempt(cfg, workdir, start, outcomes):
        run = make_run(cfg, str(workdir))
        start.wait()
        try:
            with claim(run, TABLE.dependents):
                for _ in range(3):
                    assert json.loads((workdir / "config.json").read_text())["seed"] == cfg.seed
                    time.sleep(0.002)
            outcomes.append(cfg.seed)
        except (ConfigError, storage.StorageError) as error:
            outcomes.append(error)

    for number in range(50):
        workdir, start, outcomes = tmp_path / str(number), threading.Barrier(2), []
        settings = [micro(1), micro(1)]
        for seed, cfg in enumerate(settings):
            cfg.seed = seed
        threads = [threading.Thread(target=attempt, args=(cfg, workdir, start, outcomes)) for cfg in settings]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        went_on = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert len(outcomes) == 2
        assert len(went_on) == 1
        assert json.loads((workdir / "config.json").read_text())["seed"] == went_on[0]
