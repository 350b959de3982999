#!/usr/bin/env bash
# The job on TPU slices of a GKE cluster, queued by XPK (pip install xpk), which builds the image out
# of this repository.
#
#   CLUSTER=mine WORKLOAD=round1 TYPE=v5litepod-256 SLICES=1 ZONE=us-central1-a PROJECT=... \
#     bash launch/tpu_xpk.sh [--dry-run] --config=FILE --workdir=DIR
#
# The workdir is on a disk that the cluster's nodes mount. Preempted, or lost with a node, the job is
# started again and goes on. XPK is being replaced by Google's Cluster Toolkit (`gcluster job
# submit`); launch/gke.sh needs neither.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_run.sh
take_dry_run "$@"
need CLUSTER "the cluster's name"
need WORKLOAD "what the job is to be called"
need TYPE "the TPU, for example v5litepod-256"
need ZONE "the cluster's zone"
need PROJECT "the cluster's project"
command="pip install --quiet -e '.[tpu]' && python -m rstar_jax.main $(words "${ARGUMENTS[@]}")"
run xpk workload create --cluster="$CLUSTER" --workload="$WORKLOAD" --tpu-type="$TYPE" \
  --num-slices="${SLICES:-1}" --zone="$ZONE" --project="$PROJECT" --max-restarts=100 \
  --restart-on-exit-codes=1 --termination-grace-period-seconds=60 \
  --base-docker-image=python:3.12 --script-dir=. --command="$command"
