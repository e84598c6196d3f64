#!/usr/bin/env bash
# launch/local.sh [--processes=2] [--devices=1] [--restarts=0] [--logs=runs/local] [--python=python] [--dry_run]
#     -- --config=FILE[:SCALE] --workdir=DIR [--config.FIELD=VALUE ...]
#
# One run of selfreward_jax.main by several processes on this machine's CPU, as on a cluster: to try out what --distributed
# does before paying for one.
#
#   --processes  how many
#   --devices    simulated devices of each process
#   --restarts   how often all are started again after exit code 75 or a signal
#   --logs       folder for process_0.log, process_1.log, ...; each start appends to them
#   --python     the interpreter
#   --dry_run    print the commands and run nothing
#
# To know: the processes share the cores, so it is slower than one process; each needs its own memory (1.7 GB for the
# standard run). Ctrl-C ends them all.
#
# Exit code: the one of its processes that says most: 2 (bad input) before any other error, that before a signal (128 and
# above), that before 75 (another process was lost, which is only a consequence), that before 0.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

processes=2 devices=1 restarts=0 logs=runs/local python=python
read_options "processes devices restarts logs python" "" "$@"
need processes "$positive" "give the number of processes, from 1"
need devices "$positive" "give the number of devices of a process, from 1"
need restarts "$whole" "give the most restarts, from 0"
need logs ".+" "give a folder"
need python ".+" "give an interpreter, such as .venv/bin/python"
need_main

# A port that nobody listens on, below those that systems hand out themselves.
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
    say "exit code $code, and --restarts=$restarts is used up; the same command goes on from there"
    exit "$code"
  fi
  say "exit code $code: restart $((round + 1)) of $restarts"
done
