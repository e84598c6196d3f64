#!/usr/bin/env bash
# launch/slurm.sh --nodes=N --gpus=PER_NODE [--time=24:00:00] [--partition=NAME] [--account=NAME] [--cpus=8] [--name=NAME]
#     [--sbatch_options="--qos=low ..."] [--most_requeues=30] [--python=.venv/bin/python] [--dry_run]
#     -- --config=FILE[:SCALE] --workdir=/SHARED/RUN [--config.FIELD=VALUE ...]
#
# One run of selfreward_jax.main on GPUs by Slurm: submits launch/slurm.sbatch. One process for each GPU, as JAX takes
# from Slurm the GPU whose number is SLURM_LOCALID and no other. The project's folder, the environment and the working
# directory must be on a file system that all nodes share.
#
#   --nodes, --gpus   nodes, and GPUs of each
#   --time            time limit; the job is put back into the queue two minutes before it
#   --cpus            CPU cores for each process
#   --sbatch_options  further options of sbatch, separated by spaces
#   --most_requeues   how often the job may be put back after a preemption, the time limit, exit code 75 or a signal
#   --python          the interpreter, from the project's folder
#   --dry_run         print the command and run nothing
#
# To know: the command comes back at once. Output goes to slurm-JOB.out in the project's folder. Exit code 2 (bad input)
# and any other error of the program end the job. Whether a job may be requeued, the site decides. --gpus-per-task in
# --sbatch_options would hide from each process the GPU that JAX looks for.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

nodes='' gpus='' time=24:00:00 partition='' account='' cpus=8 name=selfreward sbatch_options='' most_requeues=30
python=.venv/bin/python
read_options "nodes gpus time partition account cpus name sbatch_options most_requeues python" "" "$@"
need nodes "$positive" "give the number of nodes, from 1"
need gpus "$positive" "give the number of GPUs of a node, from 1"
need time "([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}" "give a time limit such as 24:00:00 or 2-00:00:00"
need cpus "$positive" "give the number of cores of a process, from 1"
need name "[-A-Za-z0-9._]+" "give a name of letters, digits and dashes"
need most_requeues "$whole" "give the most requeues, from 0"
need python "[^ ,]+" "give an interpreter that all nodes have, such as .venv/bin/python"
need_main

more=()
[[ ! $partition ]] || more+=(--partition="$partition")
[[ ! $account ]] || more+=(--account="$account")
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck disable=SC2086  # several options in one word
run sbatch --chdir="$root" --job-name="$name" --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" \
  --cpus-per-task="$cpus" --time="$time" ${more[@]+"${more[@]}"} $sbatch_options \
  --export="ALL,PYTHON=$python,MOST_REQUEUES=$most_requeues" "$root/launch/slurm.sbatch" "${main[@]}"
