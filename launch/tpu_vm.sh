#!/usr/bin/env bash
# Train on a Cloud TPU from your own machine: create the TPU VM, install jaxconv on all hosts, train, delete the VM.
# The workdir is in a bucket, so nothing is lost with the VM, and the hosts need no folder that all of them see.
#
#   ./launch/tpu_vm.sh run --name=NAME --zone=us-west4-a --type=v5litepod-8 --spot \
#       --setup='jaxconv prepare cifar10' --extras=tpu,prepare \
#       --config=experiments/cifar10_fast.py --config.data.source=tfds:cifar10 --workdir=gs://BUCKET/cifar10
#
# run      all of the following, from the start again if the TPU is preempted (--spot); the same command resumes
# create   create the TPU VM and wait for it
# install  copy this checkout to all hosts and install it; repeat after changes
# train    train on all hosts; a run that is preempted or fails is started again there
# delete   delete the TPU VM, which is billed until then
#
# --name=NAME      name of the TPU VM
# --zone=ZONE      such as us-west4-a
# --type=TYPE      accelerator type, such as v5litepod-8, v6e-16 or v4-32
# --version=NAME   software version of the VM; by default the one that Google recommends for JAX on this type
# --project=NAME   gcloud's configured project by default
# --spot           cheaper, but may be preempted at any time
# --queued         wait for capacity with a queued resource
# --keep           do not delete the TPU VM at the end of run
# --setup=COMMAND  command for all hosts after the installation, such as 'jaxconv prepare cifar10'
# --extras=NAMES   extras of jaxconv to install, in addition to cloud (tpu)
# --python=VERSION Python version that uv installs on the hosts (3.12)
# --restarts=N     how often to create a preempted TPU again, and to start a preempted run again (100)
# --retries=N      how often to start a failed run again (2)
# --dry_run        print the commands instead of running them
#
# All other options go to `jaxconv train`. --config is a file of this checkout. The TPU's service account must be able to write to the bucket.
# gcloud must be installed and logged in (gcloud init), with your key in ssh-agent.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

software_of() { # TYPE: https://docs.cloud.google.com/tpu/docs/runtimes, the versions for JAX
  case $1 in
    v6e*) echo v2-alpha-tpuv6e ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

tpus() { # gcloud compute tpus ARGUMENT ...
  run gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"}
}

on_all_hosts() { # COMMAND
  tpus tpu-vm ssh "$name" --worker=all --command="$1"
}

create() {
  local state
  if [ -z "$queued" ]; then
    tpus tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
    return
  fi
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot} || return
  while :; do
    state=$(tpus queued-resources describe "$name" --format="value(state.state)") || return
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        echo "the queued resource $name is $state" >&2
        return 1
        ;;
      gcloud*) echo "$state  # until it says ACTIVE" && return ;; # a dry run
    esac
    sleep "${poll:-30}"
  done
}

delete() {
  if [ -n "$queued" ]; then
    tpus queued-resources delete "$name" --force --quiet
  else
    tpus tpu-vm delete "$name" --quiet
  fi
}

# All files of the checkout that git does not ignore, committed or not; without git, all that are not hidden.
list_files() {
  local file
  cd "$root"
  {
    git ls-files -z --cached --others --exclude-standard 2>/dev/null || find . -type f -not -path '*/.*' -print0
  } | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi # git lists deleted files too
  done
}

pack() { # ARCHIVE
  if [ -n "${dry_run:-}" ]; then
    echo "git -C $root ls-files -z --cached --others --exclude-standard | tar -C $root -czf $1 --null -T -"
  else
    (list_files) | tar -C "$root" -czf "$1" --null -T -
  fi
}

# uv installs a recent Python: the hosts may have only 3.10.
# shellcheck disable=SC2016 # expanded on the hosts
python_there='PYTHON=$(~/.local/bin/uv python find'

install() {
  local archive=${TMPDIR:-/tmp}/jaxconv-$name.tar.gz there
  pack "$archive" || return
  tpus tpu-vm scp "$archive" "$name:jaxconv.tar.gz" --worker=all || return
  there="mkdir -p jaxconv && tar -C jaxconv -xzf jaxconv.tar.gz"
  there+=" && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv" # into the user's own folder
  there+=" && ~/.local/bin/uv python install $python"
  there+=" && $python_there $python) VENV=\$HOME/jaxconv_venv jaxconv/launch/local.sh --install_only --extras=$extras"
  if [ -n "$setup" ]; then
    there+=" && PATH=\$HOME/jaxconv_venv/bin:\$PATH && $setup"
  fi
  on_all_hosts "$there"
}

