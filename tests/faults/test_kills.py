"""Killed at random moments, the run ends with the bytes of an uninterrupted one."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time

import pytest
from conftest import ROOT, command, run
from test_loop import contents

KILLS = int(os.environ.get("FAULT_KILLS", "25"))  # more are for the night


def results(workdir):
    """All that a run leaves behind, apart from its times."""
    summary = json.loads((workdir / "summary.json").read_text())
    for stage in (summary, *summary["stages"]):
        stage.pop("seconds")
    for name in ("peak_memory_bytes", "time"):
        summary.pop(name)
    return contents(workdir), summary


def stage_at(workdir):
    """What was done last: the newest file of the run, apart from its log and report."""
    times = {}
    for folder, inner, names in os.walk(workdir):
        inner[:] = [name for name in inner if name != "tensorboard"]
        for name in set(names) - {"config.json", "events.jsonl", "log.txt", "lock", "report.html"}:
            with contextlib.suppress(FileNotFoundError):  # it was there a moment ago
                times[os.path.relpath(os.path.join(folder, name), workdir)] = os.stat(f"{folder}/{name}").st_mtime_ns
    return max(times, key=times.get).split(".")[0] if times else None


def models(at):
    """Whose files were written last before the kills."""
    return {name.split("/")[0] for name in at if name}


def wait_for_change(process, workdir):
    """Until the process has changed something, so that every start comes further than the one before."""
    before = stage_at(workdir)
    while process.poll() is None and stage_at(workdir) == before:
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(finished_run, tmp_path):
    rng, kills, at = random.Random(0), 0, []
    expected = results(finished_run)
    number = 0
    # Until there were enough, and one in each model: M0 is made in a few seconds, which some runs are not killed in.
    while kills < KILLS or (not {"m0", "m1", "m2"} <= models(at) and kills < 3 * KILLS):
        workdir = tmp_path / str(number)
        process = subprocess.Popen(command(workdir, 2), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for_change(process, workdir)
        limit = time.monotonic() + rng.expovariate(1 / 0.7)
        while process.poll() is None and time.monotonic() < limit:
            time.sleep(0.001)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            at.append(stage_at(workdir))
        else:
            _, err = process.communicate()
            assert process.returncode == 0, err.decode()[-3000:]
            assert results(workdir) == expected
            number += 1
    run(tmp_path / str(number), 2)
    assert results(tmp_path / str(number)) == expected
    assert {"m0", "m1", "m2"} <= models(at), at
    print(f"{kills} kills, {number + 1} runs to the end; last file before each: {at}")
