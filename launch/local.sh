#!/usr/bin/env bash
# Train on this machine: makes .venv if need be, installs jaxconv, and passes its arguments on to `jaxconv train`.
# With none, it trains the lecture's X-or-O network: experiments/xo.py into /tmp/jaxconv_xo.
#
#   ./launch/local.sh
#   ./launch/local.sh --config=experiments/cifar10_quick.py --config.data.source=folder:DIR --workdir=/tmp/cifar10
#
# A training that is preempted (told by SIGTERM to stop, it saves and exits with 75) is started again, and goes on where it was.
# --extras=NAMES  extras of jaxconv to install, such as cuda for an NVIDIA GPU, tpu, or cuda,fast; each choice has a .venv of its own
# --install_only  make .venv and stop
# --restarts=N    times that a preempted training is started again (100)
# --retries=N     times that one that failed is started again (0)
# --dry_run       print the commands instead
#
# PYTHON chooses the Python that .venv is made with, VENV its folder.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck disable=SC2034 # for launch_here
default_arguments=(--config="$root/experiments/xo.py" --workdir="${TMPDIR:-/tmp}/jaxconv_xo")
launch_here train "$@"
