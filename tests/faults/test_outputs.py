"""Standard output and standard error that are closed, gone or full: the run goes on, and its lines are in log.txt."""

import contextlib
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, command
from test_loop import contents

FULL = "/dev/full"
needs_full = pytest.mark.skipif(not os.path.exists(FULL), reason=f"there is no {FULL}")


def finished(workdir, iterations, redirections):
    """Exit code of a run whose standard streams a shell has redirected."""
    argv = ["sh", "-c", f'exec "$@" {redirections}', "sh", *command(workdir, iterations)]
    return subprocess.run(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def without_reader(workdir, iterations):
    """Exit code of a run whose standard error nobody reads after its first line, and whose output has no reader."""
    out, to_out = os.pipe()
    os.close(out)
    with os.fdopen(to_out, "wb") as stdout:
        process = subprocess.Popen(command(workdir, iterations), cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)
    assert process.stderr.readline().startswith(b"workdir")
    process.stderr.close()
    return process.wait()


def assert_log(workdir, iterations):
    """That log.txt holds the stages, the results and the last lines."""
    text = (workdir / "log.txt").read_text()
    for part in ("workdir", "judge  ", "report: ", "best model: ", " evaluate --workdir="):
        assert part in text, part
    count = 5 + 8 * (iterations - 1)
    assert f"[{count}/{count}] m{iterations} eval_judgments: " in text
    assert "Traceback" not in text


@pytest.fixture
def evaluated(finished_run, tmp_path):
    """A run of which only the last evaluation is missing."""
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir, ignore=shutil.ignore_patterns("log.txt", "summary.json", "report.html"))
    for name in ("eval.json", "eval_judgments.manifest.json"):
        (workdir / "m2" / name).unlink()
    return workdir


@needs_full
@pytest.mark.parametrize(
    "redirections",
    [
        "> /dev/full 2>&1",
        *(pytest.param(r, marks=pytest.mark.slow) for r in ("> /dev/full", "2> /dev/full", ">&- 2>&-", "<&- >&- 2>&-")),
    ],
)
def test_a_run_ends_well_with_full_and_closed_outputs(finished_run, evaluated, redirections):
    assert finished(evaluated, 2, redirections) == 0
    assert_log(evaluated, 2)
    assert (evaluated / "report.html").exists()
    assert contents(evaluated) == contents(finished_run)


@pytest.mark.slow
def test_a_run_ends_well_when_its_reader_leaves(finished_run, tmp_path):
    workdir = tmp_path / "run"
    assert without_reader(workdir, 2) == 0
    assert_log(workdir, 2)
    assert contents(workdir) == contents(finished_run)


@needs_full
@pytest.mark.slow
def test_a_log_that_cannot_be_written_costs_nothing_else(evaluated):
    (evaluated / "log.txt").symlink_to(FULL)
    assert finished(evaluated, 2, "> /dev/full 2>&1") == 0
    assert (evaluated / "summary.json").exists()


STUCK = """
import os, signal, sys
from selfreward_jax.parallel import preemption
with preemption.handle_signals(0.5):
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        signal.pause()
"""


@needs_full
@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full"])
def test_a_stop_needs_no_output(redirection):
    argv = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", STUCK]
    assert subprocess.run(argv, cwd=ROOT, timeout=100).returncode == 75


# A terminal of 24 rows and as many columns as the first argument says.
TERMINAL = """
import fcntl, os, pty, struct, sys, termios
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, int(sys.argv[1]), 0, 0))
os.execv(sys.argv[2], sys.argv[2:])
"""


def in_a_terminal(workdir, columns):
    """Exit code of a run in a terminal, and what the terminal got."""
    parent, child = os.openpty()
    argv = [sys.executable, "-c", TERMINAL, str(columns), *command(workdir, 2)]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=child, stdout=child, stderr=child)
    os.close(child)
    received = b""
    with contextlib.suppress(OSError):  # the last process has left the terminal
        while data := os.read(parent, 1 << 16):
            received += data
    os.close(parent)
    return process.wait(), received.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [100, 0])
def test_a_terminal_shows_a_bar_and_whole_lines(evaluated, columns):
    code, text = in_a_terminal(evaluated, columns)
    assert code == 0, text
    assert ("| 0/24 rows, compiling" in text) == bool(columns)
    assert re.search(r"[\r\n]\[13/13\] m2 eval_judgments: 24 rows, [^\r]*\r\n", text)
    assert_log(evaluated, 2)
