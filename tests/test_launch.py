"""The launch scripts, against stand-ins for the tools they call: what they run, when they start again and when not."""

import copy
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# All that a script may find on its way, beside the stand-ins: the real gcloud or kubectl must never be called.
TOOLS = "bash cat dirname env grep head mkdir rm sed sleep tail touch".split()

MAIN = ["--config=configs/iter3.py:llama3_8b", "--workdir=gs://bucket/run"]
# Options that need quoting on their way through two shells, YAML and Kubernetes.
ODD = ["--config.data.ift=a b", '--config.x=it\'s "$HOME" $(NAME) ${NAME} & \\n ; *']
TPU = "--name=run1 --project=proj --zone=us-central1-a --accelerator_type=v5litepod-16 --runtime_version=v2-x".split()
GKE = "--name=run1 --image=reg.dev/p/i:1 --accelerator=tpu-v6e-slice --topology=4x4".split()
XPK = (
    "--xpk --name=run1 --image=reg.dev/p/i:1 --cluster=c --project=proj --zone=us-central1-a --tpu_type=v6e-16".split()
)
SLURM = "--nodes=2 --gpus=4".split()
# What each script needs, at least.
LEAST = {
    "local.sh": [],
    "tpu_vm.sh": TPU,
    "multislice.sh": ["--slices=2", *TPU],
    "gke.sh": GKE,
    "slurm.sh": SLURM,
}

RECORD = """#!/usr/bin/env bash
printf '%s\\037' "${0##*/}" "$@" $'\\036' >>"$CALLS" # one write: others write there too
# The first line of a file, which it takes out; the last one stays.
next() {
  local lines; mapfile -t lines <"$1"
  ((${#lines[@]} < 2)) || printf '%s\\n' "${lines[@]:1}" >"$1"
  echo "${lines[0]-}"
}
"""


