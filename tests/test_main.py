"""The command line: invalid input ends with exit code 2 and one line that names field and value."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, assert_mentions
from environment import simulated

from selfreward_jax import config

CONFIGS = ROOT / "configs"
# The commands run outside the repository, where the package is not importable by default.
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}
MICRO = f"--config={CONFIGS}/iter1.py:micro"

# Importing JAX takes longer than an error: import once, then run each command line in a fork.
DRIVER = """
import json, os, sys, tempfile, traceback
from selfreward_jax import main
from selfreward_jax.cli import run  # what most cases need, imported once

results = []
for argv in json.load(sys.stdin):
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    child = os.fork()
    if not child:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = 1
        try:
            code = main.main(argv)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = [(f.seek(0), f.read().decode())[1] for f in (out, err)]
    results.append([code, *texts])
json.dump(results, sys.stdout)
"""

# Name: (arguments, what the message names). WORK is a fresh folder, FILE a regular file, OTHER another run's folder,
# BAD a configuration that does not load.
CASES = {
    "no config": ([], ["--config"]),
    "missing file": (["--config=configs/nowhere.py"], ["config", "'configs/nowhere.py'"]),
    "unknown preset": ([f"--config={CONFIGS}/iter1.py:huge"], ["'huge'", "tiny, micro"]),
    "unknown field": ([MICRO, "--config.dpo.betta=0.7"], ["dpo.betta", "'0.7'", "dpo.beta"]),
    "unknown top field": ([MICRO, "--config.sed=1"], ["sed", "'1'", "seed"]),
    "section": ([MICRO, "--config.dpo=3"], ["dpo", "'3'"]),
    "word for a number": ([MICRO, "--config.dpo.lr=fast"], ["dpo.lr", "'fast'", "float"]),
    "fraction for an integer": ([MICRO, "--config.seed=1.5"], ["seed", "'1.5'", "int"]),
    "word for a switch": ([MICRO, "--config.model.scan_layers=maybe"], ["model.scan_layers", "'maybe'", "bool"]),
    "half of several": ([MICRO, "--num_processes=2"], ["--num_processes=2", "--coordinator_address", "--process_id"]),
    "no port": ([MICRO, "--coordinator_address=here", "--num_processes=2", "--process_id=0"], ["'here'", "HOST:PORT"]),
    "impossible port": (
        [MICRO, "--coordinator_address=here:99999", "--num_processes=2", "--process_id=0"],
        ["'here:99999'", "HOST:PORT"],
    ),
    "wide products": (
        [MICRO, "--workdir=WORK", "--config.parallel.sampling_tensor=2", "--config.model.num_kv_heads=1"],
        ["1", "kv_heads", "2", "parallel.sampling_tensor"],
    ),
    "one too many": (
        [MICRO, "--coordinator_address=here:1", "--num_processes=2", "--process_id=2"],
        ["process_id", "2", "num_processes", "1"],
    ),
    "unknown option": ([MICRO, "--wrkdir=x"], ["wrkdir"]),
    "no option": ([MICRO, "resume"], ["'resume'"]),
    "other run": ([MICRO, "--workdir=OTHER"], ["OTHER", "seed", "7", "0"]),
    "unwritable": ([MICRO, "--workdir=FILE/run"], ["workdir", "FILE/run"]),
    "a file": ([MICRO, "--workdir=FILE"], ["workdir", "FILE"]),
    "uneven batch": ([MICRO, "--workdir=WORK", "--config.sft.batch_size=3"], ["sft.batch_size", "3", "2"]),
    "uneven mesh": ([MICRO, "--workdir=WORK", "--config.parallel.fsdp=3"], ["2", "parallel.fsdp", "3"]),
    "bad setting": ([MICRO, "--workdir=WORK", "--config.judge.top_p=2.0"], ["judge.top_p", "2.0"]),
    "half the data": ([MICRO, "--workdir=WORK", "--config.data.ift=x"], ["data.ift", "'x'", "data.eft"]),
    "preset after a space": (["--config", f"{CONFIGS}/iter1.py:huge"], ["'huge'", "tiny, micro"]),
    "file after a space": (["--config", "configs/nowhere.py"], ["config", "'configs/nowhere.py'"]),
    "broken config": (["--config=BAD"], ["BAD"]),
    "no heads": ([MICRO, "--workdir=WORK", "--config.model.num_kv_heads=0"], ["model.num_kv_heads"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("main")
    (path / "file").write_text("not a folder")
    (path / "bad.py").write_text("def get_config(:")
    other = config.get_config("micro")
    other.update(iterations=1, seed=7)
    (path / "other").mkdir()
    (path / "other" / "config.json").write_text(other.to_json())
    return path


@pytest.fixture(scope="module")
def place(folder):
    """A function that replaces the words in capitals by paths."""

    def put(text):
        for word, name in {"WORK": "work", "FILE": "file", "OTHER": "other", "BAD": "bad.py"}.items():
            text = text.replace(word, str(folder / name))
        return text

    return put


@pytest.fixture(scope="module")
def ended(folder, place):
    """Exit code, standard output and standard error of every case."""
    lines = [[place(a) for a in argv] for argv, _ in CASES.values()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER],
        input=json.dumps(lines),
        cwd=folder,  # a run that is not refused must not write into the repository
        env=simulated(2) | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_bad_command_line_is_refused_on_one_line(name, ended, place):
    code, out, err = ended[name]
    assert code == 2, err
    assert out == ""
    assert err.startswith("selfreward_jax: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert_mentions(err, *map(place, CASES[name][1]))


def test_the_folder_of_another_run_is_unchanged(ended, folder):
    assert ended["other run"][0] == 2
    assert [p.name for p in (folder / "other").iterdir()] == ["config.json"]
    assert json.loads((folder / "other" / "config.json").read_text())["seed"] == 7


def test_refused_settings_leave_no_folder(ended, folder):
    assert ended["uneven batch"][0] == 2
    assert not (folder / "work").exists()


def test_the_process_returns_the_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "selfreward_jax.main", MICRO, "--config.seed=one"],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("selfreward_jax: ")
    assert done.stderr.count("\n") == 1
    assert_mentions(done.stderr, "seed", "'one'", "int", 0)
