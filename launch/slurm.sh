#!/usr/bin/env bash
# Train on a Slurm cluster: installs jaxconv into a .venv of this checkout, which the nodes must see too, and submits a job.
#
#   ./launch/slurm.sh --gpus=1 --time=4:00:00 --config=experiments/imagenet_resnet50.py --workdir=/shared/resnet50
#   ./launch/slurm.sh --nodes=4 --gpus=8 --config=experiments/imagenet_resnet50.py --workdir=/shared/resnet50
#   ./launch/slurm.sh --array=commands.txt --at_once=8
#
# The second is one training on 4 x 8 GPUs, a process a GPU, which find each other by Slurm's variables. The third is a job a line of
# the file, as `jaxconv sweep --launcher=print` prints them. The log is DIR.log for --workdir=DIR.
# Before the time is up, and when the job is preempted, the training saves and exits with 75; the job is then queued again and goes on.
#
# --nodes=N        machines (1)
# --gpus=N         of each machine; 0 for CPUs alone (1)
# --cpus=N         CPU cores of each process (8)
# --time=TIME      as sbatch takes it; the partition's limit by default
# --notice=SECONDS that the training gets for saving before the time is up (120)
# --array=FILE     a job a line
# --at_once=N      jobs of the array that run at the same time; all by default
# --sbatch=OPTIONS more for sbatch, such as '--partition=gpu --account=vision'
# --extras=NAMES   extras of jaxconv to install (cuda where there are GPUs)
# --restarts=N     times that a job is queued again (100)
# --retries=N      times that a training that failed is started again (2)
# --dry_run        print the commands instead
#
# All other options go to `jaxconv train`. PYTHON chooses the Python that .venv is made with, VENV its folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ "${1:-}" = --in_job ]; then
  here=$2 # Slurm runs a copy of this script that lies elsewhere
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

read_line() { # FILE NUMBER: sets training to the arguments of `jaxconv train` that stand there
  local line
  line=$(sed -n "$2p" "$1")
  case $line in "jaxconv train "*) ;; *) fail "$1, line $2: must be jaxconv train ..., and is '$line'" ;; esac
  eval "training=(${line#jaxconv train })"
}

steps_of_job() { # TASKS VENV: sets command to what trains, for the arguments in training
  # The others may still be saving when the first process has ended; those that hang are ended after two minutes.
  command=(srun --kill-on-bad-exit=0 --wait=120 "$2/bin/jaxconv" train "${training[@]}")
  if [ "$1" -gt 1 ]; then
    command+=(--distributed=auto)
  fi
}

attempt() { # trains; after a preemption the job is queued again
  local code=0
  trap : TERM INT # waits for srun, which has got the signal too
  "${command[@]}" || code=$?
  if [ "$code" -ne 75 ]; then
    return "$code"
  fi
  # Where it is no longer running, it was cancelled, or Slurm has queued it again by itself.
  if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" != RUNNING ]; then
    return 130
  fi
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$most_restarts" ]; then
    return 75
  fi
  echo "preempted; queued again"
  scontrol requeue "$SLURM_JOB_ID"
}

in_job() { # TASKS VENV RESTARTS RETRIES ARGUMENT ...
  local tasks=$1 venv=$2
  most_restarts=$3 retries=$4 restarts=0
  shift 4
  training=("$@")
  case $1 in --array=*) read_line "${1#*=}" "$SLURM_ARRAY_TASK_ID" ;; esac
  exec >>"$(workdir_of "${training[@]}").log" 2>&1
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
  # No GPUs a task: each process must see those of the whole machine, of which JAX gives it one by its number.
  job+=(${gpus:+--gpus-per-node="$gpus"} ${time:+--time="$time"} --requeue --open-mode=append --signal="TERM@$notice")
  if [ -n "$array" ]; then
    [ -f "$array" ] || fail "--array=$array: there is no such file"
    [ ${#training[@]} -eq 0 ] || fail "${training[0]}: does not go with --array; the file's lines have all"
    array=$(cd "$(dirname "$array")" && pwd)/$(basename "$array")
    lines=$(grep -c "" "$array" || true) # the last one may lack its newline, which wc would not count
    [ "$lines" -gt 0 ] || fail "--array=$array: is empty"
    for number in $(seq "$lines"); do
      read_line "$array" "$number"
    done
    training=(--array="$array")
    job+=(--array="1-$lines${at_once:+%$at_once}" --output="${array//%/%%}-%a.out")
  else
    case " ${training[*]-} " in *" --config="*) ;; *) fail "--config=FILE.py is missing" ;; esac
    workdir=$(workdir_of "${training[@]}")
    run mkdir -p "$(dirname "$workdir")"
    job+=(--output="${workdir//%/%%}.log")
  fi
  [ -n "${dry_run:-}" ] || command -v sbatch >/dev/null || fail "sbatch is not there; run this on a login node of a Slurm cluster"
  python=$(find_python)
  venv=$(venv_folder "$extras")
  make_venv "$venv" "${extras:+[$extras]}" "$python"
  run "${job[@]}" ${more[@]+"${more[@]}"} \
    "$here/slurm.sh" --in_job "$here" $((nodes * tasks_a_node)) "$venv" "$restarts" "$retries" "${training[@]}"
  if [ -n "${dry_run:-}" ]; then
    echo "# and in the job:"
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
