# shellcheck shell=bash
# Shared by the scripts of this folder; sourced, never run.

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || {
  echo "$0: bash is $BASH_VERSION, which is too old: install 4.4 or later" >&2
  exit 2
}

log() { echo "${0##*/}: $*" >&2; }

# Bad input: one line, exit code 2.
usage_error() {
  log "$*"
  exit 2
}

# Usage is the comment at the head of the script.
usage() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"; }

# read_options "NAME ..." "FLAG ..." "$@": --NAME=VALUE sets the variable NAME to VALUE, --FLAG sets FLAG to 1. Words after
# -- become the array `main`, which is passed to selfreward_jax.main unchanged.
read_options() {
  local names=" $1 " flags=" $2 dry_run " option elsewhere="options of selfreward_jax.main stand after --"
  shift 2
  dry_run=0 main=()
  while (($#)); do
    option=${1#--}
    option=${option%%=*}
    case $1 in
      --help | -h)
        usage
        exit 0
        ;;
      --)
        main=("${@:2}")
        return
        ;;
      --[a-z]*)
        case "$names|$flags" in
          *" $option "*"|"*) [[ $1 == *=* ]] || usage_error "--$option has no value: write --$option=VALUE" ;;
          *"|"*" $option "*) [[ $1 != *=* ]] || usage_error "--$option is '${1#*=}', but it takes no value" ;;
          *) usage_error "'$1' is not an option of this script, --help lists them; $elsewhere" ;;
        esac
        [[ $1 == *=* ]] && printf -v "$option" %s "${1#*=}" || printf -v "$option" 1
        ;;
      *) usage_error "'$1' is not an option: they begin with --; $elsewhere" ;;
    esac
    shift
  done
}

# require NAME PATTERN REMEDY: the variable NAME is not empty and matches PATTERN completely.
require() {
  [[ ${!1} ]] || usage_error "--$1 is missing: $3"
  [[ ${!1} =~ ^($2)$ ]] || usage_error "--$1 is '${!1}': $3"
}

# shellcheck disable=SC2034  # used by the scripts
nonnegative='0|[1-9][0-9]{0,8}' positive='[1-9][0-9]{0,8}' label='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'

# The value of an option of selfreward_jax.main, given as --NAME=VALUE or --NAME VALUE.
main_option() {
  local i
  for ((i = 0; i < ${#main[@]}; i++)); do
    case ${main[i]} in
      --"$1"=*) echo "${main[i]#*=}" ;;
      --"$1") echo "${main[i + 1]-}" ;;
    esac
  done
}

# require_main [shared]: selfreward_jax.main is given --config and --workdir. It checks them too, but on machines that already
# cost money. With `shared` the working directory must be visible to several machines.
require_main() {
  local workdir
  workdir=$(main_option workdir)
  [[ $(main_option config) ]] || usage_error "--config is missing after --: for example -- --config=configs/iter3.py:llama3_8b"
  [[ $workdir ]] || usage_error "--workdir is missing after --: for example -- --workdir=gs://bucket/run"
  [[ ${1-} != shared || $workdir =~ ^(gs:/)?/ ]] ||
    usage_error "--workdir is '$workdir', which is a different folder on each machine: give gs://BUCKET/RUN or the full path" \
      "of a file system that all machines share"
}

no_check=0 python=python3
# check_main [MACHINE]: selfreward_jax.main reads settings, seeds, templates and the model here, before anything is created
# that costs money. With MACHINE, such as v5e:4x4, it also says whether the run fits there. Nothing is written.
check_main() {
  local command=("$python" -m selfreward_jax.main --dry_run ${1:+"--machine=$1"} "${main[@]}")
  ((!no_check)) || return 0
  if ((dry_run)); then
    quoted "${command[@]}"
  else
    "${command[@]}" >&2 || usage_error "the check above failed, and nothing was created; --no_check leaves it out"
  fi
}

# require_reachable REMEDY [NAME ...]: no option of selfreward_jax.main names a file or folder of this machine, which the
# others do not have; but what is in configs/, and in the NAMEs, which they get. With --no_check anything may be there too.
require_reachable() {
  local remedy=$1 option value name
  shift
  ((!no_check)) || return 0
  for option in config config.{data.ift,data.eft,model.init,prompts.source,prompts.writer,{judge,prompts,pairwise,meta}.template}; do
    value=$(main_option "$option" | tail -n 1)
    [[ $option != config ]] || value=${value%%:*}
    [[ $value != "~"* ]] || value=$HOME${value#"~"}
    value=${value#./}
    if [[ ! $value ]] || ! compgen -G "$value" >/dev/null; then continue; fi # a name, an address, or a path over there
    for name in configs "$@"; do [[ $value != "$name" && $value != "$name"/* ]] || continue 2; done
    usage_error "--$option is '$value', which is on this machine alone: give gs://BUCKET/..., or $remedy"
  done
}

# The arguments as one line that a shell splits into the same arguments.
quoted() {
  local word words=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then words+=("$word"); else words+=("${word@Q}"); fi
  done
  printf '%s\n' "${words[*]}"
}

# Runs a command, or prints it with --dry_run.
run() { if ((dry_run)); then quoted "$@"; else "$@"; fi; }

# relay LABEL FILE [TEXT]: copies standard input to the end of FILE and, after LABEL, to standard output. It reads to the
# last line even while the script is being stopped. The exit code is 2 if a line contains TEXT.
relay() {
  local line code=0
  trap '' INT TERM HUP
  while IFS= read -r line || [[ $line ]]; do
    printf '%s\n' "$line" >&3
    printf '%s %s\n' "$1" "$line"
    [[ -z ${3-} || $line != *"$3"* ]] || code=2
  done 3>>"$2"
  return "$code"
}

# One exit code for several processes, by what has to be done. First 2 (bad input), then any other error of the program
# (1 to 127), then a signal (128 and above), then 75 (another process was lost: a consequence, not a cause), then 0.
# Among equals the first one counts.
combined_code() {
  local code rank top=0 result=0
  for code in "$@"; do
    case $code in
      0) rank=0 ;;
      75) rank=1 ;;
      2) rank=4 ;;
      *) rank=$((code < 128 ? 3 : 2)) ;;
    esac
    ((rank <= top)) || top=$rank result=$code
  done
  echo "$result"
}

# Starts COMMAND [ARGUMENT ...] in the background, in its own process group, and adds it to `jobs`. A signal to the script
# stops these groups and nothing else; a second signal kills them. The job's shell waits for its command, since the script
# waits for that shell.
jobs=() ended=0
start() {
  set -m
  { trap : HUP INT TERM && "$@"; } </dev/null &
  jobs+=($!)
  set +m
}

# Waits for all jobs and returns their combined exit code. A trapped signal interrupts a wait.
join() {
  local job code codes=()
  for job in "${jobs[@]}"; do
    code=0
    until wait "$job"; do
      code=$?
      kill -0 "$job" 2>/dev/null || break
    done
    codes+=("$code")
  done
  jobs=()
  return "$(combined_code "${codes[@]}")"
}

stop_jobs() {
  local job signal=TERM
  ((!ended)) || signal=KILL
  ended=$1
  ((${#jobs[@]})) || exit "$ended"
  for job in "${jobs[@]}"; do kill "-$signal" -- "-$job" 2>/dev/null || true; done
}
trap 'stop_jobs 129' HUP
trap 'stop_jobs 130' INT
trap 'stop_jobs 143' TERM
