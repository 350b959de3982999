#!/usr/bin/env bash
# A TPU slice by a queued resource, and the job on all of its hosts. Needs gcloud, and a workdir on a
# disk that all hosts mount (Filestore, or by gcsfuse a bucket with a hierarchical namespace: in
# others folders cannot be renamed, as states of trainings are).
#
#   NAME=pod ZONE=us-central1-a TYPE=v5litepod-64 RUNTIME=v2-alpha-tpuv5-lite \
#     bash launch/tpu_queued.sh create [--dry-run] [--spot]
#   NAME=pod ZONE=... bash launch/tpu_queued.sh run [--dry-run] --config=FILE --workdir=DIR
#   NAME=pod ZONE=... bash launch/tpu_queued.sh delete [--dry-run]
#
# `create` copies what is committed here to the hosts and installs it there; stopped, the same command
# goes on. `run` again goes on, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_run.sh
take_dry_run "$@"
need NAME "what the slice is to be called"
need ZONE "where it is, for example us-central1-a"
queued=(gcloud compute tpus queued-resources)
machine=(gcloud compute tpus tpu-vm)

state_of_slice() {
  "${queued[@]}" describe "$NAME" --zone="$ZONE" --format='value(state.state)'
}

on_all() {
  run "${machine[@]}" ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case "${ARGUMENTS[0]:-}" in
  create)
    need TYPE "the accelerator, for example v5litepod-64"
    need RUNTIME "the TPU software, for example v2-alpha-tpuv5-lite"
    if [[ -n "$DRY_RUN" ]] || ! state="$(state_of_slice 2>/dev/null)"; then
      run "${queued[@]}" create "$NAME" --node-id="$NAME" --zone="$ZONE" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "${ARGUMENTS[@]:1}"
      state=""
    fi
    until [[ -n "$DRY_RUN" || "$state" == ACTIVE ]]; do
      case "$state" in
        FAILED | SUSPENDED | SUSPENDING | DELETING)
          echo "error: $NAME is $state: delete it, then create it again" >&2
          exit 1
          ;;
      esac
      echo "waiting for $NAME (${state:-not known})"
      sleep "${POLL_SECONDS:-60}"
      state="$(state_of_slice)" || state="" # asked again: the slice is not gone for that
    done
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
    run git archive --format=tar.gz --output="$folder/rstar_jax.tar.gz" HEAD
    run "${machine[@]}" scp "$folder/rstar_jax.tar.gz" "$NAME:" --zone="$ZONE" --worker=all
    on_all 'mkdir -p rstar_jax && cd rstar_jax &&
rm -rf rstar_jax experiments launch tests && tar -xzf ../rstar_jax.tar.gz &&
python3 -m pip install --quiet --user uv &&
{ [ -x .venv/bin/pip ] || python3 -m uv venv --quiet --seed --python 3.12 .venv; } &&
.venv/bin/pip install --quiet -e ".[tpu]"'
    ;;
  run)
    on_all "cd rstar_jax && bash launch/tpu_host.sh $(words "${ARGUMENTS[@]:1}")"
    ;;
  delete)
    run "${queued[@]}" delete "$NAME" --zone="$ZONE" --force --quiet
    ;;
  *)
    echo "error: '${ARGUMENTS[0]:-}': expected create, run or delete" >&2
    exit 2
    ;;
esac
