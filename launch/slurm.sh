#!/usr/bin/env bash
# Train on a Slurm cluster: installs jaxconv into a .venv of this checkout, which all nodes must see, and submits a job.
#
#   ./launch/slurm.sh --gpus=1 --time=4:00:00 --config=experiments/imagenet_resnet50.py --workdir=/shared/resnet50
#   ./launch/slurm.sh --nodes=4 --gpus=8 --config=experiments/imagenet_resnet50.py --workdir=/shared/resnet50
#   ./launch/slurm.sh --array=commands.txt --at_once=8
#   ./launch/slurm.sh --gpus=8 --config=experiments/imagenet_resnet50.py --workdir=s3://BUCKET/resnet50
#
# The second is one run on 4 x 8 GPUs with one process per GPU; the processes find each other through Slurm's variables. The third is
# one job per line of the file, as `jaxconv sweep --launcher=print` prints them. The log of --workdir=DIR is DIR.log; that of a workdir in
# a bucket is in the folder from which the job is submitted. The nodes need no folder that all see for such a workdir, only the checkout.
# Before the time limit, and when the job is preempted, the run saves and exits with 75; the job is then requeued and resumes.
#
# --nodes=N        machines (1)
# --gpus=N         GPUs of each machine; 0 for CPUs only (1)
# --cpus=N         CPU cores of each process (8)
# --time=TIME      time limit, in sbatch's format; the partition's limit by default
# --notice=SECONDS time before the limit at which the run is told to save (120)
# --array=FILE     run one job per line of the file
# --at_once=N      how many jobs of the array run at the same time; all by default
# --sbatch=OPTIONS further options for sbatch, such as '--partition=gpu --account=vision'
# --extras=NAMES   extras of jaxconv to install (cuda if there are GPUs)
# --restarts=N     how often to requeue a job (100)
# --retries=N      how often to start a failed run again (2)
# --dry_run        print the commands instead of running them
#
# All other options go to `jaxconv train`. PYTHON selects the Python for .venv, VENV its folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ "${1:-}" = --in_job ]; then
  here=$2 # Slurm runs a copy of this script from another folder
fi
# shellcheck source=launch/common.sh
. "$here/common.sh"

workdir_of() { # prints the value of --workdir among the arguments
  local argument
  for argument in "$@"; do
    case $argument in --workdir=?*) expand_home "${argument#*=}" && return ;; esac
  done
  fail "--workdir=DIR is missing"
}

log_of() { # WORKDIR
  if is_address "$1"; then echo "$PWD/$(basename "$1").log"; else echo "$1.log"; fi
}

read_line() { # FILE NUMBER: sets training to the arguments of `jaxconv train` on that line
  local line
  line=$(sed -n "$2p" "$1")
  case $line in "jaxconv train "*) ;; *) fail "$1, line $2: must be jaxconv train ..., but is '$line'" ;; esac
  eval "training=(${line#jaxconv train })"
}

steps_of_job() { # TASKS VENV: sets command to the training command for the arguments in training
  # Other processes may still be saving when the first one has ended; srun kills those that hang after two minutes.
  command=(srun --kill-on-bad-exit=0 --wait=120 "$2/bin/jaxconv" train "${training[@]}")
  if [ "$1" -gt 1 ]; then
    command+=(--distributed=auto)
  fi
}

attempt() { # trains; requeues the job after a preemption
  local code=0
  trap : TERM INT # keep waiting for srun, which gets the signal too
  "${command[@]}" || code=$?
  if [ "$code" -ne 75 ]; then
    return "$code"
  fi
  # If the job is no longer running, it was cancelled, or Slurm has requeued it already.
  if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" != RUNNING ]; then
    return 130
  fi
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$most_restarts" ]; then
    return 75
  fi
  echo "preempted; requeued"
  scontrol requeue "$SLURM_JOB_ID"
}

in_job() { # TASKS VENV RESTARTS RETRIES ARGUMENT ...
  local tasks=$1 venv=$2
  most_restarts=$3 retries=$4 restarts=0
  shift 4
  training=("$@")
  case $1 in --array=*) read_line "${1#*=}" "$SLURM_ARRAY_TASK_ID" ;; esac
  exec >>"$(log_of "$(workdir_of "${training[@]}")")" 2>&1
  steps_of_job "$tasks" "$venv"
  # jaxconv/results.py looks for this line.
  echo "\$ $(show "${command[@]}")"
  keep_running attempt
}

