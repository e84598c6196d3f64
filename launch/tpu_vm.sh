#!/usr/bin/env bash
# launch/tpu_vm.sh --name=NAME --project=PROJECT --zone=ZONE --accelerator_type=TYPE --runtime_version=VERSION
#     [--slices=1] [--spot | --flex_start=HOURS] [--create_options="--network=NET ..."] [--repo=URL] [--max_restarts=30] [--poll=30] [--delete]
#     [--copy=FILE[,FILE...]] [--logs=runs/launch] [--python=python3] [--no_check] [--dry_run]
#     -- --config=FILE[:PRESET] --workdir=gs://BUCKET/RUN [--config.FIELD=VALUE ...]
#
# Runs selfreward_jax.main on Cloud TPU VMs. It requests them as a queued resource and waits until it is ACTIVE. It copies
# the project to every worker, installs the requirements, and runs main with --distributed on all of them. TPUs that were
# preempted or failed are deleted and requested again, and the run resumes. Repeating this command does the same.
#
#   --name              of the queued resource and its TPU; several slices are NAME-0, NAME-1, ...
#   --accelerator_type  such as v5litepod-16, v6e-64, v5p-128
#   --runtime_version   the image for it, such as v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, v2-alpha-tpuv5
#   --slices            above 1: Multislice; passes --config.parallel.replicas=SLICES
#   --spot              cheaper, but may be preempted at any time
#   --flex_start        cheaper than on demand and not preempted, for this many hours, at most 168; by "gcloud alpha". A run that
#                       needs longer is requested again: --max_restarts bounds how often
#   --create_options    more options of "gcloud compute tpus queued-resources create", separated by spaces
#   --repo              clone this URL instead of copying selfreward_jax/, configs/ and requirements.txt
#   --copy              files and folders of the current folder that the workers get too: seeds, a model
#   --max_restarts      maximum number of restarts after anything but success and bad input
#   --poll              seconds between two queries of the TPU state
#   --delete            delete the TPUs when the run ends, successfully or not
#   --logs              folder for the output, one file for each slice
#   --python            the interpreter here that has selfreward_jax: it checks the run first
#   --no_check          create the TPUs without that check
#   --dry_run           print the commands of a run without incidents, and run nothing
#
# Notes: TPUs cost money from ACTIVE until they are deleted, whether main runs or not. Without --delete, and after Ctrl-C,
# delete them yourself. The script must run as long as the run does: start it in tmux or on a small VM. If it is lost,
# repeat the command. gcloud reaches several workers only with its key in ssh-agent:
# ssh-add ~/.ssh/google_compute_engine. The workers' service account needs write access to the bucket. Files named in
# main's options must be readable by the workers.
#
# Exit code: 0 done; 2 bad input, from main or gcloud; 75 no restarts left; 1 gcloud does not work.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

name='' project='' zone='' accelerator_type='' runtime_version='' create_options='' repo='' copy='' logs=runs/launch
slices=1 max_restarts=30 poll=30 spot=0 delete=0 flex_start=''
read_options "name project zone accelerator_type runtime_version create_options repo copy logs slices flex_start max_restarts poll python" \
  "spot delete no_check" "$@"
require name "$label" "give a name of at most 40 small letters, digits and dashes"
require project "[-a-z0-9:.]+" "give the id of your Google Cloud project"
require zone "[a-z]+-[a-z]+[0-9]+-[a-z]" "give a zone that has such TPUs, such as us-central1-a"
require accelerator_type "v[0-9]+[a-z]*-[0-9]+" "give a TPU type, such as v5litepod-16"
require runtime_version "[-a-z0-9.]+" "give the TPU type's image, such as v2-alpha-tpuv5-lite for v5litepod"
require slices "$positive" "give the number of slices, from 1"
require max_restarts "$nonnegative" "give the maximum number of restarts, from 0"
require poll "$nonnegative" "give seconds"
require logs ".+" "give a folder"
if [[ $flex_start ]]; then
  require flex_start "[1-9][0-9]?|1[0-5][0-9]|16[0-8]" "give hours, from 1 to 168"
  ((!spot)) || usage_error "--spot and --flex_start are given: give one of them"
