#!/usr/bin/env bash
# launch/slurm.sh --nodes=N --gpus=PER_NODE [--time=24:00:00] [--partition=NAME] [--account=NAME] [--cpus=8] [--name=NAME]
#     [--sbatch_options="--qos=low ..."] [--max_requeues=30] [--python=.venv/bin/python] (--gpu=KIND | --no_check) [--dry_run]
#     -- --config=FILE[:PRESET] --workdir=/SHARED/RUN [--config.FIELD=VALUE ...]
#
# Runs selfreward_jax.main on GPUs of a Slurm cluster: submits launch/slurm.sbatch. There is one process for each GPU, since
# JAX uses under Slurm the GPU with number SLURM_LOCALID only. The project's folder, the environment and the working
# directory must be on a file system that all nodes share.
#
#   --nodes, --gpus   number of nodes, and of GPUs per node
#   --time            time limit; the job is requeued two minutes before it
#   --cpus            CPU cores per process
#   --sbatch_options  more options of sbatch, separated by spaces
#   --max_requeues    maximum number of requeues after a preemption, the time limit, exit code 75 or a signal
#   --python          the interpreter, relative to the project's folder
#   --gpu             what the GPUs are, such as h100 or a100-40, for the check; "gpu" for others, whose memory is not known
#   --no_check        submit without a check on this machine
#   --dry_run         print the command and run nothing
#
# Notes: the command returns at once. Output goes to slurm-JOB.out in the project's folder. Exit code 2 (bad input) and any
# other error of the program end the job. The site decides whether a job may be requeued. --gpus-per-task in
# --sbatch_options would hide from each process the GPU that JAX looks for.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

nodes='' gpus='' time=24:00:00 partition='' account='' cpus=8 name=selfreward sbatch_options='' max_requeues=30
python=.venv/bin/python gpu=''
read_options "nodes gpus time partition account cpus name sbatch_options max_requeues python gpu" "no_check" "$@"
require nodes "$positive" "give the number of nodes, from 1"
require gpus "$positive" "give the number of GPUs per node, from 1"
require time "([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}" "give a time limit such as 24:00:00 or 2-00:00:00"
require cpus "$positive" "give the number of cores per process, from 1"
require name "[-A-Za-z0-9._]+" "give a name of letters, digits and dashes"
require max_requeues "$nonnegative" "give the maximum number of requeues, from 0"
require python "[^ ,]+" "give an interpreter that exists on all nodes, such as .venv/bin/python"
((no_check)) || require gpu "[a-z0-9-]+" "say what the GPUs are, such as h100: the run is checked for their memory"
require_main

more=()
[[ ! $partition ]] || more+=(--partition="$partition")
[[ ! $account ]] || more+=(--account="$account")
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
check_main "$gpu:$((nodes * gpus))"
# shellcheck disable=SC2086  # several options in one word
run sbatch --chdir="$root" --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" \
  --cpus-per-task="$cpus" --time="$time" ${more[@]+"${more[@]}"} $sbatch_options \
  --export="ALL,PYTHON=$python,MAX_REQUEUES=$max_requeues" "$root/launch/slurm.sbatch" "${main[@]}"
