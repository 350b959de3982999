#!/usr/bin/env bash
# Three rounds of self-evolution with no download: a tiny model, generated problems, some minutes on
# 2 cores. Arguments are passed on, for example --workdir=DIR or --config.seed=1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_venv.sh
use_venv
exec python -m rstar_jax.main --config=experiments/quickstart.py --workdir=runs/quickstart "$@"
