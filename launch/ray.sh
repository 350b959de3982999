#!/usr/bin/env bash
# The search of a run (with --stages=eval, its evaluations) on a Ray cluster whose machines come and
# go; the other stages then run where training does, on the same workdir.
#
#   bash launch/ray.sh [--dry-run] launch/ray_cluster.yaml --config=FILE --workdir=/mnt/rstar/run
#   RAY_ADDRESS=HOST:6379 bash launch/ray.sh [--dry-run] - --config=FILE --workdir=/mnt/rstar/run
#
# The first form starts the cluster that the file describes, the second uses one that is up, from a
# machine that is part of it (`ray start --address=HOST:6379 --num-cpus=0`).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_venv.sh
source launch/_run.sh
take_dry_run "$@"
cluster="${ARGUMENTS[0]:-}"
# Who deals the trees needs no accelerator, and must not take one from a worker.
search=(env JAX_PLATFORMS=cpu python -m rstar_jax.main --config.job.leases=ray --stages=search)
search+=("${ARGUMENTS[@]:1}")
if [[ "$cluster" != - && ! -f "$cluster" ]]; then
  echo "error: '$cluster': expected a cluster file such as launch/ray_cluster.yaml, or -" >&2
  exit 2
fi
[[ -n "$DRY_RUN" ]] || use_venv ray
if [[ "$cluster" == - ]]; then
  run "${search[@]}"
else
  # What Ray asks Google Cloud by; other clouds have theirs.
  if [[ -z "$DRY_RUN" ]] && grep -q 'type: gcp' "$cluster" \
    && ! python -c 'import googleapiclient' 2>/dev/null; then
    python -m pip install --quiet --disable-pip-version-check -e '.[ray,ray_gcp]'
  fi
  run ray up --yes "$cluster"
  run ray exec "$cluster" "cd rstar_jax && PATH=\$PWD/.venv/bin:\$PATH $(words "${search[@]}")"
fi
