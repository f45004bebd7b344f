#!/usr/bin/env bash
# Train every combination of some settings: makes .venv if need be, installs jaxconv, and passes its arguments on to `jaxconv sweep`.
# With none, it tries two learning rates with two seeds on the lecture's X's and O's, into /tmp/jaxconv_sweep.
#
#   ./launch/sweep.sh --config=experiments/xo.py --grid='optimizer.learning_rate=0.01,0.1 seed=0:3' --workdir=/tmp/sweep
#   ./launch/sweep.sh ... --launcher=slurm --slurm='--gpus=1 --time=4:00:00'    as an array of jobs, see slurm.sh
#   ./launch/sweep.sh ... --launcher=print > commands.txt                       the commands alone
#   ./launch/sweep.sh ... --table                                               the table and the plot of what there is
#
# The same command resumes what is not finished; a sweep that is preempted (exit code 75) is started again.
# --extras=NAMES  extras of jaxconv to install, such as cuda for an NVIDIA GPU, tpu, or cuda,fast; each choice has a .venv of its own
# --install_only  make .venv and stop
# --restarts=N    times that a preempted sweep is started again (100)
# --retries=N     times that one with a failed run is started again (0)
# --dry_run       print the commands instead
#
# PYTHON chooses the Python that .venv is made with, VENV its folder.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck disable=SC2034 # for launch_here
default_arguments=(
  --config="$root/experiments/xo.py" --workdir="${TMPDIR:-/tmp}/jaxconv_sweep" --grid="optimizer.learning_rate=0.01,0.05 seed=0:2"
)
launch_here sweep "$@"
