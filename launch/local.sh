#!/usr/bin/env bash
# Train on this machine: makes .venv if need be, installs jaxconv, and passes its arguments on to `jaxconv train`.
# With none, it trains the lecture's X-or-O network: experiments/xo.py into /tmp/jaxconv_xo.
#
#   ./launch/local.sh
#   ./launch/local.sh --config=experiments/cifar10_quick.py --config.data.source=folder:DIR --workdir=/tmp/cifar10
#
# PYTHON chooses the Python that .venv is made with.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/venv.sh
. "$here/venv.sh"
if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 0
fi
python=$(find_python)
make_venv "$here/../.venv" "" "$python"
if [ $# -eq 0 ]; then
  set -- --config="$here/../experiments/xo.py" --workdir="${TMPDIR:-/tmp}/jaxconv_xo"
fi
exec "$here/../.venv/bin/jaxconv" train "$@"
