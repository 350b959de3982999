# shellcheck shell=bash
# Sourced by the launch scripts: `take_dry_run "$@"` sets DRY_RUN and ARGUMENTS (all others), and
# `run COMMAND...` runs a command, or with --dry-run prints it as one could type it. With --help
# first the script's text is printed, and that is all.

take_dry_run() {
  case "${1:-}" in
    -h | --help)
      sed -nE '2,/^[^#]/ { /^#SBATCH/d; s/^# ?//p }' "launch/${BASH_SOURCE[1]##*/}"
      exit 0
      ;;
  esac
  DRY_RUN=""
  ARGUMENTS=()
  local argument
  for argument in "$@"; do
    if [[ "$argument" == --dry-run ]]; then
      DRY_RUN=1
    else
      ARGUMENTS+=("$argument")
    fi
  done
}

run() {
  if [[ -n "$DRY_RUN" ]]; then
    echo "${*@Q}"
  else
    "$@"
  fi
}

# words ARGUMENT...: as they are typed for a shell on another machine.
words() {
  (($# == 0)) || printf '%q ' "$@"
}

# need NAME: ends the script unless the variable is set.
need() {
  if [[ -z "${!1:-}" ]]; then
    echo "error: $1 is not set: $2" >&2
    exit 2
  fi
}