class World:
    """A folder with the stand-ins, and what they were told."""

    def __init__(self, path):
        self.path, self.bin, self.log = path, path / "bin", path / "calls"
        tools = path / "tools"
        for folder in (self.bin, tools):
            folder.mkdir()
        for name in TOOLS:
            (tools / name).symlink_to(shutil.which(name))
        self.env = {"PATH": f"{self.bin}:{tools}", "HOME": str(path), "CALLS": str(self.log), "STATE": str(path)}
        self.log.touch()

    def stub(self, name, body=""):
        file = self.bin / name
        file.write_text(RECORD + body)
        file.chmod(0o755)

    def lines(self, name, *values):
        (self.path / name).write_text("".join(f"{v}\n" for v in values))

    def start(self, script, *args, **env):
        command = ["bash", LAUNCH / script, *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # Where the tests run in the background Ctrl-C is ignored, which bash inherits and cannot undo.
        heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        return subprocess.Popen(command, cwd=self.path, env=self.env | env, text=True, preexec_fn=heard, **pipes)

    def run(self, script, *args, **env):
        process = self.start(script, *args, **env)
        process.out, process.err = process.communicate(timeout=60)
        return process

    def calls(self, name=None):
        found = [c.removesuffix("\x1f").split("\x1f") for c in self.log.read_text().split("\x1e\x1f")[:-1]]
        return [c for c in found if name in (None, c[0])]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come")


def running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"  # ended, and not yet looked at by its parent


def bash(world, text, **env):
    done = subprocess.run(["bash", "-c", text], cwd=world.path, env=world.env | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- form


@pytest.mark.parametrize("path", [*SCRIPTS, LAUNCH / "slurm.sbatch"], ids=lambda p: p.name)
def test_shellcheck_finds_nothing(path):
    beside = Path(sys.executable).parent / "shellcheck"
    checker = beside if beside.exists() else shutil.which("shellcheck")
    if not checker:
        pytest.skip("no shellcheck")
    done = subprocess.run([checker, "-x", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_file_is_in_the_readme():
    text = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        assert path.name.startswith(".") or path.name == "README.md" or f"`{path.name}`" in text, path.name


@pytest.mark.parametrize("script", LEAST)
def test_help_names_every_option(script, world):
    done = world.run(script, "--help")
    assert (done.returncode, done.err) == (0, "")
    assert done.out.startswith(f"launch/{script} ")
    assert "To know:" in done.out
    assert world.calls() == []
    text = (LAUNCH / script).read_text()
    assert text.splitlines()[1].startswith("# ")
    assert "set -euo pipefail\n" in text
    assert os.access(LAUNCH / script, os.X_OK)
    if script != "multislice.sh":
        read = re.search(r'^read_options "([^"]*)"\s*(?:\\\n)?\s*"([^"]*)"', text, re.M)
        for option in f"{read[1]} {read[2]} dry_run".replace("\\\n", "").split():
            assert f"--{option}" in done.out, option


# ---- bad options: (script, its arguments, what the line names)

BAD = [
    *[(script, [*least, "--dry_runn", "--", *MAIN], ["--dry_runn", "--help"]) for script, least in LEAST.items()],
    *[(script, [*least, "--nam=x", "--", *MAIN], ["--nam=x", "--help"]) for script, least in LEAST.items()],
    *[
        (script, [*least, "--dry_run=1", "--", *MAIN], ["--dry_run", "'1'", "no value"])
        for script, least in LEAST.items()
    ],
    *[(script, [*least, "run1"], ["'run1'", "begin with --"]) for script, least in LEAST.items()],
    *[(script, [*least, *MAIN], ["--config", "stand after --"]) for script, least in LEAST.items()],
    *[(script, [*least, "--", MAIN[1]], ["--config", "missing", "configs/"]) for script, least in LEAST.items()],
    *[(script, [*least, "--", MAIN[0]], ["--workdir", "missing", "gs://"]) for script, least in LEAST.items()],
    *[
        (script, [*LEAST[script], "--", MAIN[0], "--workdir", "runs/a"], ["--workdir", "'runs/a'", "gs://"])
        for script in ("tpu_vm.sh", "multislice.sh", "gke.sh")
    ],
    *[("tpu_vm.sh", [o for o in TPU if o != left_out], [left_out.split("=")[0], "missing"]) for left_out in TPU],
    *[("gke.sh", [o for o in GKE if o != left_out], [left_out.split("=")[0], "missing"]) for left_out in GKE],
    *[("gke.sh", [o for o in XPK if o != left_out], [left_out.split("=")[0], "missing"]) for left_out in XPK[1:]],
    *[("slurm.sh", [o for o in SLURM if o != left_out], [left_out.split("=")[0], "missing"]) for left_out in SLURM],
    ("local.sh", ["--processes"], ["--processes", "--processes=VALUE"]),
    ("local.sh", ["--processes=two"], ["--processes", "'two'", "from 1"]),
    ("local.sh", ["--processes=0"], ["--processes", "'0'", "from 1"]),
    ("local.sh", ["--devices=-1"], ["--devices", "'-1'", "from 1"]),
    ("local.sh", ["--restarts=1.5"], ["--restarts", "'1.5'", "from 0"]),
    ("tpu_vm.sh", [*TPU, "--name=Run_1"], ["--name", "'Run_1'", "small letters"]),
    ("tpu_vm.sh", [*TPU, "--zone=us-central1"], ["--zone", "'us-central1'", "us-central1-a"]),
    ("tpu_vm.sh", [*TPU, "--accelerator_type=v5e"], ["--accelerator_type", "'v5e'", "v5litepod-16"]),
    ("tpu_vm.sh", [*TPU, "--slices=x"], ["--slices", "'x'", "from 1"]),
    ("tpu_vm.sh", [*TPU, "--most_restarts=many"], ["--most_restarts", "'many'", "from 0"]),
    ("tpu_vm.sh", [*TPU, "--poll="], ["--poll", "missing", "seconds"]),
    ("tpu_vm.sh", [*TPU, "--repo=here"], ["--repo", "'here'", "URL"]),
    ("tpu_vm.sh", [*TPU, "--", *MAIN], ["gcloud", "install"]),
    ("multislice.sh", TPU, ["--slices", "missing", "from 2"]),
    ("multislice.sh", ["--slices=1", *TPU], ["--slices", "'1'", "from 2"]),
    ("gke.sh", [*GKE, "--topology=4"], ["--topology", "'4'", "4x4"]),
    ("gke.sh", [*GKE, "--topology=3x3"], ["--chips", "'4'", "3x3"]),
    ("gke.sh", [*GKE, "--image=a b"], ["--image", "'a b'", "Dockerfile"]),
    ("gke.sh", [*XPK, "--spot"], ["--spot", "--xpk"]),
    ("slurm.sh", [*SLURM, "--time=long"], ["--time", "'long'", "24:00:00"]),
    ("slurm.sh", [*SLURM, "--python=a b"], ["--python", "'a b'", ".venv/bin/python"]),
]


@pytest.mark.parametrize(("script", "args", "parts"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else v)
def test_a_bad_option_ends_with_one_line_that_names_it(script, args, parts, world):
    done = world.run(script, *args)
    assert done.returncode == 2
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith(("tpu_vm.sh: ", f"{script}: "))
    for part in parts:
        assert part in done.err
    assert world.calls() == []


# ---- --dry_run prints what a run without incidents does

GCLOUD = """
case "$*" in
  *"queued-resources list"*)
    state=$(next "$STATE/states")
    [[ $state != broken ]] || { echo "no network" >&2; exit 1; }
    echo "$state" ;;
  *"queued-resources create"*) [[ ! -e $STATE/creates ]] || exit "$(next "$STATE/creates")" ;;
  *"tpu-vm list"*) next "$STATE/nodes" | while read -r state; do printf '%s\\n' $state; done ;;
  *selfreward_jax.main*)
    touch "$STATE/begun.$5"
    for other in ${WAIT_FOR-}; do
      for ((i = 0; i < 200; i++)); do [[ ! -e $STATE/begun.$other ]] || break; sleep 0.02; done
      ((i < 200)) || exit 1
    done
    [[ ! ${FOREVER-} ]] || exec sleep 60
    echo "step 1 of $5"
    code=$(next "$STATE/codes")
    if [[ $code == worker* ]]; then
      echo "##### Command execution on $code failed with exit status 2. Continuing." >&2
      code=75
    fi
    exit "$code" ;;
esac
"""

CLUSTERS = {
    "one slice": ("tpu_vm.sh", [*TPU, "--spot", "--delete", "--poll=0"]),
    "from a repository": (
        "tpu_vm.sh",
        [*TPU, "--repo=https://host/a.git", "--poll=0", "--create_options=--network=n --tags=t"],
    ),
    "kubectl": ("gke.sh", GKE),
    "xpk": ("gke.sh", XPK),
    "slurm": ("slurm.sh", [*SLURM, "--partition=gpu", "--account=a", "--sbatch_options=--qos=low --mem=0"]),
    "local": ("local.sh", ["--processes=1"]),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_dry_run_prints_exactly_what_a_run_does_and_does_nothing(name, world):
    script, args = CLUSTERS[name]
    args = [*args, "--", *MAIN, *ODD]
    printed = world.run(script, "--dry_run", *args)
    assert (printed.returncode, printed.err) == (0, ""), printed.err
    assert sorted(p.name for p in world.path.iterdir()) == ["bin", "calls", "tools"]
    assert world.calls() == []

    world.stub("gcloud", GCLOUD)
    for tool in ("kubectl", "xpk", "sbatch"):
        world.stub(tool, 'cat >"$STATE/input"' if tool == "kubectl" else "")
    world.stub("python", 'echo "$XLA_FLAGS $JAX_PLATFORMS" >>"$STATE/input"')

    def done(text):
        """What the tools are told, and what they read."""
        world.lines("states", "", "ACTIVE")
        world.lines("nodes", "READY")
        world.lines("codes", 0)
        world.log.write_text("")
        text()
        told = [[re.sub(r"(127.0.0.1):\d+", r"\1:PORT", word) for word in call] for call in world.calls()]
        read = world.path / "input"
        return told, read.read_text() if read.exists() else ""

    def real():
        process = world.run(script, *args)
        assert process.returncode == 0, process.err

    told = done(real)
    assert told[0]
    (world.path / "input").unlink(missing_ok=True)
    assert done(lambda: [bash(world, line) for line in printed.out.splitlines()]) == told


# ---- Cloud TPU VMs


def kinds(world):
    """What gcloud was asked, in short."""
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


def test_a_run_creates_waits_sets_up_and_runs_and_leaves_the_tpus(tpu, world):
    done = tpu(
        ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], [0], "--spot", nodes=["", "", "CREATING", "READY"]
    )
    assert done.returncode == 0
    assert kinds(world) == ["look", "create", "look", "look", "look", "look", "main"]
    assert "run1 is PROVISIONING" in done.err
    create = next(c for c in world.calls("gcloud") if "create" in c)
    assert create[1:6] == ["compute", "tpus", "queued-resources", "create", "run1"]
    assert {"--node-id=run1", "--accelerator-type=v5litepod-16", "--runtime-version=v2-x", "--spot"} <= set(create)
    told = [c for c in world.calls("gcloud") if c[3] == "tpu-vm" and c[4] != "list"]
    assert all({"--worker=all", "--zone=us-central1-a", "--project=proj"} <= set(c) for c in told)
    assert [c[4] for c in told] == ["ssh", "scp", "ssh", "ssh"]
    assert "-r requirements.txt 'jax[tpu]'" in told[2][-1]
    assert "[run1] step 1 of run1" in done.out
    assert "step 1 of run1" in (world.path / "runs/launch/run1.log").read_text()


def test_preempted_tpus_are_replaced_and_the_run_goes_on(tpu, world):
    done = tpu(["", "ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"], [255, 0])
    assert done.returncode == 0, done.err
    again = ["look", "look", "delete", "look", "create", "look", "main"]
    assert kinds(world) == ["look", "create", "look", "main", *again]
    mains = [c for c in world.calls("gcloud") if "selfreward_jax.main" in c[-1]]
    assert mains[0] == mains[1]
    delete = next(c for c in world.calls("gcloud") if "delete" in c)
    assert {"run1", "--force", "--quiet"} <= set(delete)


def test_a_preempted_node_counts_before_its_resource_says_so(tpu, world):
    done = tpu(["ACTIVE", "ACTIVE", "", "ACTIVE"], [255, 0], nodes=["READY", "PREEMPTED", "READY"])
    assert done.returncode == 0, done.err
    assert kinds(world) == ["look", "main", "look", "delete", "look", "create", "look", "main"]


def test_tpus_that_are_there_are_used_again_after_a_lost_process(tpu, world):
    assert tpu(["ACTIVE"], [75, 137, 1, 0]).returncode == 0
    assert kinds(world) == ["look", "main"] * 4


@pytest.mark.parametrize("code", [2, "worker 3"])
def test_bad_input_is_not_started_again(code, tpu, world):
    assert tpu(["ACTIVE"], [code]).returncode == 2
    assert kinds(world) == ["look", "main"]


@pytest.mark.parametrize("code", [0, 2])
def test_delete_deletes_at_the_end(code, tpu, world):
    assert tpu(["ACTIVE"], [code], "--delete").returncode == code
    assert kinds(world)[-2:] == ["main", "delete"]


def test_tpu_restarts_have_a_limit(tpu, world):
    done = tpu(["ACTIVE"], [75], "--most_restarts=2", "--delete")
    assert done.returncode == 75
    assert "--most_restarts=2 is used up" in done.err
    assert kinds(world) == ["look", "main"] * 3 + ["delete"]


def test_a_request_that_fails_over_and_over_has_a_limit(tpu, world):
    done = tpu(["FAILED"], [0], "--most_restarts=1")
    assert done.returncode == 75
    assert "run1 is FAILED" in done.err
    assert kinds(world) == ["look", "delete", "look"]


def test_gcloud_that_never_answers_ends_the_script_and_a_lost_answer_does_not(tpu, world):
    done = tpu(["broken"], [0])
    assert done.returncode == 1
    assert "no network" in done.err
    assert tpu(["ACTIVE", "broken", "ACTIVE"], [255, 0]).returncode == 0


def test_a_request_that_is_refused_ends_the_script_at_first_and_is_repeated_later(tpu, world):
    world.lines("creates", 2)
    assert tpu([""], [0]).returncode == 2
    assert kinds(world) == ["look", "create"]
    world.log.write_text("")
    world.lines("creates", 0, 1, 0)
    assert tpu(["", "ACTIVE", "SUSPENDED", "", "", "ACTIVE"], [255, 0]).returncode == 0
    again = ["delete", "look", "create", "look", "create", "look", "main"]
    assert kinds(world) == ["look", "create", "look", "main", "look", *again]


def test_several_slices_run_together_and_are_told_how_many_they_are(tpu, world):
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


def test_a_slice_that_is_not_ready_is_waited_for(tpu, world):
    assert tpu(["ACTIVE"], [0], "--slices=2", nodes=["READY", "READY CREATING", "READY READY"]).returncode == 0
    assert kinds(world) == ["look", "look", "look", "main", "main"]


def test_a_signal_ends_what_the_script_started_and_deletes_nothing(world):
    world.stub("gcloud", GCLOUD)
    world.lines("states", "ACTIVE")
    world.lines("nodes", "READY")
    script = world.start("tpu_vm.sh", *TPU, "--poll=0", "--delete", "--", *MAIN, FOREVER="1")
    wait_for((world.path / "begun.run1").exists)
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=60)
    assert script.returncode == 143
    assert kinds(world) == ["look", "main"]


def test_a_worker_ends_a_process_that_lost_its_connection_and_gets_its_arguments_unchanged(tpu, world):
    assert tpu(["ACTIVE"], [0], main=[*MAIN, *ODD]).returncode == 0
    command = world.calls("gcloud")[-1][-1].removeprefix("--command=")
    # A shell plays the interpreter: it too takes -m and a file to run.
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
        (home / "main.pid").write_text(f"{other.pid}\n")  # the number is another program's by now
        bash(world, command)
        assert other.poll() is None
    finally:
        lost.kill()
        other.kill()


# ---- GKE

WORD = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}


def closed(required, **properties):
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


def many(items, **more):
    return {"type": "array", "items": items, "minItems": 1} | more


# The fields that the manifest uses, with the types that JobSet's and Kubernetes' own schemas give them.
RULE = closed("name action", name=WORD, action={"enum": ["FailJobSet", "RestartJobSet"]}, onJobFailureReasons=many(
    {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "PodFailurePolicy"]}))  # fmt: skip
EXIT_CODES = closed("operator values", containerName=WORD, operator={"enum": ["In", "NotIn"]}, values=many(
    {"type": "integer", "minimum": 1, "maximum": 255}, uniqueItems=True))  # fmt: skip
CONTAINER = closed(
    "name image",
    name=WORD,
    image=WORD,
    securityContext=closed("", privileged={"type": "boolean"}),
    ports=many(closed("containerPort", containerPort={"type": "integer", "minimum": 1, "maximum": 65535})),
    command=many(WORD),
    args=many(WORD),
    resources=closed("limits", limits={"type": "object", "additionalProperties": COUNT}),
)
POD = closed(
    "containers restartPolicy",
    restartPolicy={"const": "Never"},  # where there is a podFailurePolicy
    serviceAccountName=WORD,
    nodeSelector={"type": "object", "additionalProperties": WORD},
    containers=many(CONTAINER),
)
JOB = closed(
    "template",
    parallelism=COUNT,
    completions=COUNT,
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    backoffLimit=COUNT,
    podFailurePolicy=closed("rules", rules=many(
        closed("action", action={"enum": ["FailJob", "Ignore", "Count"]}, onExitCodes=EXIT_CODES))),
    template=closed("spec", spec=POD),
)  # fmt: skip
JOBSET = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed("name", name=WORD, namespace=WORD, annotations={"type": "object", "additionalProperties": WORD}),
    spec=closed(
        "replicatedJobs",
        failurePolicy=closed("", maxRestarts=COUNT, rules=many(RULE)),
        replicatedJobs=many(closed("name template", name=WORD, replicas=COUNT, template=closed("spec", spec=JOB))),
    ),
)


def faults(schema, value):
    jsonschema = pytest.importorskip("jsonschema")
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(value)]