fi
[[ ! $repo ]] || require repo "[^ ]+[:/][^ ]+" "give a URL that the workers can clone"
[[ ! $copy ]] || require copy "[^/,[:space:]]+(,[^/,[:space:]]+)*" "give names in the current folder, separated by commas"
IFS=, read -ra copied <<<"$copy"
for file in "${copied[@]}"; do
  [[ -e $file ]] || usage_error "--copy is '$copy', but there is no '$file' in the current folder: give names that are there"
done
require_main shared
require_reachable "--copy=NAME for what is in the current folder" "${copied[@]}"

root=$(cd "$(dirname "$0")/.." && pwd)
tpus=(gcloud compute tpus)
where=(--zone="$zone" --project="$project")
if ((slices == 1)); then
  nodes=("$name") ids=(--node-id="$name") pattern="/$name\$"
else
  nodes=() ids=(--node-count="$slices" --node-prefix="$name") pattern="/$name-[0-9]+\$"
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
  # First, so that the user's value overrides it.
  main=(--config.parallel.replicas="$slices" "${main[@]}")
fi

create() {
  local tier=() command=("${tpus[@]}")
  ((!spot)) || tier=(--spot)
  if [[ $flex_start ]]; then
    command=(gcloud alpha compute tpus) tier=(--provisioning-model=flex-start --max-run-duration="${flex_start}h")
  fi
  # shellcheck disable=SC2086  # several options in one word
  run "${command[@]}" queued-resources create "$name" "${ids[@]}" --accelerator-type="$accelerator_type" \
    --runtime-version="$runtime_version" "${where[@]}" "${tier[@]}" $create_options
}

remove() { run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet; }

ask() { run "${tpus[@]}" queued-resources list "${where[@]}" --filter="name ~ \"/$name\$\"" --format="value(state.state)"; }
ask_nodes() { run "${tpus[@]}" tpu-vm list "${where[@]}" --filter="name ~ \"$pattern\"" --format="value(state)"; }

# "ACTIVE READY READY": the states of the queued resource and of its TPUs; empty if there is none.
states() {
  local resource each=''
  resource=$(ask) || return 1
  [[ ! $resource ]] || each=$(ask_nodes) || return 1
  echo "$resource${each:+ ${each//$'\n'/ }}"
}

on_node() {
  run "${tpus[@]}" tpu-vm ssh "$1" "${where[@]}" --worker=all --ssh-flag=-oServerAliveInterval=30 --command="$2"
}

# Variables that the program reads go to the workers in a file, so that no command line shows a token. It is written for
# each start, so that none of an earlier one stays there.
environment=$logs/$name/environment
write_environment() {
  local variable
  mkdir -p "${environment%/*}" && rm -f "$environment" && (umask 077 && : >"$environment")
  for variable in HF_TOKEN WANDB_API_KEY OPENAI_API_KEY LIBTPU_INIT_ARGS XLA_FLAGS JAX_COMPILATION_CACHE_DIR; do
    [[ ! ${!variable-} ]] || printf 'export %s=%q\n' "$variable" "${!variable}" >>"$environment"
  done
}

copy_to() {
  local project=("$root/selfreward_jax" "$root/configs" "$root/requirements.txt")
  [[ ! $repo ]] || project=()
  run "${tpus[@]}" tpu-vm scp --recurse --worker=all "${project[@]}" "${copied[@]}" "$environment" "$1:selfreward/" \
    "${where[@]}"
}

# gcloud returns the code of the first worker that failed. That worker may only have lost the one with bad input.
logged() { "$1" "$2" "${3-}" 2>&1 | relay "[$2]" "$logs/$2.log" "failed with exit status 2."; }

# on_all FUNCTION [ARGUMENT]: on all slices at once, since main starts only when all are present.
on_all() {
  local node code=0
  for node in "${nodes[@]}"; do
    if ((dry_run)); then "$1" "$node" "${2-}"; else start logged "$1" "$node" "${2-}"; fi
  done
  ((dry_run)) || join || code=$?
  ((!ended)) || exit "$ended"
  return "$code"
}

