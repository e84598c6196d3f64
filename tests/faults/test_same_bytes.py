"""What a run makes depends on its settings alone: not on the clock, or on how many rows are sampled together."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, arguments, command, run
from test_kills import results
from test_loop import contents

from selfreward_jax.report import time_report


@pytest.mark.slow
def test_a_process_of_its_own_makes_the_same_bytes_again(finished_run, tmp_path):
    done = subprocess.run(command(tmp_path / "run", 2), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert results(tmp_path / "run") == results(finished_run)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [8, 20, 96])
def test_how_many_rows_are_sampled_together_changes_no_text(finished_run, tmp_path, rows):
    run(tmp_path / "run", 2, f"--config.sampling.max_concurrent={rows}")
    assert contents(tmp_path / "run") == contents(finished_run)


# The clock on the wall is set by hours, some 450 times a run.
SET = """
import itertools, random, runpy, sys, time
rng, looks, now, now_ns, off = random.Random(0), itertools.count(), time.time, time.time_ns, [0]
def step():
    if next(looks) % 7 == 6:
        off[0] = rng.randint(-10_000, 10_000)
    return off[0]
time.time = lambda: now() + step()
time.time_ns = lambda: now_ns() + step() * 10**9
runpy.run_module("selfreward_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_clock_that_is_set_changes_nothing(finished_run, tmp_path):
    workdir = tmp_path / "run"
    options = arguments(workdir, 2)
    done = subprocess.run([sys.executable, "-c", SET, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    times = [json.loads(line)["time"] for line in (workdir / "events.jsonl").read_text().splitlines()]
    assert times != sorted(times)  # the clock was set indeed
    assert results(workdir) == results(finished_run)
    summary = json.loads((workdir / "summary.json").read_text())
    assert 0 < summary["seconds"] < 600
    assert 0 < sum(time_report.totals(summary["time"]["stages"]).values()) < 600
    assert all(0 <= stage["seconds"] < 600 for stage in summary["stages"])
