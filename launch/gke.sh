#!/usr/bin/env bash
# launch/gke.sh --name=NAME --image=IMAGE --accelerator=TYPE --topology=AxB[xC] [--chips=4] [--slices=1] [--spot]
#     [--most_restarts=30] [--namespace=default] [--service_account=default] [--manifest] [--dry_run]
#     -- --config=FILE[:SCALE] --workdir=gs://BUCKET/RUN [--config.FIELD=VALUE ...]
# launch/gke.sh --xpk --name=NAME --image=IMAGE --cluster=CLUSTER --project=PROJECT --zone=ZONE --tpu_type=TYPE
#     [--slices=1] [--spot] [--most_restarts=30] [--dry_run] -- ...
#
# One run of selfreward_jax.main on TPU slices of the GKE cluster that kubectl speaks to: fills launch/gke_jobset.yaml in
# and applies it. The cluster needs the JobSet controller, 0.6 or later. With --xpk the same run through xpk, which needs
# a cluster that xpk made.
#
#   --name             of the JobSet
#   --image            container image with the project in its working directory: launch/Dockerfile
#   --accelerator      the node pool's cloud.google.com/gke-tpu-accelerator, such as tpu-v5-lite-podslice, tpu-v6e-slice
#   --topology         the node pool's cloud.google.com/gke-tpu-topology, such as 4x4
#   --chips            chips of a host; hosts of a slice = chips of the topology / chips of a host
#   --slices           node pools; more than one: Multislice; main is told --config.parallel.replicas=SLICES
#   --spot             only on nodes of spot node pools
#   --most_restarts    how often all is started again after anything but success and bad input
#   --service_account  the Kubernetes account that may write to the bucket (Workload Identity)
#   --manifest         print the manifest and apply nothing
#   --dry_run          print the command and run nothing
#   --tpu_type         as xpk names it, such as v5litepod-16
#
# To know: the command comes back at once, the cluster does the rest, restarts too. A pod that waits costs nothing, a node
# that the autoscaler made for it does. A JobSet that has ended stays: to go on where the run was, delete it
# (kubectl delete jobset NAME) and give the command again.
#
# Exit code: 2 bad input, else that of kubectl or xpk.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

name='' image='' accelerator='' topology='' chips=4 slices=1 most_restarts=30 namespace=default service_account=default
spot=0 xpk=0 manifest=0 cluster='' project='' zone='' tpu_type=''
read_options "name image accelerator topology chips slices most_restarts namespace service_account cluster project \
zone tpu_type" "spot xpk manifest" "$@"
need name "$label" "give a name of at most 40 small letters, digits and dashes"
need image "[A-Za-z0-9][-A-Za-z0-9._/:@]*" "give a container image with the project in it: launch/Dockerfile makes one"
need slices "$positive" "give the number of slices, from 1"
need most_restarts "$whole" "give the most restarts, from 0"
if ((xpk)); then
  need cluster "$label" "give the name of a cluster that xpk made"
  need project "[-a-z0-9:.]+" "give the id of your Google Cloud project"
  need zone "[a-z]+-[a-z]+[0-9]+(-[a-z])?" "give the cluster's zone, such as us-central1-a"
  need tpu_type "[-a-z0-9]+" "give the TPU type as xpk names it, such as v5litepod-16"
  ((!spot)) || refuse "--spot does not go with --xpk: whether nodes are spot was said when xpk made the cluster"
else
  need accelerator "[a-z][-a-z0-9]*" "give the node pool's gke-tpu-accelerator, such as tpu-v5-lite-podslice"
  need topology "$positive(x$positive){1,2}" "give the node pool's gke-tpu-topology, such as 4x4 or 2x2x4"
  need chips "$positive" "give the chips of one host, such as 4"
  need namespace "$label" "give a Kubernetes namespace"
  need service_account "[a-z0-9]([-a-z0-9.]*[a-z0-9])?" "give a Kubernetes service account"
  total=$((${topology//x/*}))
  ((total % chips == 0)) || refuse "--chips is '$chips', which does not divide the $total chips of --topology=$topology"
fi
need_main shared
# First, so that the user's own value wins.
((slices == 1)) || main=(--config.parallel.replicas="$slices" "${main[@]}")

if ((xpk)); then
  # xpk starts again after 42 and 127 to 255 only, unless told; with these it is everything but 0 and 2.
  run xpk workload create --workload="$name" --cluster="$cluster" --project="$project" --zone="$zone" \
    --tpu-type="$tpu_type" --num-slices="$slices" --docker-image="$image" --max-restarts="$most_restarts" \
    --restart-on-exit-codes=1,3-126 \
    --command="$(quoted python -m selfreward_jax.main --distributed "${main[@]}")"
  exit
fi

# The words as a list in JSON, which is YAML too. Kubernetes reads $$ as $, and $(NAME) as a variable of its own.
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
declare -A values=([NAME]=$name [NAMESPACE]=$namespace [MOST_RESTARTS]=$most_restarts [SLICES]=$slices
  [HOSTS]=$((total / chips)) [SERVICE_ACCOUNT]=$service_account [ACCELERATOR]=$accelerator [TOPOLOGY]=$topology
  [IMAGE]=$image [CHIPS]=$chips)
for key in "${!values[@]}"; do text=${text//"\${$key}"/"${values[$key]}"}; done
text=${text/"\${ARGUMENTS}"/"$(list "${main[@]}")"} # last: what the user wrote is not filled in

if ((manifest)); then
  echo "$text"
elif ((dry_run)); then
  echo "$(quoted kubectl apply -f -) <<<${text@Q}"
else
  kubectl apply -f - <<<"$text"
  say "follow it: kubectl get jobset $name -n $namespace; kubectl logs -f -n $namespace" \
    "-l jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
fi
