# shellcheck shell=bash
# What the scripts of this folder share; sourced, never run.

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || {
  echo "$0: bash is $BASH_VERSION, which is too old: install 4.4 or later" >&2
  exit 2
}

say() { echo "${0##*/}: $*" >&2; }

# Bad input: one line, exit code 2.
refuse() {
  say "$*"
  exit 2
}

# The comment at the head of the script is its usage.
usage() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"; }

# read_options "NAME ..." "FLAG ..." "$@": --NAME=VALUE puts VALUE into the variable NAME, --FLAG puts 1 into FLAG; what
# stands after -- becomes the array `main`, which goes to selfreward_jax.main unchanged.
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
          *" $option "*"|"*) [[ $1 == *=* ]] || refuse "--$option has no value: write --$option=VALUE" ;;
          *"|"*" $option "*) [[ $1 != *=* ]] || refuse "--$option is '${1#*=}', but it takes no value" ;;
          *) refuse "'$1' is not an option of this script, --help lists them; $elsewhere" ;;
        esac
        [[ $1 == *=* ]] && printf -v "$option" %s "${1#*=}" || printf -v "$option" 1
        ;;
      *) refuse "'$1' is not an option: they begin with --; $elsewhere" ;;
    esac
    shift
  done
}

# need NAME PATTERN REMEDY: the variable NAME is not empty, and PATTERN matches the whole of it.
need() {
  [[ ${!1} ]] || refuse "--$1 is missing: $3"
  [[ ${!1} =~ ^($2)$ ]] || refuse "--$1 is '${!1}': $3"
}

# shellcheck disable=SC2034  # the scripts use them
whole='0|[1-9][0-9]{0,8}' positive='[1-9][0-9]{0,8}' label='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'

# The value of an option of selfreward_jax.main, written --NAME=VALUE or --NAME VALUE.
main_option() {
  local i
  for ((i = 0; i < ${#main[@]}; i++)); do
    case ${main[i]} in
      --"$1"=*) echo "${main[i]#*=}" ;;
      --"$1") echo "${main[i + 1]-}" ;;
    esac
  done
}

# need_main [shared]: selfreward_jax.main is told what to do and where. It would say so itself, but only on machines
# that are paid for by then; and a working directory on one of several machines would be of no use to the others.
need_main() {
  local workdir
  workdir=$(main_option workdir)
  [[ $(main_option config) ]] || refuse "--config is missing after --: for example -- --config=configs/iter3.py:llama3_8b"
  [[ $workdir ]] || refuse "--workdir is missing after --: for example -- --workdir=gs://bucket/run"
  [[ ${1-} != shared || $workdir =~ ^(gs:/)?/ ]] ||
    refuse "--workdir is '$workdir', which every machine would take for a folder of its own: give gs://BUCKET/RUN or the" \
      "full path of a file system that all of them share"
}

# The words as one line that a shell reads as the same words.
quoted() {
  local word words=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then words+=("$word"); else words+=("${word@Q}"); fi
  done
  printf '%s\n' "${words[*]}"
}

# Runs a command, or prints it where --dry_run is given.
run() { if ((dry_run)); then quoted "$@"; else "$@"; fi; }

# relay LABEL FILE [TEXT]: standard input to the end of FILE and, behind LABEL, to standard output, to the last line even
# when the script is being ended. The exit code is 2 if a line has TEXT in it.
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

# The exit code that stands for those of several processes: the one that says most about what to do. 2 (bad input), then
# any other error of the program (1 to 127), then a signal (128 and above), then 75 (another process was lost: a
# consequence, not a cause), then 0. Of several of a kind the first.
worst() {
  local code rank top=0 found=0
  for code in "$@"; do
    case $code in
      0) rank=0 ;;
      75) rank=1 ;;
      2) rank=4 ;;
      *) rank=$((code < 128 ? 3 : 2)) ;;
    esac
    ((rank <= top)) || top=$rank found=$code
  done
  echo "$found"
}

# Starts COMMAND [ARGUMENT ...] in the background, in a process group of its own, and adds it to `jobs`. A signal to the
# script ends these groups and nothing else; a second one does not let them finish. The job's own shell stays until
# what it started is gone, as it is the one that is waited for.
jobs=() ended=0
start() {
  set -m
  { trap : HUP INT TERM && "$@"; } </dev/null &
  jobs+=($!)
  set +m
}

# Waits for all that was started; exit code: the worst of them. A trapped signal interrupts a wait.
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
  return "$(worst "${codes[@]}")"
}

end_jobs() {
  local job signal=TERM
  ((!ended)) || signal=KILL
  ended=$1
  ((${#jobs[@]})) || exit "$ended"
  for job in "${jobs[@]}"; do kill "-$signal" -- "-$job" 2>/dev/null || true; done
}
trap 'end_jobs 129' HUP
trap 'end_jobs 130' INT
trap 'end_jobs 143' TERM
