#!/usr/bin/env bash
# One job as N processes of this machine, each with its own part of the GPUs (of a CPU, all of it):
# so that no group of devices waits for the slowest while searching.
#
#   bash launch/local_processes.sh N [--dry-run] --config=FILE --workdir=DIR [...]
#
# Lines of the processes are told apart by their number. Ctrl-C and SIGTERM go to all of them; the
# exit code is that of the first that failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_venv.sh
source launch/_run.sh
take_dry_run "$@"
count="${ARGUMENTS[0]:-}"
if ! [[ "$count" =~ ^[1-9][0-9]*$ ]]; then
  echo "error: '$count': expected the number of processes, for example 4" >&2
  exit 2
fi
# Those that CUDA_VISIBLE_DEVICES names, else all.
all="$({ nvidia-smi -L 2>/dev/null || true; } | sed -nE 's/^GPU ([0-9]+):.*/\1/p' | paste -sd, -)"
[[ "${CUDA_VISIBLE_DEVICES-}" == -1 ]] && CUDA_VISIBLE_DEVICES="" # none
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES-$all}"
if ((${#gpus[@]} % count)); then
  echo "error: $count processes cannot share ${#gpus[@]} GPUs evenly" >&2
  exit 2
fi
each=$((${#gpus[@]} / count))
extra=""
((each)) && extra=cuda
[[ -n "$DRY_RUN" ]] || use_venv "$extra"
# Two ports, this one and the next.
port="${PORT:-$((20000 + 2 * (RANDOM % 6000)))}"

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
for ((number = 0; number < count; number++)); do
  settings=(
    "JAX_COORDINATOR_ADDRESS=localhost:$port" "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$number"
  )
  if ((each)); then
    settings+=("CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]:number * each:each}")")
  fi
  command=(env "${settings[@]}" python -m rstar_jax.main "${ARGUMENTS[@]:1}")
  if [[ -n "$DRY_RUN" ]]; then
    run "${command[@]}"
  else
    "${command[@]}" > >(sed -u "s/^/$number: /") 2>&1 &
    pids+=($!)
  fi
done
code=0
for pid in "${pids[@]}"; do
  one=0
  wait "$pid" || one=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal has ended the wait, and the process saves
    one=0
    wait "$pid" || one=$?
  done
  ((code)) || code="$one"
done
exit "$code"
