#!/usr/bin/env bash
# launch/tpu_vm.sh --name=NAME --project=PROJECT --zone=ZONE --accelerator_type=TYPE --runtime_version=VERSION
#     [--slices=1] [--spot] [--create_options="--network=NET ..."] [--repo=URL] [--most_restarts=30] [--poll=30] [--delete]
#     [--logs=runs/launch] [--dry_run] -- --config=FILE[:SCALE] --workdir=gs://BUCKET/RUN [--config.FIELD=VALUE ...]
#
# One run of selfreward_jax.main on Cloud TPU VMs. Asks for them as a queued resource, waits until it is ACTIVE, copies the
# project to every worker, installs what it needs, and runs main with --distributed on all of them. TPUs that were
# preempted or failed are deleted and asked for again, and the run goes on where it was. So it does when this command is
# given again.
#
#   --name              of the queued resource and of its TPU; with several slices those are NAME-0, NAME-1, ...
#   --accelerator_type  such as v5litepod-16, v6e-64, v5p-128
#   --runtime_version   the image that belongs to it, such as v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, v2-alpha-tpuv5
#   --slices            more than one: Multislice; main is told --config.parallel.replicas=SLICES
#   --spot              cheaper, and can be taken away at any time
#   --create_options    further options of "gcloud compute tpus queued-resources create", separated by spaces
#   --repo              clone this URL instead of copying selfreward_jax/, configs/ and requirements.txt from here
#   --most_restarts     how often to start again after anything but success and bad input
#   --poll              seconds between two looks at the state of the TPUs
#   --delete            delete the TPUs when the run has come to its end, well or badly
#   --logs              folder for the output, one file for each slice
#   --dry_run           print the commands of a run without incidents, and run nothing
#
# To know: TPUs cost money from ACTIVE until they are deleted, whether main runs or not: without --delete, and after
# Ctrl-C, delete them yourself. The script must keep running as long as the run does: start it in tmux or on a small VM;
# if it is lost, give the command again. gcloud reaches several workers only with its key in ssh-agent:
# ssh-add ~/.ssh/google_compute_engine. The workers' service account must be able to write to the bucket; files that
# main's options name must be in reach of the workers.
#
# Exit code: 0 done; 2 bad input, as main or gcloud said; 75 the restarts are used up; 1 gcloud does not work.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

name='' project='' zone='' accelerator_type='' runtime_version='' create_options='' repo='' logs=runs/launch
slices=1 most_restarts=30 poll=30 spot=0 delete=0
read_options "name project zone accelerator_type runtime_version create_options repo logs slices most_restarts poll" \
  "spot delete" "$@"
need name "$label" "give a name of at most 40 small letters, digits and dashes"
need project "[-a-z0-9:.]+" "give the id of your Google Cloud project"
need zone "[a-z]+-[a-z]+[0-9]+-[a-z]" "give a zone that has such TPUs, such as us-central1-a"
need accelerator_type "v[0-9]+[a-z]*-[0-9]+" "give a TPU type, such as v5litepod-16"
need runtime_version "[-a-z0-9.]+" "give the TPU type's image, such as v2-alpha-tpuv5-lite for v5litepod"
need slices "$positive" "give the number of slices, from 1"
need most_restarts "$whole" "give the most restarts, from 0"
need poll "$whole" "give seconds"
need logs ".+" "give a folder"
[[ ! $repo ]] || need repo "[^ ]+[:/][^ ]+" "give a URL that the workers can clone"
need_main shared

root=$(cd "$(dirname "$0")/.." && pwd)
tpus=(gcloud compute tpus)
where=(--zone="$zone" --project="$project")
if ((slices == 1)); then
  nodes=("$name") ids=(--node-id="$name") pattern="/$name\$"
else
  nodes=() ids=(--node-count="$slices" --node-prefix="$name") pattern="/$name-[0-9]+\$"
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
  # First, so that the user's own value wins.
  main=(--config.parallel.replicas="$slices" "${main[@]}")
fi

create() {
  local tier=()
  ((!spot)) || tier=(--spot)
  # shellcheck disable=SC2086  # several options in one word
  run "${tpus[@]}" queued-resources create "$name" "${ids[@]}" --accelerator-type="$accelerator_type" \
    --runtime-version="$runtime_version" "${where[@]}" "${tier[@]}" $create_options
}

remove() { run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet; }