def manifest(world, *options):
    done = world.run("gke.sh", *GKE, "--manifest", *options)
    assert done.returncode == 0, done.err
    assert "${" not in done.out.split("args:")[0]
    return yaml.safe_load(done.out)


def test_the_manifest_is_a_jobset(world):
    found = manifest(
        world, "--spot", "--slices=3", "--topology=4x8", "--namespace=ns", "--service_account=sa", "--", *MAIN
    )
    assert faults(JOBSET, found) == []
    assert found["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    (slices,) = found["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (3, 8, 8)
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == "sa"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["python", "-m", "selfreward_jax.main", "--distributed"]
    assert container["args"] == ["--config.parallel.replicas=3", *MAIN]


def test_the_manifest_ends_on_bad_input_and_starts_all_again_on_anything_else(world):
    found = manifest(world, "--most_restarts=7", "--", *MAIN)
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0  # a pod that failed fails its Job, and that restarts the JobSet
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "main", "operator": "In", "values": [2]}
    assert job["template"]["spec"]["containers"][0]["name"] == "main"


def test_a_pod_gets_its_arguments_unchanged_and_one_slice_no_replicas(world):
    found = manifest(world, "--", *MAIN, *ODD)
    pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    # As Kubernetes reads them: $$ is $, and a single $ before a bracket would be a variable.
    args = pod["containers"][0]["args"]
    assert not any("$(" in a.replace("$$", "") for a in args)
    assert [a.replace("$$", "$") for a in args] == [*MAIN, *ODD]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("spec.replicatedJobs.0.replicas", "${SLICES}"),
        ("spec.replicatedJobs.0.template.spec.template.spec.restartPolicy", "OnFailure"),
        ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.onExitCodes.values", [0]),
        ("spec.failurePolicy.rules.0.onJobFailureReasons", ["ExitCode"]),
        ("spec.failurePolicy.maxRestart", 3),
        ("apiVersion", "jobset.x-k8s.io/v1"),
    ],
)
def test_the_schema_sees_what_is_no_jobset(way, value, world):
    found = copy.deepcopy(manifest(world, "--", *MAIN))
    *above, last = way.split(".")
    place = found
    for step in above:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    assert faults(JOBSET, found)


