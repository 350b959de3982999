#!/usr/bin/env bash
# The check of every change, here and in continuous integration: lint, format, tests.
# Arguments are passed on to pytest, for example tests/search -x, or -n0 for one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_venv.sh
use_venv test
ruff check .
ruff format --check .
# Tests of a file share what they have made, so a file is one process's.
pytest -q -n2 --dist=loadscope "$@"
