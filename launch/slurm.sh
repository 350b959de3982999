#!/usr/bin/env bash
#SBATCH --job-name=rstar_jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rstar_jax-%j.log
# A job on a SLURM cluster, one process a node with all of its GPUs, from the repository root:
#
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh --config=FILE --workdir=DIR
#   bash launch/slurm.sh --dry-run --config=FILE --workdir=DIR       # prints what each node runs
#
# The repository and the workdir lie on a disk that all nodes see. Two minutes before its time is
# over, or when it is preempted, the job saves its state; then it is put into the queue again.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
source launch/_venv.sh
source launch/_run.sh
take_dry_run "$@"
[[ -n "$DRY_RUN" ]] || use_venv cuda
code=0
# The processes end each other, and save before they do: SLURM is to leave that to them.
run srun --kill-on-bad-exit=0 --wait=0 python -m rstar_jax.main "${ARGUMENTS[@]}" || code=$?
if ((code == 143)); then
  run scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