def test_gke_ends_with_the_exit_code_of_kubectl(world):
    world.stub("kubectl", "exit 7")
    assert world.run("gke.sh", *GKE, "--", *MAIN).returncode == 7
    assert world.calls() == [["kubectl", "apply", "-f", "-"]]


def test_xpk_starts_again_on_the_same_codes_and_gets_the_arguments_unchanged(world):
    world.stub("xpk")
    assert world.run("gke.sh", *XPK, "--slices=2", "--", *MAIN, *ODD).returncode == 0
    ((tool, *words),) = world.calls()
    assert [tool, *words[:2]] == ["xpk", "workload", "create"]
    told = dict(w.removeprefix("--").split("=", 1) for w in words[2:])
    assert told["num-slices"] == "2"
    assert told["tpu-type"] == "v6e-16"
    again = {42, *range(127, 256)}  # what xpk starts again on by itself
    for span in told["restart-on-exit-codes"].split(","):
        first, _, last = span.partition("-")
        again |= set(range(int(first), int(last or first) + 1))
    assert set(range(1, 256)) - again == {2}
    program = ["python", "-m", "selfreward_jax.main", "--distributed", "--config.parallel.replicas=2"]
    assert shlex.split(told["command"]) == [*program, *MAIN, *ODD]


# ---- SkyPilot

