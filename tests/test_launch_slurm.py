"""The Slurm script and its job, with fakes of sbatch, srun, scontrol and scancel."""

import re
import signal

import launch_stand_ins
import pytest
from launch_stand_ins import LAUNCH, MAIN, ODD, SLURM, wait_for

world = launch_stand_ins.world  # a fixture


def test_slurm_requests_one_process_for_each_gpu(world):
    world.stub("sbatch")
    options = [
        "--no_check",
        "--max_requeues=3",
        "--python=/env/bin/python",
        "--partition=gpu",
        "--sbatch_options=--qos=low --mem=0",
    ]
    assert world.run("slurm.sh", *SLURM, *options, "--", *MAIN, *ODD).returncode == 0
    ((_, *words),) = world.calls()
    end = words.index(str(LAUNCH / "slurm.sbatch"))
    wanted = {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu", "--qos=low", "--mem=0"}
    assert wanted | {"--export=ALL,PYTHON=/env/bin/python,MAX_REQUEUES=3"} <= set(words[:end])
    assert words[end + 1 :] == [*MAIN, *ODD]


def test_the_job_can_be_requeued_and_is_signalled_before_its_time_limit():
    directives = re.findall(r"^#SBATCH (.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    assert {"--requeue", "--open-mode=append", "--signal=B:TERM@120"} <= set(directives)


# As srun does: starts a task for each code, returns the highest code, and forwards a signal to all processes of a task.
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
  touch "$STATE/started.$SLURM_PROCID"
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
        ("75 2", 2, False),  # srun returns 75
        ("2 143", 2, False),  # srun returns 143
        ("1 143", 1, False),
    ],
)
def test_the_job_is_requeued_after_a_lost_process_only(codes, code, requeued, job, world):
    done = job(codes)
    assert done.returncode == code, done.err
    assert world.calls("scontrol") == (REQUEUE if requeued else [])
    for call in world.calls("python"):
        assert call[1:] == ["-m", "selfreward_jax.main", "--distributed", *MAIN, *ODD]
    assert len(world.calls("python")) == 2
    assert not list(world.path.glob("*.final*"))


def test_requeues_have_a_limit(job, world):
    assert job("75", MAX_REQUEUES="3", SLURM_RESTART_COUNT="2").returncode == 75
    assert world.calls("scontrol") == REQUEUE
    done = job("75", MAX_REQUEUES="3", SLURM_RESTART_COUNT="3")
    assert done.returncode == 75
    assert "MAX_REQUEUES=3" in done.err
    assert world.calls("scontrol") == REQUEUE


def test_a_job_that_cannot_be_requeued_prints_one_more_line(job):
    done, other = job("75", REFUSED="1"), job("75")
    assert done.returncode == 75
    assert done.err.count("\n") == other.err.count("\n") + 1


@pytest.mark.parametrize(("end", "requeued"), [(143, True), (0, False)])
def test_at_the_time_limit_the_step_ends_and_the_job_is_requeued(end, requeued, job, world):
    process = job.start(f"wait{end} wait{end}")
    wait_for(lambda: all((world.path / f"started.{i}").exists() for i in range(2)))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == end
    assert world.calls("scancel") == [["scancel", "--signal=TERM", "17"]]
    assert world.calls("scontrol") == (REQUEUE if requeued else [])
