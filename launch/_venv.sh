# shellcheck shell=bash
# Sourced by the launch scripts: `use_venv [EXTRA]` makes .venv in the repository root with the
# project and the named extra installed, and puts its python first on PATH. The environment is
# reused while setup.py is unchanged; one that is active already and has what is needed is used.

# Of later ones array_record has no wheel.
find_python() {
  local candidate test='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
    if [[ -n "$candidate" ]] && command -v "$candidate" >/dev/null \
      && "$candidate" -c "$test" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 to 3.14 found: install one, or name it with PYTHON=/path/to/python" >&2
  return 1
}

use_venv() {
  local extra="${1:-}" venv="$PWD/.venv" needed="jax, rstar_jax" stamp marker python
  local markers=("$venv/.installed-$extra")
  case "$extra" in
    test) needed+=", pytest, ruff" ;;
    ray) needed+=", ray" ;;
    cuda) needed+=", jax_cuda12_plugin" ;; # without it JAX runs on the CPU
  esac
  # The extra `test` holds `ray`, but nothing for accelerators.
  case "$extra" in '' | ray) markers+=("$venv/.installed-test") ;; esac
  if [[ -n "${VIRTUAL_ENV:-}" ]] \
    && "$VIRTUAL_ENV/bin/python" -I -c "import $needed" 2>/dev/null; then # -I: not from here
    export PATH="$VIRTUAL_ENV/bin:$PATH"
    return
  fi
  stamp="$(cksum <setup.py)"
  for marker in "${markers[@]}"; do
    if [[ -f "$marker" && "$(cat "$marker")" == "$stamp" ]]; then
      export PATH="$venv/bin:$PATH"
      return
    fi
  done
  if [[ ! -x "$venv/bin/python" ]]; then
    python="$(find_python)"
    if ! "$python" -m venv "$venv"; then
      rm -rf "$venv"
      echo "error: $python cannot make a virtual environment: install its venv module" \
        "(on Debian and Ubuntu: apt install python3-venv)" >&2
      return 1
    fi
  fi
  echo "installing rstar_jax${extra:+[$extra]} into $venv (a few minutes, once)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}"
  echo "$stamp" >"$venv/.installed-$extra"
  export PATH="$venv/bin:$PATH"
}