CODE = {"type": "integer", "minimum": 0, "maximum": 255}
SKY = closed(
    "name resources envs workdir setup run",
    name=WORD,
    workdir=WORD,
    num_nodes={"type": "integer", "minimum": 1},
    resources=closed(
        "accelerators use_spot job_recovery",
        infra=WORD,
        accelerators=WORD,
        accelerator_args=closed("", runtime_version=WORD, tpu_vm={"type": "boolean"}),
        use_spot={"type": "boolean"},
        job_recovery=closed(
            "",
            strategy={"enum": ["FAILOVER", "EAGER_NEXT_REGION"]},
            max_restarts_on_errors=COUNT,
            recover_on_exit_codes=many(CODE, uniqueItems=True),
        ),
    ),
    envs={"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    setup=WORD,
    run=WORD,
)


def sky(name):
    return yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", ["sky_tpu", "sky_gpu"])
def test_the_sky_files_are_managed_jobs_that_recover_on_75_alone(name):
    task = sky(name)
    assert faults(SKY, task) == []
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] == 0
    assert task["envs"]["WORKDIR"] is None  # SkyPilot refuses a job without it
    assert "sky jobs launch" in (LAUNCH / f"{name}.yaml").read_text()
    for field, value in (("job_recovery", "75"), ("recovery", {}), ("accelerators", {"H100": 8})):
        wrong = copy.deepcopy(task)
        wrong["resources"][field] = value
        assert faults(SKY, wrong)