parse() {
  local argument
  for argument in "$@"; do
    case $argument in
      --help | -h)
        say_help "$0"
        exit 0
        ;;
      --nodes=*) nodes=${argument#*=} ;;
      --gpus=*) gpus=${argument#*=} ;;
      --cpus=*) cpus=${argument#*=} ;;
      --time=*) time=${argument#*=} ;;
      --notice=*) notice=${argument#*=} ;;
      --array=*) array=${argument#*=} ;;
      --at_once=*) at_once=${argument#*=} ;;
      --sbatch=*) read -r -a more <<<"${argument#*=}" ;;
      --extras=*) extras=${argument#*=} ;;
      *) common_option "$argument" || training+=("$argument") ;;
    esac
  done
  check_number --nodes 1 "$nodes"
  check_number --gpus 0 "$gpus"
  check_number --cpus 1 "$cpus"
  check_number --notice 1 "$notice"
  check_number --at_once 0 "$at_once"
}

submit() {
  local tasks_a_node=$((gpus > 0 ? gpus : 1)) python venv workdir lines number
  local job=(sbatch --job-name=jaxconv --nodes="$nodes" --ntasks-per-node="$tasks_a_node" --cpus-per-task="$cpus")
  # No --gpus-per-task: each process must see all GPUs of its machine, of which JAX selects one by local rank.
  job+=(${gpus:+--gpus-per-node="$gpus"} ${time:+--time="$time"} --requeue --open-mode=append --signal="TERM@$notice")
  if [ -n "$array" ]; then
    [ -f "$array" ] || fail "--array=$array: file not found"
    [ ${#training[@]} -eq 0 ] || fail "${training[0]}: cannot be combined with --array; put it into the lines of the file"
    array=$(cd "$(dirname "$array")" && pwd)/$(basename "$array")
    lines=$(grep -c "" "$array" || true) # wc would not count a last line without a newline
    [ "$lines" -gt 0 ] || fail "--array=$array: the file is empty"
    for number in $(seq "$lines"); do
      read_line "$array" "$number"
      if is_address "$(workdir_of "${training[@]}")"; then extras=$(with_cloud "$extras"); fi
    done
    training=(--array="$array")
    job+=(--array="1-$lines${at_once:+%$at_once}" --output="${array//%/%%}-%a.out")
  else
    case " ${training[*]-} " in *" --config="*) ;; *) fail "--config=FILE.py is missing" ;; esac
    workdir=$(workdir_of "${training[@]}")
    if is_address "$workdir"; then extras=$(with_cloud "$extras"); else run mkdir -p "$(dirname "$workdir")"; fi
    workdir=$(log_of "$workdir")
    job+=(--output="${workdir//%/%%}")
  fi
  [ -n "${dry_run:-}" ] || command -v sbatch >/dev/null || fail "sbatch not found; run this on a login node of a Slurm cluster"
  python=$(find_python)
  venv=$(venv_folder "$extras")
  make_venv "$venv" "[${extras:-train}]" "$python"
  run "${job[@]}" ${more[@]+"${more[@]}"} \
    "$here/slurm.sh" --in_job "$here" $((nodes * tasks_a_node)) "$venv" "$restarts" "$retries" "${training[@]}"
  if [ -n "${dry_run:-}" ]; then
    echo "# in the job:"
    for number in $(seq "${lines:-1}"); do
      [ -z "$array" ] || read_line "$array" "$number"
      steps_of_job $((nodes * tasks_a_node)) "$venv"
      show "${command[@]}"
    done
  fi
}

training=()
if [ "${1:-}" = --in_job ]; then
  shift 2
  in_job "$@"
else
  nodes=1 gpus=1 cpus=8 time="" notice=120 array="" at_once=0 extras="" more=()
  parse "$@"
  if [ "$gpus" -eq 0 ]; then gpus=""; fi
  if [ "$at_once" -eq 0 ]; then at_once=""; fi
  if [ -n "$gpus" ] && [ -z "$extras" ]; then extras=cuda; fi
  submit
fi
