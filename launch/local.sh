#!/usr/bin/env bash
# Train on this machine: creates .venv if necessary, installs jaxconv, and passes its arguments to `jaxconv train`.
# Without arguments it trains the lecture's X-or-O network: experiments/xo.py into /tmp/jaxconv_xo.
#
#   ./launch/local.sh
#   ./launch/local.sh --config=experiments/cifar10_quick.py --config.data.source=folder:DIR --workdir=/tmp/cifar10
#
# A preempted run (on SIGTERM it saves and exits with 75) is started again and resumes.
# --extras=NAMES  extras of jaxconv to install, such as cuda for an NVIDIA GPU, tpu, or cuda,fast; each choice has its own .venv
# --install_only  create .venv and stop
# --restarts=N    how often to start a preempted run again (100)
# --retries=N     how often to start a failed run again (0)
# --dry_run       print the commands instead of running them
#
# PYTHON selects the Python for .venv, VENV its folder.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck disable=SC2034 # for launch_here
default_arguments=(--config="$root/experiments/xo.py" --workdir="${TMPDIR:-/tmp}/jaxconv_xo")
launch_here train "$@"
