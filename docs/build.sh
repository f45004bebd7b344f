#!/usr/bin/env bash
# Build the site into docs/_build/html (or OUT), with warnings as errors; needs `pip install -e '.[docs]'`.
#
#   docs/build.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")"
exec "${PYTHON:-python3}" -m sphinx --builder html --fail-on-warning --keep-going --nitpicky --quiet . "${1:-_build/html}"
