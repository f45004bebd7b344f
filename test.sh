#!/usr/bin/env bash
# Run every check: style, then all tests. Creates .venv if necessary.
#
#   ./test.sh             everything except the tests marked full
#   ./test.sh --full      also those: kill and soak tests at full count
#   ./test.sh --quick     without the tests that start processes or train for a while
#   ./test.sh -k lecture  other arguments go to pytest
#
# PYTHON selects the Python, VENV the folder of the virtual environment (.venv by default).
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=launch/venv.sh
. launch/venv.sh
arguments=()
for argument in "$@"; do
  case $argument in
    --help | -h)
      sed -n '2,9s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --quick) arguments+=(-m "not slow and not full") ;;
    *) arguments+=("$argument") ;;
  esac
done
venv=${VENV:-.venv}
python=$(find_python)
make_venv "$venv" "[test]" "$python"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
exec "$venv/bin/python" -m pytest -n 2 ${arguments[@]+"${arguments[@]}"}