@pytest.mark.parametrize(("code", "told"), [(0, 0), (2, 2), (1, 1), (75, 75), (137, 75), (143, 75)])
@pytest.mark.parametrize("name", ["sky_tpu", "sky_gpu"])
def test_a_sky_machine_runs_its_process_and_tells_a_signal_as_75(name, code, told, world):
    python = world.path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    world.stub("python", f"exit {code}")
    shutil.move(world.bin / "python", python)
    env = {"CONFIG": "c.py:x", "WORKDIR": "gs://b/r", "OPTIONS": "--config.seed=1 --config.sft.batch=8"}
    env |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
    done = subprocess.run(["bash", "-c", sky(name)["run"]], cwd=world.path, env=world.env | env)
    assert done.returncode == told
    ((_, *words),) = world.calls()
    flags = {
        "sky_tpu": ["--distributed"],
        "sky_gpu": ["--coordinator_address=10.0.0.1:8476", "--num_processes=2", "--process_id=1"],
    }
    options = ["--config=c.py:x", "--workdir=gs://b/r", "--config.seed=1", "--config.sft.batch=8"]
    assert words == ["-m", "selfreward_jax.main", *flags[name], *options]


# ---- Slurm


def test_slurm_asks_for_one_process_for_each_gpu(world):
    world.stub("sbatch")
    options = ["--most_requeues=3", "--python=/env/bin/python", "--partition=gpu", "--sbatch_options=--qos=low --mem=0"]
    assert world.run("slurm.sh", *SLURM, *options, "--", *MAIN, *ODD).returncode == 0
    ((_, *words),) = world.calls()
    here = words.index(str(LAUNCH / "slurm.sbatch"))
    wanted = {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu", "--qos=low", "--mem=0"}
    assert wanted | {"--export=ALL,PYTHON=/env/bin/python,MOST_REQUEUES=3"} <= set(words[:here])
    assert words[here + 1 :] == [*MAIN, *ODD]


def test_the_job_may_be_put_back_and_hears_of_its_time_limit():
    directives = re.findall(r"^#SBATCH (.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    assert {"--requeue", "--open-mode=append", "--signal=B:TERM@120"} <= set(directives)


# Starts a task for each code, tells the highest code, and passes a signal on to all processes of a task, as srun does.
SRUN = """
while [[ $1 == --* ]]; do shift; done
tasks=() rank=0 worst=0
echo $$ >"$STATE/srun"
trap 'for task in "${tasks[@]}"; do kill -TERM -- "-$task"; done' TERM
for code in $CODES; do
  set -m
  CODE=$code SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
  set +m
  tasks+=($!) rank=$((rank + 1))
done
for task in "${tasks[@]}"; do
  until wait "$task"; do kill -0 "$task" 2>/dev/null || break; done
  wait "$task"; code=$?
  ((code <= worst)) || worst=$code
done
exit "$worst"
"""
TASK = """
if [[ $CODE == wait* ]]; then
  trap 'exit ${CODE#wait}' TERM
  touch "$STATE/begun.$SLURM_PROCID"
  while sleep 0.02; do :; done
fi
exit "$CODE"
"""


@pytest.fixture
def job(world):
    def start(codes, **env):
        world.stub("srun", SRUN)
        world.stub("python", TASK)
        world.stub("scontrol", 'exit "${REFUSED:-0}"')
        world.stub("scancel", 'kill -TERM "$(cat "$STATE/srun")"')
        return world.start("slurm.sbatch", *MAIN, *ODD, SLURM_JOB_ID="17", CODES=codes, **env)

    def run(codes, **env):
        process = start(codes, **env)
        process.out, process.err = process.communicate(timeout=60)
        return process

    run.start = start
    return run


REQUEUE = [["scontrol", "requeue", "17"]]


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [
        ("0 0", 0, False),
        ("75 75", 75, True),
        ("0 137", 137, True),
        ("2 2", 2, False),
        ("75 2", 2, False),  # srun tells 75
        ("2 143", 2, False),  # srun tells 143
        ("1 143", 1, False),
    ],
)
def test_the_job_is_put_back_for_a_lost_process_and_for_nothing_else(codes, code, requeued, job, world):
    done = job(codes)
    assert done.returncode == code, done.err
    assert world.calls("scontrol") == (REQUEUE if requeued else [])
    for call in world.calls("python"):
        assert call[1:] == ["-m", "selfreward_jax.main", "--distributed", *MAIN, *ODD]
    assert len(world.calls("python")) == 2
    assert not list(world.path.glob("*.final*"))


def test_requeues_have_a_limit(job, world):
    assert job("75", MOST_REQUEUES="3", SLURM_RESTART_COUNT="2").returncode == 75
    assert world.calls("scontrol") == REQUEUE
    done = job("75", MOST_REQUEUES="3", SLURM_RESTART_COUNT="3")
    assert done.returncode == 75
    assert "MOST_REQUEUES=3 is used up" in done.err
    assert world.calls("scontrol") == REQUEUE


def test_a_job_that_may_not_be_put_back_says_so(job):
    done = job("75", REFUSED="1")
    assert done.returncode == 75
    assert "submit it again" in done.err


@pytest.mark.parametrize(("end", "requeued"), [(143, True), (0, False)])
def test_at_the_time_limit_the_step_is_ended_and_the_job_put_back(end, requeued, job, world):
    process = job.start(f"wait{end} wait{end}")
    wait_for(lambda: all((world.path / f"begun.{i}").exists() for i in range(2)))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == end
    assert world.calls("scancel") == [["scancel", "--signal=TERM", "17"]]
    assert world.calls("scontrol") == (REQUEUE if requeued else [])


# ---- this machine

# Each start of process I takes the next line of codes.I: an exit code, -SIGNAL, or how it waits for a signal.
PYTHON = """
for word in "$@"; do [[ $word != --process_id=* ]] || id=${word#*=}; done
echo "hello from $id"
echo "trouble in $id" >&2
echo "$XLA_FLAGS|$JAX_PLATFORMS" >"$STATE/env.$id"
code=$(next "$STATE/codes.$id")
echo $$ >"$STATE/pid.$id"
case $code in
  wait) exec sleep 60 ;;
  last)
    trap 'sleep 0.2; echo "last words from $id"; exit 143' TERM
    touch "$STATE/ready.$id"
    while sleep 0.02; do :; done ;;
  -*) kill "$code" $$ ;;
  *)
    printf 'bye from %s' "$id"
    exit "$code" ;;
esac
"""


@pytest.fixture
def local(world):
    def start(codes, *options, **env):
        world.stub("python", PYTHON)
        for i, each in enumerate(codes):
            world.lines(f"codes.{i}", *each)
        world.log.write_text("")
        return world.start("local.sh", f"--processes={len(codes)}", *options, "--", *MAIN, *ODD, **env)

    def run(*args, **env):
        process = start(*args, **env)
        process.out, process.err = process.communicate(timeout=60)
        return process

    run.start = start
    return run


def test_local_starts_each_process_with_its_flags_and_shows_and_keeps_what_it_says(local, world):
    done = local([[0], [0], [0]], "--devices=4", "--logs=logs", XLA_FLAGS="--xla_x=1")
    assert (done.returncode, done.err) == (0, "")
    calls = sorted(world.calls("python"), key=lambda c: c[5])
    port = int(calls[0][3].removeprefix("--coordinator_address=127.0.0.1:"))
    for i, call in enumerate(calls):
        flags = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=3", f"--process_id={i}"]
        assert call[1:] == ["-m", "selfreward_jax.main", *flags, *MAIN, *ODD]
        assert (world.path / f"env.{i}").read_text() == "--xla_x=1 --xla_force_host_platform_device_count=4|cpu\n"
        said = [f"hello from {i}", f"trouble in {i}", f"bye from {i}"]
        assert (world.path / "logs" / f"process_{i}.log").read_text().splitlines() == said
        assert [line for line in done.out.splitlines() if line.startswith(f"[{i}] ")] == [f"[{i}] {s}" for s in said]
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([0, 0], 0),
        ([0, 75], 75),
        ([75, 2], 2),
        ([2, 1], 2),
        ([75, 1], 1),
        (["-KILL", 1], 1),
        ([75, "-KILL"], 137),
        (["-TERM", 0], 143),
    ],
)
def test_local_ends_with_the_code_that_says_most(codes, worst, local):
    assert local([[c] for c in codes]).returncode == worst


