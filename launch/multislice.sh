#!/usr/bin/env bash
# launch/multislice.sh --slices=N OPTIONS OF launch/tpu_vm.sh -- OPTIONS OF selfreward_jax.main
#
# Runs on several TPU slices, joined by the data centre's network (Multislice). It is launch/tpu_vm.sh with --slices
# required: one queued resource of N nodes. It passes --config.parallel.replicas=N, so that only gradients cross slices.
#
# Notes: it costs as much as N slices and waits until all N are ready. If one is preempted, all N are deleted and requested
# again. All other options, --dry_run too, are described by launch/tpu_vm.sh --help.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

slices=''
# shellcheck disable=SC2034  # require reads it by name
for word in "$@"; do
  case $word in
    --) break ;;
    --help | -h)
      usage
      exit 0
      ;;
    --slices=*) slices=${word#*=} ;;
  esac
done
require slices "[2-9]|[1-9][0-9]{1,8}" "give the number of slices, from 2; launch/tpu_vm.sh runs on one"
exec "$(dirname "$0")/tpu_vm.sh" "$@"
