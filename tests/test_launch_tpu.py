"""The launch scripts of Cloud TPU VMs, with a fake gcloud."""

import re
import shlex
import shutil
import signal
import subprocess

import launch_stand_ins
import pytest
from launch_stand_ins import GCLOUD, MAIN, ODD, TPU, bash, wait_for

world = launch_stand_ins.world  # a fixture


def kinds(world):
    """The kinds of the calls of gcloud."""
    names = {"list": "look", "create": "create", "delete": "delete", "scp": "copy"}
    found = []
    for call in world.calls("gcloud"):
        command = next((w for w in call if w.startswith("--command=")), "")
        kind = "main" if "selfreward_jax.main" in command else "install" if "pip install" in command else "ssh"
        found.append("nodes" if call[3:5] == ["tpu-vm", "list"] else names.get(call[4], kind))
    return [k for k in found if k not in ("nodes", "ssh", "copy", "install")]


@pytest.fixture
def tpu(world):
    def run(states, codes, *options, nodes=("READY",), main=MAIN, script="tpu_vm.sh", **env):
        world.stub("gcloud", GCLOUD)
        world.lines("states", *states)
        world.lines("nodes", *nodes)
        world.lines("codes", *codes)
        return world.run(script, *TPU, "--poll=0", *options, "--", *main, **env)

    return run


def test_a_run_creates_waits_installs_runs_and_keeps_the_tpus(tpu, world):
    done = tpu(
        ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], [0], "--spot", nodes=["", "", "CREATING", "READY"]
    )
    assert done.returncode == 0
    assert kinds(world) == ["look", "create", "look", "look", "look", "look", "main"]
    assert re.search(r"\brun1\b.*\bPROVISIONING\b", done.err)
    create = next(c for c in world.calls("gcloud") if "create" in c)
    assert create[1:6] == ["compute", "tpus", "queued-resources", "create", "run1"]
    assert {"--node-id=run1", "--accelerator-type=v5litepod-16", "--runtime-version=v2-x", "--spot"} <= set(create)
    calls = [c for c in world.calls("gcloud") if c[3] == "tpu-vm" and c[4] != "list"]
    assert all({"--worker=all", "--zone=us-central1-a", "--project=proj"} <= set(c) for c in calls)
    assert [c[4] for c in calls] == ["ssh", "scp", "ssh", "ssh"]
    assert "-r requirements.txt 'jax[tpu]'" in calls[2][-1]
    assert "[run1] step 1 of run1" in done.out
    assert "step 1 of run1" in (world.path / "runs/launch/run1.log").read_text()


def test_flex_start_asks_for_hours(tpu, world):
    assert tpu(["", "ACTIVE"], [0], "--flex_start=12").returncode == 0
    create = next(c for c in world.calls("gcloud") if "create" in c)
    assert create[1:7] == ["alpha", "compute", "tpus", "queued-resources", "create", "run1"]
    assert {"--provisioning-model=flex-start", "--max-run-duration=12h"} <= set(create)
    assert "--spot" not in create


@pytest.mark.parametrize("options", [["--flex_start=169"], ["--flex_start=0"], ["--flex_start=2", "--spot"]])
def test_flex_start_refuses_what_the_cloud_would(tpu, world, options):
    done = tpu([""], [0], *options)
    assert done.returncode == 2
    assert "--flex_start" in done.err
    assert world.calls("gcloud") == []


def test_preempted_tpus_are_replaced_and_the_run_resumes(tpu, world):
    done = tpu(["", "ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"], [255, 0])
    assert done.returncode == 0, done.err
    again = ["look", "look", "delete", "look", "create", "look", "main"]
    assert kinds(world) == ["look", "create", "look", "main", *again]
    mains = [c for c in world.calls("gcloud") if "selfreward_jax.main" in c[-1]]
    assert mains[0] == mains[1]
    delete = next(c for c in world.calls("gcloud") if "delete" in c)
    assert {"run1", "--force", "--quiet"} <= set(delete)


def test_a_preempted_node_counts_while_its_resource_is_active(tpu, world):
    done = tpu(["ACTIVE", "ACTIVE", "", "ACTIVE"], [255, 0], nodes=["READY", "PREEMPTED", "READY"])
    assert done.returncode == 0, done.err
    assert kinds(world) == ["look", "main", "look", "delete", "look", "create", "look", "main"]