# The images' Python is too old; uv installs a newer one.
install="cd selfreward && python3 -m pip install -q --user uv && python3 -m uv venv -q --allow-existing --python=3.12 .venv"
install+=" && python3 -m uv pip install -q --python=.venv/bin/python -r requirements.txt 'jax[tpu]' gcsfs"
[[ "$(main_option config.data.ift) $(main_option config.data.eft) $(main_option config.prompts.source)" != *hf:* ]] || install+=" datasets"
[[ ! ${WANDB_API_KEY-} && ! $(main_option config.report.wandb) ]] || install+=" wandb"

set_up() {
  if [[ $repo ]]; then
    on_all on_node "[ -d selfreward ] || git clone -q --depth=1 $(quoted "$repo") selfreward" || return
  else
    on_all on_node "mkdir -p selfreward" || return
  fi
  on_all copy_to || return
  on_all on_node "$install"
}

# A process whose connection was lost may still hold the chips. Its process id and command identify it.
program="cd selfreward && { [ ! -f environment ] || . ./environment; } && while grep -qs '^\.venv/bin/python' /proc/\$(cat main.pid 2>/dev/null)/cmdline; do"
program+=" kill -9 \$(cat main.pid); sleep 1; done; echo \$\$ >main.pid;"
program+=" exec .venv/bin/python -m selfreward_jax.main --distributed $(quoted "${main[@]}")"

finish() {
  ((!delete)) || remove || log "$name could not be deleted: delete it yourself, since it costs money"
  exit "$1"
}

restarts=0
# again REASON: counts a restart, or ends if none is left.
again() {
  if ((restarts == max_restarts)); then
    log "$1, and --max_restarts=$max_restarts is used up; the same command resumes the run"
    finish 75
  fi
  restarts=$((restarts + 1))
  log "$1: restart $restarts of $max_restarts"
}

# Until gcloud has worked once, its errors end the script, since they need a person. Later they must not end a run.
seen=0
wait_until_ready() {
  local now
  while :; do
    if now=$(states); then seen=1; else ((seen)) || exit 1; now=UNKNOWN; fi
    case $now in
      '')
        # A request that fails may have been made: then it costs money, and is there.
        create || {
          code=$?
          if ! now=$(ask); then
            log "$name may have been made all the same: look, or repeat the command"
            now=UNKNOWN
          fi
          [[ $now ]] || { ((restarts)) || exit "$code"; again "$name could not be requested"; }
        }
        sleep "$poll"
        ;;
      *FAILED* | *SUSPENDED* | *PREEMPTED* | *TERMINATED*)
        again "$name is $now"
        remove || sleep "$poll"
        ;;
      *)
        [[ ! $now =~ ^ACTIVE(\ READY){$slices}$ ]] || return 0
        log "$name is $now"
        sleep "$poll"
        ;;
    esac
  done
}

# v5litepod-16 and v6e-16 name chips, v4-16 and v5p-16 the two cores of each.
generation=${accelerator_type%%-*} count=${accelerator_type##*-} machine=''
case $generation in
  v5litepod) machine=v5e:$count ;;
  v6e) machine=v6e:$count ;;
  v4 | v5p) machine=$generation:$((10#$count / 2)) ;;
  *)
    ((no_check)) || usage_error "--accelerator_type is '$accelerator_type', whose memory is not known: give a v4, v5litepod, v5p or v6e," \
      "or leave out the check with --no_check"
    ;;
esac
((slices == 1)) || machine+=${machine:+"*$slices"}

if ((dry_run)); then
  check_main "$machine"
  ask
  create
  ask
  ask_nodes
  set_up
  on_all on_node "$program"
  finish 0
fi

[[ $(main_option config.model.init) != hub:* || ${HF_TOKEN-} ]] || log "HF_TOKEN is not set: the workers can read open models only"
command -v gcloud >/dev/null || usage_error "gcloud is not installed: see https://cloud.google.com/sdk/docs/install"
check_main "$machine"
trap 'rm -f "$environment"' EXIT # it may hold a token
write_environment
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
  sleep "$poll"  # the state shows a preemption a little later than the connection
done