@pytest.mark.parametrize("first", [(75, 75), ("-KILL", 75), (75, 134)])
def test_local_starts_all_again_when_a_process_is_lost(first, local, world):
    done = local([[first[0], 0], [first[1], 0]], "--restarts=1")
    assert done.returncode == 0, done.err
    assert "restart 1 of 1" in done.err
    assert sorted(c[5] for c in world.calls("python")) == ["--process_id=0"] * 2 + ["--process_id=1"] * 2
    log = (world.path / "runs/local/process_0.log").read_text()
    assert log.count("hello from 0") == 2


@pytest.mark.parametrize(("codes", "code"), [((75, 2), 2), ((1, 75), 1), ((0, 0), 0)])
def test_local_does_not_start_again_on_bad_input_or_an_error(codes, code, local, world):
    assert local([[c] for c in codes], "--restarts=5").returncode == code
    assert len(world.calls("python")) == 2


def test_local_restarts_have_a_limit(local, world):
    done = local([[75], [75]], "--restarts=2")
    assert done.returncode == 75
    assert "--restarts=2 is used up" in done.err
    assert len(world.calls("python")) == 6


def test_local_starts_again_after_one_process_was_killed_from_outside(local, world):
    process = local.start([["wait", 0], [75, 0]], "--restarts=1")
    wait_for((world.path / "pid.0").exists)
    wait_for(lambda: (world.path / "pid.0").read_text())
    os.kill(int((world.path / "pid.0").read_text()), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.count("[0] hello from 0") == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_processes_that_local_started_and_no_others(number, code, local, world):
    bystander = subprocess.Popen(["sleep", "60"])  # what the processes become, too
    try:
        process = local.start([["wait"], ["wait"]], "--restarts=5")
        wait_for(lambda: all((world.path / f"pid.{i}").exists() for i in range(2)))
        wait_for(lambda: all((world.path / f"pid.{i}").read_text() for i in range(2)))
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code
        assert not [i for i in range(2) if running((world.path / f"pid.{i}").read_text().strip())]
        assert bystander.poll() is None
        assert len(world.calls("python")) == 2
    finally:
        bystander.kill()


def test_local_waits_for_the_last_words_of_a_process_that_is_ended(local, world):
    process = local.start([["last"]], "--logs=logs")
    wait_for((world.path / "ready.0").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert "last words from 0" in (world.path / "logs" / "process_0.log").read_text()
    assert "[0] last words from 0" in process.communicate()[0]
