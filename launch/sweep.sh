#!/usr/bin/env bash
# Train every combination of some settings: creates .venv if necessary, installs jaxconv, and passes its arguments to `jaxconv sweep`.
# Without arguments it tries two learning rates with two seeds on the lecture's X's and O's, in /tmp/jaxconv_sweep.
#
#   ./launch/sweep.sh --config=experiments/xo.py --grid='optimizer.learning_rate=0.01,0.1 seed=0:3' --workdir=/tmp/sweep
#   ./launch/sweep.sh ... --launcher=slurm --slurm='--gpus=1 --time=4:00:00'    as a job array, see slurm.sh
#   ./launch/sweep.sh ... --launcher=print > commands.txt                       only the commands
#   ./launch/sweep.sh ... --table                                               the table and plot of the results so far
#
# The same command resumes unfinished runs; a preempted sweep (exit code 75) is started again.
# --extras=NAMES  extras of jaxconv to install, such as cuda for an NVIDIA GPU, tpu, or cuda,fast; each choice has its own .venv
# --install_only  create .venv and stop
# --restarts=N    how often to start a preempted sweep again (100)
# --retries=N     how often to start a sweep with a failed run again (0)
# --dry_run       print the commands instead of running them
#
# PYTHON selects the Python for .venv, VENV its folder.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck disable=SC2034 # for launch_here
default_arguments=(
  --config="$root/experiments/xo.py" --workdir="${TMPDIR:-/tmp}/jaxconv_sweep" --grid="optimizer.learning_rate=0.01,0.05 seed=0:2"
)
launch_here sweep "$@"
