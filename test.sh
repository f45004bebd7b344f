#!/usr/bin/env bash
# Run every check: style, types, then all tests. Creates .venv if necessary.
#
#   ./test.sh             everything except the tests marked full
#   ./test.sh --full      also those: kill and soak tests at full count
#   ./test.sh --quick     without the tests that start processes or train for a while
#   ./test.sh --newest    with the newest packages instead of those of constraints.txt
#   ./test.sh -k lecture  other arguments go to pytest
#
# PYTHON selects the Python, VENV the folder of the virtual environment (.venv by default).
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=launch/venv.sh
. launch/venv.sh
arguments=() quick=
for argument in "$@"; do
  case $argument in
    --help | -h)
      sed -n '2,10s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --newest) export newest=yes ;; # for launch/venv.sh
    --quick)
      quick=yes
      arguments+=(-m "not slow and not full")
      ;;
    *) arguments+=("$argument") ;;
  esac
done
venv=${VENV:-.venv}
python=$(find_python)
make_venv "$venv" "[test]" "$python"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
# pyright, from pip, runs on Node, which it downloads the first time if there is none. It goes by the types of the installed versions, so
# .ci/run checks them on one Python.
if [ -n "$quick" ]; then
  :
elif "$venv/bin/pyright" --version >/dev/null 2>&1; then
  "$venv/bin/pyright" --pythonpath "$venv/bin/python"
else
  echo "test.sh: the types are left out: pyright needs Node, or once the network to get it" >&2
fi
exec "$venv/bin/python" -m pytest -n 2 ${arguments[@]+"${arguments[@]}"}
