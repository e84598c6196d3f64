#!/usr/bin/env bash
# launch/local.sh [--processes=2] [--devices=1] [--restarts=0] [--logs=runs/local] [--python=python] [--dry_run]
#     -- --config=FILE[:PRESET] --workdir=DIR [--config.FIELD=VALUE ...]
#
# Runs selfreward_jax.main as several processes on this machine's CPU, as on a cluster. Use it to try --distributed before
# paying for a cluster.
#
#   --processes  number of processes
#   --devices    simulated devices of each process
#   --restarts   maximum number of restarts after exit code 75 or a signal
#   --logs       folder for process_0.log, process_1.log, ...; each start appends to them
#   --python     the interpreter
#   --dry_run    print the commands and run nothing
#
# Notes: the processes share the cores, so this is slower than one process. Each needs its own memory (1.7 GB for the
# standard run). Ctrl-C stops all of them.
#
# Exit code: 2 (bad input) if any process has it; else another error; else a signal (128 and above); else 75 (a process
# was lost); else 0.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

processes=2 devices=1 restarts=0 logs=runs/local python=python
read_options "processes devices restarts logs python" "" "$@"
require processes "$positive" "give the number of processes, from 1"
require devices "$positive" "give the number of devices per process, from 1"
require restarts "$nonnegative" "give the maximum number of restarts, from 0"
require logs ".+" "give a folder"
require python ".+" "give an interpreter, such as .venv/bin/python"
require_main

# A free port below the ephemeral range of the system.
free_port() {
  local port=$((20000 + RANDOM % 10000))
  while (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((20000 + RANDOM % 10000)); done
  echo "$port"
}

# process I PORT
process() {
  run env JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices" \
    "$python" -m selfreward_jax.main "--coordinator_address=127.0.0.1:$2" "--num_processes=$processes" \
    "--process_id=$1" "${main[@]}"
}

logged() { process "$@" 2>&1 | relay "[$1]" "$logs/process_$1.log"; }

((dry_run)) || mkdir -p "$logs"
for ((round = 0; ; round++)); do
  port=$(free_port)
  for ((i = 0; i < processes; i++)); do
    if ((dry_run)); then process "$i" "$port"; else start logged "$i" "$port"; fi
  done
  ((!dry_run)) || exit 0
  code=0
  join || code=$?
  ((!ended)) || exit "$ended"
  ((code == 75 || code >= 128)) || exit "$code"
  if ((round == restarts)); then
    log "exit code $code, and --restarts=$restarts is used up; the same command resumes the run"
    exit "$code"
  fi
  log "exit code $code: restart $((round + 1)) of $restarts"
done
