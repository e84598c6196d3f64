#!/usr/bin/env bash
# launch/multislice.sh --slices=N OPTIONS OF launch/tpu_vm.sh -- OPTIONS OF selfreward_jax.main
#
# One run on several TPU slices, joined by the data centre's network (Multislice). It is launch/tpu_vm.sh with --slices,
# the number of which has to be said here: one queued resource of N nodes, and main is told
# --config.parallel.replicas=N, so that only gradients go from slice to slice.
#
# To know: it costs what N slices cost, and waits until all N are there. If one is taken away, all N are deleted and asked
# for again. Everything else, --dry_run too, stands in launch/tpu_vm.sh --help.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

slices=''
# shellcheck disable=SC2034  # need reads it by its name
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
need slices "[2-9]|[1-9][0-9]{1,8}" "give the number of slices, from 2; launch/tpu_vm.sh runs on one"
exec "$(dirname "$0")/tpu_vm.sh" "$@"
