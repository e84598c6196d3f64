"""All launch scripts: style, bad options, and that --dry_run prints what a run does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import launch_stand_ins
import pytest
from launch_stand_ins import GCLOUD, GKE, LAUNCH, MAIN, ODD, SLURM, TPU, bash

world = launch_stand_ins.world  # a fixture

SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# The required options of each script.
REQUIRED = {
    "local.sh": [],
    "tpu_vm.sh": TPU,
    "multislice.sh": ["--slices=2", *TPU],
    "gke.sh": GKE,
    "slurm.sh": SLURM,
}


# ---- style


@pytest.mark.parametrize("path", [*SCRIPTS, LAUNCH / "slurm.sbatch"], ids=lambda p: p.name)
def test_shellcheck_finds_nothing(path):
    installed = Path(sys.executable).parent / "shellcheck"
    checker = installed if installed.exists() else shutil.which("shellcheck")
    if not checker:
        pytest.skip("no shellcheck")
    done = subprocess.run([checker, "-x", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_file_is_in_the_readme():
    text = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        assert path.name.startswith(".") or path.name == "README.md" or f"`{path.name}`" in text, path.name


@pytest.mark.parametrize("script", REQUIRED)
def test_help_names_every_option(script, world):
    done = world.run(script, "--help")
    assert (done.returncode, done.err) == (0, "")
    assert done.out.startswith(f"launch/{script} ")
    assert world.calls() == []
    text = (LAUNCH / script).read_text()
    assert text.splitlines()[1].startswith("# ")
    assert "set -euo pipefail\n" in text
    assert os.access(LAUNCH / script, os.X_OK)
    if script != "multislice.sh":
        read = re.search(r'^read_options "([^"]*)"\s*(?:\\\n)?\s*"([^"]*)"', text, re.M)
        for option in f"{read[1]} {read[2]} dry_run".replace("\\\n", "").split():
            assert f"--{option}" in done.out, option


# ---- bad options: (script, its arguments, what the message names)

BAD = [
    *[(script, [*given, "--dry_runn", "--", *MAIN], ["--dry_runn", "--help"]) for script, given in REQUIRED.items()],
    *[(script, [*given, "--nam=x", "--", *MAIN], ["--nam=x", "--help"]) for script, given in REQUIRED.items()],
    *[(script, [*given, "--dry_run=1", "--", *MAIN], ["--dry_run", "'1'"]) for script, given in REQUIRED.items()],
    *[(script, [*given, "run1"], ["'run1'", "--"]) for script, given in REQUIRED.items()],
    *[(script, [*given, *MAIN], ["--config"]) for script, given in REQUIRED.items()],
    *[(script, [*given, "--", MAIN[1]], ["--config", "configs/"]) for script, given in REQUIRED.items()],
    *[(script, [*given, "--", MAIN[0]], ["--workdir", "gs://"]) for script, given in REQUIRED.items()],
    *[
        (script, [*REQUIRED[script], "--", MAIN[0], "--workdir", "runs/a"], ["--workdir", "'runs/a'", "gs://"])
        for script in ("tpu_vm.sh", "multislice.sh", "gke.sh")
    ],
    *[("tpu_vm.sh", [o for o in TPU if o != missing], [missing.split("=")[0]]) for missing in TPU],
    *[("gke.sh", [o for o in GKE if o != missing], [missing.split("=")[0]]) for missing in GKE],
    *[("slurm.sh", [o for o in SLURM if o != missing], [missing.split("=")[0]]) for missing in SLURM],
    ("local.sh", ["--processes"], ["--processes", "--processes=VALUE"]),
    ("local.sh", ["--processes=two"], ["--processes", "'two'", "1"]),
    ("local.sh", ["--processes=0"], ["--processes", "'0'", "1"]),
    ("local.sh", ["--devices=-1"], ["--devices", "'-1'", "1"]),
    ("local.sh", ["--restarts=1.5"], ["--restarts", "'1.5'", "0"]),
    ("tpu_vm.sh", [*TPU, "--name=Run_1"], ["--name", "'Run_1'"]),
    ("tpu_vm.sh", [*TPU, "--zone=us-central1"], ["--zone", "'us-central1'", "us-central1-a"]),
    ("tpu_vm.sh", [*TPU, "--accelerator_type=v5e"], ["--accelerator_type", "'v5e'", "v5litepod-16"]),
    ("tpu_vm.sh", [*TPU, "--accelerator_type=v9z-16", "--", *MAIN], ["--accelerator_type", "'v9z-16'", "--no_check"]),
    ("tpu_vm.sh", [*TPU, "--slices=x"], ["--slices", "'x'", "1"]),
    ("tpu_vm.sh", [*TPU, "--max_restarts=many"], ["--max_restarts", "'many'", "0"]),
    ("tpu_vm.sh", [*TPU, "--poll="], ["--poll"]),
    ("tpu_vm.sh", [*TPU, "--repo=here"], ["--repo", "'here'", "URL"]),
    ("tpu_vm.sh", [*TPU, "--", *MAIN], ["gcloud", "https://"]),
    ("multislice.sh", TPU, ["--slices", "2"]),
    ("multislice.sh", ["--slices=1", *TPU], ["--slices", "'1'", "2"]),
    ("gke.sh", [*GKE, "--accelerator=tpu-v5-light", "--", *MAIN], ["--accelerator", "'tpu-v5-light'", "--no_check"]),
    ("gke.sh", [*GKE, "--topology=4"], ["--topology", "'4'", "4x4"]),
    ("gke.sh", [*GKE, "--topology=3x3"], ["--chips", "'4'", "3x3"]),
    ("gke.sh", [*GKE, "--image=a b"], ["--image", "'a b'", "Dockerfile"]),
    ("slurm.sh", [*SLURM, "--time=long"], ["--time", "'long'", "24:00:00"]),
    ("slurm.sh", [*SLURM, "--python=a b"], ["--python", "'a b'", ".venv/bin/python"]),
]


@pytest.mark.parametrize(("script", "args", "parts"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else v)
def test_a_bad_option_is_refused_on_one_line(script, args, parts, world):
    done = world.run(script, *args)
    assert done.returncode == 2
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith(("tpu_vm.sh: ", f"{script}: "))
    for part in parts:
        assert part in done.err
    assert world.calls() == []


# ---- --dry_run prints what a run without failures does

CLUSTERS = {
    "one slice": ("tpu_vm.sh", [*TPU, "--spot", "--delete", "--poll=0"]),
    "from a repository": (
        "tpu_vm.sh",
        [*TPU, "--repo=https://host/a.git", "--poll=0", "--create_options=--network=n --tags=t"],
    ),
    "kubectl": ("gke.sh", GKE),
    "slurm": (
        "slurm.sh",
        [*SLURM, "--python=python3", "--partition=gpu", "--account=a", "--sbatch_options=--qos=low --mem=0"],
    ),
    "local": ("local.sh", ["--processes=1"]),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_dry_run_prints_the_commands_of_a_run_and_runs_none(name, world):
    script, args = CLUSTERS[name]
    args = [*args, "--", *MAIN, *ODD]
    printed = world.run(script, "--dry_run", *args)
    assert (printed.returncode, printed.err) == (0, ""), printed.err
    assert sorted(p.name for p in world.path.iterdir()) == ["bin", "calls", "tools"]
    assert world.calls() == []

    world.stub("gcloud", GCLOUD)
    for tool in ("kubectl", "sbatch"):
        world.stub(tool, 'cat >"$STATE/input"' if tool == "kubectl" else "")
    world.stub("python", 'echo "$XLA_FLAGS $JAX_PLATFORMS" >>"$STATE/input"')

    def record(action):
        """The calls of the tools, and what they read."""
        world.lines("states", "", "ACTIVE")
        world.lines("nodes", "READY")
        world.lines("codes", 0)
        world.log.write_text("")
        action()
        calls = [[re.sub(r"(127.0.0.1):\d+", r"\1:PORT", word) for word in call] for call in world.calls()]
        read = world.path / "input"
        return calls, read.read_text() if read.exists() else ""

    def real():
        process = world.run(script, *args)
        assert process.returncode == 0, process.err

    recorded = record(real)
    assert recorded[0]
    (world.path / "input").unlink(missing_ok=True)
    assert record(lambda: [bash(world, line) for line in printed.out.splitlines()]) == recorded


# ---- the run is checked before anything is created

CHECKED = {
    "one slice": ("tpu_vm.sh", TPU, "--machine=v5e:16"),
    "cores": ("tpu_vm.sh", [*TPU, "--accelerator_type=v5p-128"], "--machine=v5p:64"),
    "several slices": ("multislice.sh", ["--slices=2", *TPU], "--machine=v5e:16*2"),
    "kubectl": ("gke.sh", GKE, "--machine=v6e:4x4"),
    "slurm": ("slurm.sh", [*SLURM, "--python=python3"], "--machine=gpu:8"),
    "h100": ("slurm.sh", [*SLURM, "--python=python3", "--gpu=h100"], "--machine=h100:8"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_nothing_is_created_for_a_run_that_cannot_work(name, world):
    script, args, machine = CHECKED[name]
    for tool in ("gcloud", "kubectl", "sbatch"):
        world.stub(tool, "echo ACTIVE")
    world.stub("python3", "echo no seeds >&2; exit 2")
    done = world.run(script, *args, "--", *MAIN)
    assert done.returncode == 2
    assert done.err.splitlines()[0] == "no seeds"
    assert "--no_check" in done.err.splitlines()[-1]
    (call,) = world.calls()
    assert call[:3] == ["python3", "-m", "selfreward_jax.main"]
    assert call[3:5] == ["--dry_run", machine]
    assert call[-2:] == MAIN


@pytest.mark.parametrize(
    ("script", "args"),
    [("tpu_vm.sh", [*TPU, "--accelerator_type=v3-8"]), ("gke.sh", [*GKE, "--accelerator=tpu-new"])],
)
def test_an_unknown_accelerator_may_be_used_without_the_check(script, args, world):
    done = world.run(script, *args, "--no_check", "--dry_run", "--", *MAIN)
    assert (done.returncode, done.err) == (0, "")


@pytest.mark.parametrize("name", ["kubectl", "slurm"])
def test_the_check_can_be_left_out(name, world):
    script, args, _ = CHECKED[name]
    for tool in ("kubectl", "sbatch"):
        world.stub(tool)
    world.stub("python3", "exit 2")
    assert world.run(script, *args, "--no_check", "--", *MAIN).returncode == 0
    assert [call[0] for call in world.calls()] == ["kubectl" if name == "kubectl" else "sbatch"]


@pytest.mark.parametrize(("script", "given"), [("tpu_vm.sh", TPU), ("gke.sh", GKE)])
@pytest.mark.parametrize("option", ["--config.data.ift=mine", "--config.model.init=./mine", "--config.data.ift=mi*",
                                    "--config.judge.template=~/mine", "--config=mine:tiny"])  # fmt: skip
def test_a_file_that_the_workers_do_not_have_is_refused(script, given, option, world):
    (world.path / "mine").mkdir()
    done = world.run(script, *given, "--", *MAIN, option)
    assert (done.returncode, done.err.count("\n")) == (2, 1)
    assert option.split("=")[0] in done.err
    assert "gs://" in done.err
    assert world.calls() == []


@pytest.mark.parametrize("option", ["--config.data.ift=/on/the/workers", "--config.judge.template=configs/j.txt",
                                    "--config.data.ift=seeds/ift.jsonl", "--config.data.ift=./seeds"])  # fmt: skip
def test_what_the_workers_get_may_be_named(option, world):
    for folder in ("seeds", "configs"):
        (world.path / folder).mkdir()
    (world.path / "seeds" / "ift.jsonl").touch()
    (world.path / "configs" / "j.txt").touch()
    done = world.run("tpu_vm.sh", *TPU, "--copy=seeds", "--dry_run", "--", *MAIN, option)
    assert (done.returncode, done.err) == (0, "")


def test_what_is_copied_must_be_there(world):
    done = world.run("tpu_vm.sh", *TPU, "--copy=missing.jsonl", "--", *MAIN)
    assert (done.returncode, done.err.count("\n")) == (2, 1)
    assert "'missing.jsonl'" in done.err
