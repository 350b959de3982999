#!/usr/bin/env bash
# The check of every change, here and in continuous integration: lint, format, tests.
# Arguments are passed on to pytest, for example tests/search -x, or -n0 for one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_venv.sh
use_venv test
# The report is looked at in a browser: the machine's own, else playwright's, which needs no root.
for browser in chromium chromium-browser google-chrome google-chrome-stable; do
  command -v "$browser" >/dev/null && break
done || timeout 600 python -m playwright install chromium >/dev/null 2>&1 \
  || echo "no browser could be installed: tests in a browser are skipped"
ruff check .
ruff format --check .
lint-imports
# Tests of a file share what they have made, so a file is one process's.
pytest -q -n2 --dist=loadscope --no-loadscope-reorder "$@"