ask() { run "${tpus[@]}" queued-resources list "${where[@]}" --filter="name ~ \"/$name\$\"" --format="value(state.state)"; }
ask_nodes() { run "${tpus[@]}" tpu-vm list "${where[@]}" --filter="name ~ \"$pattern\"" --format="value(state)"; }

# "ACTIVE READY READY": the state of the queued resource and those of its TPUs; empty where there is none.
states() {
  local resource each=''
  resource=$(ask) || return 1
  [[ ! $resource ]] || each=$(ask_nodes) || return 1
  echo "$resource${each:+ ${each//$'\n'/ }}"
}

on_node() {
  run "${tpus[@]}" tpu-vm ssh "$1" "${where[@]}" --worker=all --ssh-flag=-oServerAliveInterval=30 --command="$2"
}

copy_to() {
  run "${tpus[@]}" tpu-vm scp --recurse --worker=all "$root/selfreward_jax" "$root/configs" "$root/requirements.txt" \
    "$1:selfreward/" "${where[@]}"
}

# gcloud's own exit code is that of the first worker that failed, which may only have lost the one with bad input.
logged() { "$1" "$2" "${3-}" 2>&1 | relay "[$2]" "$logs/$2.log" "failed with exit status 2."; }

# on_all FUNCTION [ARGUMENT]: for every slice at once, as main starts only when all are there.
on_all() {
  local node code=0
  for node in "${nodes[@]}"; do
    if ((dry_run)); then "$1" "$node" "${2-}"; else start logged "$1" "$node" "${2-}"; fi
  done
  ((dry_run)) || join || code=$?
  ((!ended)) || exit "$ended"
  return "$code"
}

# The images' own Python is older than the project's; uv brings one along.
install="cd selfreward && python3 -m pip install -q --user uv && python3 -m uv venv -q --allow-existing --python=3.12 .venv"
install+=" && python3 -m uv pip install -q --python=.venv/bin/python -r requirements.txt 'jax[tpu]' gcsfs"

set_up() {
  if [[ $repo ]]; then
    on_all on_node "[ -d selfreward ] || git clone -q --depth=1 $(quoted "$repo") selfreward" || return
  else
    on_all on_node "mkdir -p selfreward" && on_all copy_to || return
  fi
  on_all on_node "$install"
}

# A process whose connection was lost may still hold the chips; it is known by its number and by what it is.
program="cd selfreward && while grep -qs '^\.venv/bin/python' /proc/\$(cat main.pid 2>/dev/null)/cmdline; do"
program+=" kill -9 \$(cat main.pid); sleep 1; done; echo \$\$ >main.pid;"
program+=" exec .venv/bin/python -m selfreward_jax.main --distributed $(quoted "${main[@]}")"

finish() {
  ((!delete)) || remove || say "$name could not be deleted: delete it yourself, it costs money"
  exit "$1"
}

restarts=0
# again WHY: one more restart, if any is left.
again() {
  if ((restarts == most_restarts)); then
    say "$1, and --most_restarts=$most_restarts is used up; the same command goes on from there"
    finish 75
  fi
  restarts=$((restarts + 1))
  say "$1: restart $restarts of $most_restarts"
}

# Before anything has worked, gcloud's errors end the script: they need a person. Later they must not end a run.
seen=0
wait_until_ready() {
  local now
  while :; do
    if now=$(states); then seen=1; else ((seen)) || exit 1; now=UNKNOWN; fi
    case $now in
      '')
        create || { code=$? && ((restarts)) || exit "$code"; again "$name could not be asked for"; }
        sleep "$poll"
        ;;
      *FAILED* | *SUSPENDED* | *PREEMPTED* | *TERMINATED*)
        again "$name is $now"
        remove || sleep "$poll"
        ;;
      *)
        [[ ! $now =~ ^ACTIVE(\ READY){$slices}$ ]] || return 0
        say "$name is $now"
        sleep "$poll"
        ;;
    esac
  done
}

if ((dry_run)); then
  ask
  create
  ask
  ask_nodes
  set_up
  on_all on_node "$program"
  finish 0
fi

command -v gcloud >/dev/null || refuse "gcloud is not installed: see https://cloud.google.com/sdk/docs/install"
mkdir -p "$logs"
while :; do
  wait_until_ready
  code=0
  if ! set_up; then
    again "the workers could not be set up"
  elif on_all on_node "$program" || code=$? && ((code == 0 || code == 2)); then
    finish "$code"
  else
    again "selfreward_jax.main ended with $code"
  fi
  sleep "$poll"  # a preemption shows in the states a little later than in the connection
done
