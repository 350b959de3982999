#!/usr/bin/env bash
# Sets the GitHub repository that the notebooks' badges open and that the notebooks clone:
#
#   bash launch/notebooks.sh                    # the one that this clone came from (remote origin)
#   bash launch/notebooks.sh you/rstar_jax
#
# A fork that is pushed after this has badges that work; everything else needs no repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
origin="$(git remote get-url origin 2>/dev/null | sed -nE 's#^.*github\.com[:/]([^/]+/[^/]+)$#\1#p')" || true
repository="${1:-${origin%.git}}"
if [[ ! "$repository" =~ ^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$ ]]; then
  echo "error: '$repository': expected OWNER/NAME of a GitHub repository, as in" \
    "bash launch/notebooks.sh you/rstar_jax" >&2
  exit 2
fi
for notebook in *.ipynb; do
  known="$(sed -nE "s#.*REPOSITORY = 'https://github\.com/([^']+)'.*#\1#p" "$notebook")"
  sed -E "s#(github|github\.com)/${known//./\\.}([/'])#\1/$repository\2#g" "$notebook" >"$notebook.tmp"
  cat "$notebook.tmp" >"$notebook"
  rm "$notebook.tmp"
  echo "launch/$notebook: https://github.com/$repository"
done
