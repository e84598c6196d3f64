"""Fakes of the tools that the launch scripts call, which record their calls; and options of the scripts."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
# All tools that a script may find in PATH, besides the fakes: the real gcloud or kubectl must never be called.
TOOLS = "bash cat dirname env grep head mkdir rm sed sleep stat tail touch".split()

MAIN = ["--config=configs/iter3.py:llama3_8b", "--workdir=gs://bucket/run"]
# Options that need quoting on their way through two shells, YAML and Kubernetes.
ODD = ["--config.data.ift=a b", '--config.x=it\'s "$HOME" $(NAME) ${NAME} & \\n ; *']
TPU = "--name=run1 --project=proj --zone=us-central1-a --accelerator_type=v5litepod-16 --runtime_version=v2-x".split()
GKE = "--name=run1 --image=reg.dev/p/i:1 --accelerator=tpu-v6e-slice --topology=4x4".split()
SLURM = "--nodes=2 --gpus=4 --gpu=gpu".split()


RECORD = """#!/usr/bin/env bash
printf '%s\\037' "${0##*/}" "$@" $'\\036' >>"$CALLS" # one write, since several processes append
# Prints and removes the first line of a file; the last line stays.
next() {
  local lines; mapfile -t lines <"$1"
  ((${#lines[@]} < 2)) || printf '%s\\n' "${lines[@]:1}" >"$1"
  echo "${lines[0]-}"
}
"""


class World:
    """A folder with the fakes, and the calls that they recorded."""

    def __init__(self, path):
        self.path, self.bin, self.log = path, path / "bin", path / "calls"
        tools = path / "tools"
        for folder in (self.bin, tools):
            folder.mkdir()
        for name in TOOLS:
            (tools / name).symlink_to(shutil.which(name))
        self.env = {"PATH": f"{self.bin}:{tools}", "HOME": str(path), "CALLS": str(self.log), "STATE": str(path)}
        self.log.touch()
        self.stub("python3")  # it checks a run before a script creates anything

    def stub(self, name, body=""):
        file = self.bin / name
        file.write_text(RECORD + body)
        file.chmod(0o755)

    def lines(self, name, *values):
        (self.path / name).write_text("".join(f"{v}\n" for v in values))

    def start(self, script, *args, **env):
        command = ["bash", LAUNCH / script, *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # In the background Ctrl-C is ignored, which bash inherits and cannot undo.
        restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        return subprocess.Popen(command, cwd=self.path, env=self.env | env, text=True, preexec_fn=restore, **pipes)

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
    raise AssertionError("timed out")


def bash(world, text, **env):
    done = subprocess.run(["bash", "-c", text], cwd=world.path, env=world.env | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


GCLOUD = """
case "$*" in
  *"queued-resources list"*)
    state=$(next "$STATE/states")
    [[ $state != broken ]] || { echo "no network" >&2; exit 1; }
    echo "$state" ;;
  *"queued-resources create"*) [[ ! -e $STATE/creates ]] || exit "$(next "$STATE/creates")" ;;
  *"tpu-vm list"*) next "$STATE/nodes" | while read -r state; do printf '%s\\n' $state; done ;;
  *scp*)
    for word in "$@"; do
      [[ $word == */environment ]] || continue
      { printf '%s\n' "$word" "$(stat -c %a "$word")" && cat "$word"; } >"$STATE/environment"
    done ;;
  *selfreward_jax.main*)
    touch "$STATE/started.$5"
    for other in ${WAIT_FOR-}; do
      for ((i = 0; i < 200; i++)); do [[ ! -e $STATE/started.$other ]] || break; sleep 0.02; done
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
