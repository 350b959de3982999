#!/usr/bin/env bash
# The check of every change, here and in continuous integration: lint, format, tests.
# Arguments are passed on to pytest, for example tests/search -x.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_venv.sh
use_venv test
ruff check .
ruff format --check .
pytest -q "$@"