def test_active_tpus_are_reused_after_a_lost_process(tpu, world):
    assert tpu(["ACTIVE"], [75, 137, 1, 0]).returncode == 0
    assert kinds(world) == ["look", "main"] * 4


@pytest.mark.parametrize("code", [2, "worker 3"])
def test_bad_input_is_not_restarted(code, tpu, world):
    assert tpu(["ACTIVE"], [code]).returncode == 2
    assert kinds(world) == ["look", "main"]


@pytest.mark.parametrize("code", [0, 2])
def test_delete_deletes_at_the_end(code, tpu, world):
    assert tpu(["ACTIVE"], [code], "--delete").returncode == code
    assert kinds(world)[-2:] == ["main", "delete"]


def test_tpu_restarts_have_a_limit(tpu, world):
    done = tpu(["ACTIVE"], [75], "--max_restarts=2", "--delete")
    assert done.returncode == 75
    assert "--max_restarts=2" in done.err
    assert kinds(world) == ["look", "main"] * 3 + ["delete"]


def test_failed_requests_have_a_limit(tpu, world):
    done = tpu(["FAILED"], [0], "--max_restarts=1")
    assert done.returncode == 75
    assert re.search(r"\brun1\b.*\bFAILED\b", done.err)
    assert kinds(world) == ["look", "delete", "look"]


def test_a_broken_gcloud_ends_the_script_but_one_failure_does_not(tpu, world):
    done = tpu(["broken"], [0])
    assert done.returncode == 1
    assert "no network" in done.err
    assert tpu(["ACTIVE", "broken", "ACTIVE"], [255, 0]).returncode == 0


def test_a_refused_request_ends_the_script_at_first_and_is_repeated_later(tpu, world):
    world.lines("creates", 2)
    assert tpu([""], [0]).returncode == 2
    assert kinds(world) == ["look", "create", "look"]
    world.log.write_text("")
    world.lines("creates", 0, 1, 0)
    assert tpu(["", "ACTIVE", "SUSPENDED", "", "", "", "ACTIVE"], [255, 0]).returncode == 0
    again = ["delete", "look", "create", "look", "look", "create", "look", "main"]
    assert kinds(world) == ["look", "create", "look", "main", "look", *again]


def test_a_request_that_fails_after_it_was_made_is_used_and_deleted_at_the_end(tpu, world):
    """Otherwise it would cost money, and nobody would know."""
    world.lines("creates", 1)
    assert tpu(["", "WAITING", "ACTIVE"], [0], "--delete").returncode == 0
    assert kinds(world) == ["look", "create", "look", "look", "main", "delete"]


@pytest.mark.parametrize(
    ("option", "package"),
    [("--config.data.ift=hf:a/b/ift", "datasets"), ("--config.report.wandb=proj", "wandb"), ("--config.seed=1", "")],
)
def test_the_workers_get_the_packages_that_the_options_need(option, package, world):
    done = world.run("tpu_vm.sh", *TPU, "--dry_run", "--", *MAIN, option)
    (install,) = [line for line in done.out.splitlines() if "uv pip install" in line]
    assert [name for name in ("datasets", "wandb") if f" {name}" in install] == ([package] if package else [])


def test_several_slices_run_together_and_get_their_number(tpu, world):
    own = "--config.parallel.replicas=1"
    nodes, together = ["READY READY"], {"script": "multislice.sh", "WAIT_FOR": "run1-0 run1-1"}
    done = tpu(["", "ACTIVE"], [0], "--slices=2", nodes=nodes, main=[*MAIN, own], **together)
    assert done.returncode == 0, done.err
    create = next(c for c in world.calls("gcloud") if "create" in c)
    assert {"--node-count=2", "--node-prefix=run1"} <= set(create)
    assert not any(w.startswith("--node-id") for w in create)
    mains = [c for c in world.calls("gcloud") if "selfreward_jax.main" in c[-1]]
    assert sorted(c[5] for c in mains) == ["run1-0", "run1-1"]
    for call in mains:
        words = shlex.split(call[-1])
        assert words[words.index("--distributed") + 1 :] == ["--config.parallel.replicas=2", *MAIN, own]
    assert "[run1-1] step 1 of run1-1" in done.out


