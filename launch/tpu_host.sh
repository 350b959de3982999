#!/usr/bin/env bash
# The job's part on one host of a TPU slice on Compute Engine, where the hosts of a slice are told of
# each other by the metadata server: `tpu_queued.sh run` starts it on all of them.
#
#   bash launch/tpu_host.sh [--dry-run] --config=FILE --workdir=DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_run.sh
take_dry_run "$@"
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes

told() {
  curl --silent --fail --retry 5 --header 'Metadata-Flavor: Google' "$metadata/$1" && return
  echo "error: $metadata/$1: no answer; this is for a host of a TPU slice" >&2
  return 2
}

# HOST,HOST or, from older slices, NAME:ID:HOST,NAME:ID:HOST.
IFS=, read -ra hosts <<<"$(told worker-network-endpoints)"
number="$(told agent-worker-number)"
run env "JAX_COORDINATOR_ADDRESS=${hosts[0]##*:}:8482" "JAX_NUM_PROCESSES=${#hosts[@]}" \
  "JAX_PROCESS_ID=$number" .venv/bin/python -m rstar_jax.main "${ARGUMENTS[@]}"
