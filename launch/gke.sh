#!/usr/bin/env bash
# launch/gke.sh --name=NAME --image=IMAGE --accelerator=TYPE --topology=AxB[xC] [--chips=4] [--slices=1] [--spot]
#     [--max_restarts=30] [--namespace=default] [--service_account=default] [--secret=NAME] [--python=python3] [--no_check]
#     [--manifest] [--dry_run] -- --config=FILE[:PRESET] --workdir=gs://BUCKET/RUN [--config.FIELD=VALUE ...]
#
# Runs selfreward_jax.main on TPU slices of the GKE cluster that kubectl is connected to. It fills in
# launch/gke_jobset.yaml and applies it. The cluster needs the JobSet controller, 0.6 or later.
#
#   --name             of the JobSet
#   --image            container image with the project in its working directory: launch/Dockerfile
#   --accelerator      the node pool's cloud.google.com/gke-tpu-accelerator, such as tpu-v5-lite-podslice, tpu-v6e-slice
#   --topology         the node pool's cloud.google.com/gke-tpu-topology, such as 4x4
#   --chips            chips of a host; hosts of a slice = chips of the topology / chips of a host
#   --slices           node pools; above 1: Multislice; passes --config.parallel.replicas=SLICES
#   --spot             only on nodes of spot node pools
#   --max_restarts     maximum number of restarts after anything but success and bad input
#   --service_account  the Kubernetes account with write access to the bucket (Workload Identity)
#   --secret           a Kubernetes secret whose keys become variables of the program, such as HF_TOKEN or XLA_FLAGS:
#                      kubectl create secret generic NAME --from-literal=HF_TOKEN=...
#   --python           the interpreter here that has selfreward_jax: it checks the run first
#   --no_check         submit without that check
#   --manifest         print the manifest and apply nothing
#   --dry_run          print the command and run nothing
#
# Notes: the command returns at once, and the cluster does the rest, restarts too. A waiting pod costs nothing; a node that
# the autoscaler created for it does. A finished JobSet remains. To resume a run, delete the JobSet
# (kubectl delete jobset NAME) and repeat the command.
#
# Exit code: 2 bad input, else that of kubectl.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

name='' image='' accelerator='' topology='' chips=4 slices=1 max_restarts=30 namespace=default service_account=default
spot=0 manifest=0 secret=''
read_options "name image accelerator topology chips slices max_restarts namespace service_account secret python" \
  "spot manifest no_check" "$@"
require name "$label" "give a name of at most 40 small letters, digits and dashes"
require image "[A-Za-z0-9][-A-Za-z0-9._/:@]*" "give a container image with the project in it: launch/Dockerfile makes one"
require slices "$positive" "give the number of slices, from 1"
require max_restarts "$nonnegative" "give the maximum number of restarts, from 0"
require accelerator "[a-z][-a-z0-9]*" "give the node pool's gke-tpu-accelerator, such as tpu-v5-lite-podslice"
require topology "$positive(x$positive){1,2}" "give the node pool's gke-tpu-topology, such as 4x4 or 2x2x4"
require chips "$positive" "give the chips of one host, such as 4"
require namespace "$label" "give a Kubernetes namespace"
require service_account "[a-z0-9]([-a-z0-9.]*[a-z0-9])?" "give a Kubernetes service account"
[[ ! $secret ]] || require secret "[a-z0-9]([-a-z0-9.]*[a-z0-9])?" "give a Kubernetes secret"
total=$((${topology//x/*}))
((total % chips == 0)) || usage_error "--chips is '$chips', which does not divide the $total chips of --topology=$topology"
require_main shared
require_reachable "put it into the image, and give its path there and --no_check"
# First, so that the user's value overrides it.
((slices == 1)) || main=(--config.parallel.replicas="$slices" "${main[@]}")

machine=''
case $accelerator in
  tpu-v4-podslice) machine=v4:$topology ;;
  tpu-v5-lite-podslice | tpu-v5-lite-device) machine=v5e:$topology ;;
  tpu-v5p-slice) machine=v5p:$topology ;;
  tpu-v6e-slice) machine=v6e:$topology ;;
  tpu7x) machine=tpu7x:$topology ;;
  *)
    ((no_check || manifest)) || usage_error "--accelerator is '$accelerator', whose memory is not known: correct it, or leave out the" \
      "check with --no_check"
    ;;
esac
((slices == 1)) || machine+=${machine:+"*$slices"}
((manifest)) || check_main "$machine"

# The arguments as a JSON list, which is valid YAML. Kubernetes reads $$ as $, and $(NAME) as a variable.
list() {
  local word all=''
  for word in "$@"; do
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    word=${word//$'\n'/\\n}
    word=${word//$'\t'/\\t}
    all+="${all:+, }\"${word//\$/\$\$}\""
  done
  echo "[$all]"
}

text=$(sed '/^ *#/d' "$(dirname "$0")/gke_jobset.yaml")
((spot)) || text=$(grep -v "with --spot only" <<<"$text")
[[ $secret ]] || text=$(grep -v "with --secret only" <<<"$text")
declare -A values=([NAME]=$name [NAMESPACE]=$namespace [MAX_RESTARTS]=$max_restarts [SLICES]=$slices
  [HOSTS]=$((total / chips)) [SERVICE_ACCOUNT]=$service_account [ACCELERATOR]=$accelerator [TOPOLOGY]=$topology
  [IMAGE]=$image [CHIPS]=$chips [SECRET]=$secret)
for key in "${!values[@]}"; do text=${text//"\${$key}"/"${values[$key]}"}; done
text=${text/"\${ARGUMENTS}"/"$(list "${main[@]}")"} # last, so that user text is not substituted

if ((manifest)); then
  echo "$text"
elif ((dry_run)); then
  echo "$(quoted kubectl apply -f -) <<<${text@Q}"
else
  kubectl apply -f - <<<"$text"
  log "follow the run: kubectl get jobset $name -n $namespace; kubectl logs -f -n $namespace" \
    "-l jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
fi