def test_the_script_waits_for_all_slices(tpu, world):
    assert tpu(["ACTIVE"], [0], "--slices=2", nodes=["READY", "READY CREATING", "READY READY"]).returncode == 0
    assert kinds(world) == ["look", "look", "look", "main", "main"]


def test_a_signal_stops_the_jobs_and_deletes_nothing(world):
    world.stub("gcloud", GCLOUD)
    world.lines("states", "ACTIVE")
    world.lines("nodes", "READY")
    script = world.start("tpu_vm.sh", *TPU, "--poll=0", "--delete", "--", *MAIN, FOREVER="1")
    wait_for((world.path / "started.run1").exists)
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=60)
    assert script.returncode == 143
    assert kinds(world) == ["look", "main"]


def test_a_worker_kills_its_disconnected_process_and_gets_its_arguments_unchanged(tpu, world):
    assert tpu(["ACTIVE"], [0], main=[*MAIN, *ODD]).returncode == 0
    command = world.calls("gcloud")[-1][-1].removeprefix("--command=")
    # A shell stands in for the interpreter: it also accepts -m and a file.
    home = world.path / "selfreward"
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "python").symlink_to(shutil.which("bash"))
    (home / "selfreward_jax.main").write_text('printf \'%s\\n\' "$$" "$@" >args')
    lost = subprocess.Popen([".venv/bin/python", "-c", "while sleep 0.1; do :; done"], cwd=home)
    other = subprocess.Popen(["sleep", "60"])
    try:
        (home / "main.pid").write_text(f"{lost.pid}\n")
        bash(world, command)
        assert lost.wait(timeout=60) == -signal.SIGKILL
        pid, *args = (home / "args").read_text().splitlines()
        assert args == ["--distributed", *MAIN, *ODD]
        assert (home / "main.pid").read_text().strip() == pid
        (home / "main.pid").write_text(f"{other.pid}\n")  # now the id of another program
        bash(world, command)
        assert other.poll() is None
    finally:
        lost.kill()
        other.kill()


def test_the_workers_get_files_and_variables_and_no_command_shows_a_token(tpu, world):
    (world.path / "ift.jsonl").write_text("{}")
    (world.path / "model").mkdir()
    main = [*MAIN, "--config.data.ift=ift.jsonl", "--config.model.init=model"]
    done = tpu(["ACTIVE"], [0], "--copy=ift.jsonl,model", main=main, HF_TOKEN="se cret", XLA_FLAGS="--a=1 --b")
    assert done.returncode == 0, done.err
    (copy,) = [c for c in world.calls("gcloud") if c[4] == "scp"]
    assert {"ift.jsonl", "model", "runs/launch/run1/environment"} <= set(copy)
    assert "se cret" not in done.out + done.err + world.log.read_text()
    assert not (world.path / "runs" / "launch" / "run1" / "environment").exists()  # it held the token
    name, mode, text = (world.path / "environment").read_text().split("\n", 2)
    assert (name, mode) == ("runs/launch/run1/environment", "600")
    (world.path / "sourced").write_text(text)
    assert bash(world, '. ./sourced; printf \'%s|%s\' "$HF_TOKEN" "$XLA_FLAGS"') == "se cret|--a=1 --b"
    command = world.calls("gcloud")[-1][-1]
    assert ". ./environment" in command


def test_files_are_copied_beside_a_clone_too(tpu, world):
    (world.path / "ift.jsonl").write_text("{}")
    main = [*MAIN, "--config.data.ift=ift.jsonl"]
    assert tpu(["ACTIVE"], [0], "--repo=https://host/a.git", "--copy=ift.jsonl", main=main).returncode == 0
    (copy,) = [c for c in world.calls("gcloud") if c[4] == "scp"]
    assert "ift.jsonl" in copy
    assert (world.path / "environment").read_text().splitlines()[2:] == []  # nothing of an earlier start stays
    assert not any("selfreward_jax" in word for word in copy)
