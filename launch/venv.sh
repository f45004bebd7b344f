# shellcheck shell=bash
# Sourced by launch/common.sh and test.sh: make_venv FOLDER EXTRAS PYTHON creates a virtual environment with jaxconv, unless it exists
# and setup.cfg has not changed since. EXTRAS is [train] or others, which contain it; [test] has the versions of constraints.txt, unless
# newest is set. With dry_run set, commands are printed instead of run.

show() { # prints a command, quoted for a shell
  local argument line=""
  for argument in "$@"; do
    case $argument in
      "" | *[!A-Za-z0-9_./=:,@%+-]*) line+=" '$(printf %s "$argument" | sed "s/'/'\\\\''/g")'" ;;
      *) line+=" $argument" ;;
    esac
  done
  echo "${line# }"
}

run() { # runs a command, or prints it in a dry run
  if [ -n "${dry_run:-}" ]; then
    show "$@"
  else
    "$@"
  fi
}

find_python() { # prints the path of the first Python that is new enough: $PYTHON, python3, python3.13 ...
  local python
  for python in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  echo "jaxconv needs Python 3.11 or newer; none was found (set PYTHON to one)" >&2
  return 1
}

make_venv() {
  local folder=$1 extras=$2 python=$3 root stamp limits=()
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  stamp="$extras $(cksum <"$root/setup.cfg") $("$python" --version)"
  if [ "$extras" = "[test]" ] && [ -z "${newest:-}" ]; then
    limits=(--constraint "$root/constraints.txt")
    stamp+=" $(cksum <"$root/constraints.txt")"
  fi
  if [ -z "${dry_run:-}" ] && [ "$(cat "$folder/installed" 2>/dev/null)" = "$stamp" ]; then
    return
  fi
  [ -n "${dry_run:-}" ] || echo "installing jaxconv into $folder (once; a minute or two)" >&2
  if ! run "$python" -m venv "$folder"; then
    echo "$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
    return 1
  fi
  run "$folder/bin/python" -m pip install --quiet --disable-pip-version-check ${limits[@]+"${limits[@]}"} --editable "$root$extras" || return 1
  if [ -z "${dry_run:-}" ]; then
    echo "$stamp" >"$folder/installed"
  fi
}