train() {
  local there
  there="cd jaxconv && $python_there $python) VENV=\$HOME/jaxconv_venv launch/local.sh --extras=$extras --restarts=$restarts"
  there+=" --retries=$retries --distributed=on --workdir=$(show "$workdir")"
  on_all_hosts "$there $(show "${arguments[@]}")"
}

is_there() { # whether the TPU VM is up; never in a dry run
  [ -z "${dry_run:-}" ] && [ "$(tpus tpu-vm describe "$name" --format="value(state)" 2>/dev/null)" = READY ]
}

interrupted() {
  echo "stopped; the TPU may still exist and is billed; to delete it: $0 delete --name=$name --zone=$zone${queued:+ --queued}" >&2
  exit 130
}

run_all() {
  local code taken=0 failed=0 came
  trap interrupted INT TERM
  while :; do
    code=0 came=""
    { is_there || create; } && came=1 && install && train || code=$?
    if [ "$code" -eq 0 ] || is_there; then
      break
    elif [ -n "$came" ]; then
      taken=$((taken + 1))
      [ "$taken" -le "$restarts" ] || break
      echo "$name was preempted; creating it again ($taken of at most $restarts)" >&2
    else
      failed=$((failed + 1))
      [ "$failed" -le "$retries" ] || break
      echo "$name could not be created; retrying ($failed of at most $retries)" >&2
    fi
    delete || echo "$name could not be deleted; it may not exist anymore" >&2
    sleep "${retry_pause:-10}"
  done
  if [ -z "$keep" ]; then
    delete || [ "$code" -ne 0 ] || return
  fi
  return "$code"
}

parse() {
  local argument
  for argument in "$@"; do
    case $argument in
      --help | -h)
        say_help "$0"
        exit 0
        ;;
      --name=*) name=${argument#*=} ;;
      --zone=*) zone=${argument#*=} ;;
      --type=*) type=${argument#*=} ;;
      --version=*) version=${argument#*=} ;;
      --project=*) project=${argument#*=} ;;
      --setup=*) setup=${argument#*=} ;;
      --extras=*) extras=${argument#*=} ;;
      --python=*) python=${argument#*=} ;;
      --spot) spot=1 ;;
      --queued) queued=1 ;;
      --keep) keep=1 ;;
      --config=*) arguments+=("--config=$(in_checkout "${argument#*=}")") ;;
      --workdir=*) workdir=${argument#*=} ;;
      *) common_option "$argument" || arguments+=("$argument") ;;
    esac
  done
}

in_checkout() { # FILE.py[:ARGUMENT]: prints it relative to the root of the checkout
  local file=${1%%:*} path
  [ -f "$file" ] || fail "--config=$1: file $file not found"
  path=$(cd "$(dirname "$file")" && pwd)/$(basename "$file")
  case $path in "$root"/*) ;; *) fail "--config=$1: must be inside $root, which is copied to the TPU" ;; esac
  echo "${path#"$root"/}${1#"$file"}"
}

check() { # COMMAND: fails unless the options that it needs are given
  case $1 in
    run | create | install | train | delete) ;;
    *) fail "$1: must be run, create, install, train or delete" ;;
  esac
  [ -n "$name" ] || fail "--name=NAME is missing"
  [ -n "$zone" ] || fail "--zone=ZONE is missing"
  case $1 in run | create) [ -n "$type" ] || fail "--type=TYPE is missing, such as v5litepod-8" ;; esac
  case $1 in run | train) is_address "$workdir" || fail "--workdir=$workdir: must be in a bucket, such as gs://BUCKET/PATH" ;; esac
  case $1 in
    run | train) case " ${arguments[*]-}" in *" --config="*) ;; *) fail "--config=FILE.py is missing" ;; esac ;;
    *) [ ${#arguments[@]} -eq 0 ] || fail "${arguments[0]}: not an option of $1" ;;
  esac
  if [ -z "${dry_run:-}" ] && ! command -v gcloud >/dev/null; then
    fail "gcloud not found; see https://cloud.google.com/sdk/docs/install"
  fi
}

case ${1:-} in
  "" | --help | -h)
    say_help "$0"
    exit $(($# ? 0 : 2))
    ;;
esac
name="" zone="" type="" version="" project="" setup="" extras=tpu python=3.12 spot="" queued="" keep="" workdir=""
arguments=()
parse "${@:2}"
version=${version:-$(software_of "$type")}
extras=$(with_cloud "$extras")
check "$1"
case $1 in
  run) run_all ;;
  *) "$1" ;;
esac
