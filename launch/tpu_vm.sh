#!/usr/bin/env bash
# Train on a Cloud TPU, from your own machine: create the TPU VM, install jaxconv on all of its hosts, train on all, fetch, delete.
#
#   ./launch/tpu_vm.sh run --name=NAME --zone=us-west4-a --type=v5litepod-8 --spot \
#       --setup='jaxconv prepare cifar10' --extras=tpu,prepare \
#       --config=experiments/cifar10_fast.py --config.data.source=tfds:cifar10 --workdir=/tmp/cifar10
#
# run      all of the following, and again from the start where the TPU is taken away (--spot); the same command goes on
# create   create the TPU VM and wait for it
# install  send this checkout to all hosts and install it; again after changes
# push     send the workdir to all hosts, where there is one here
# train    train on all hosts; a training that is preempted or fails is started again there
# fetch    copy the workdir of the first host to this machine; run does so every now and then, too
# delete   delete the TPU VM, which costs until then
#
# --name=NAME      of the TPU VM
# --zone=ZONE      such as us-west4-a
# --type=TYPE      of the accelerator, such as v5litepod-8, v6e-16 or v4-32
# --version=NAME   of the software on it; the one that Google names for JAX on this type by default
# --project=NAME   gcloud's own by default
# --spot           cheaper, and may be taken away at any time
# --queued         wait for a place by a queued resource
# --keep           run does not delete the TPU VM in the end
# --shared=DIR     folder that all hosts see, for the run; a slice of several hosts needs one, such as a bucket or a file store that
#                  --setup mounts on each of them
# --setup=COMMAND  for all hosts after installing, such as 'jaxconv prepare cifar10'
# --fetch_every=S  seconds between two copies of the workdir during run (900); a TPU that is taken away loses what came after
# --extras=NAMES   extras of jaxconv to install (tpu)
# --python=VERSION that uv fetches for the hosts (3.12)
# --restarts=N     times that a TPU that was taken away is created again, and a preempted training started again (100)
# --retries=N      times that a training that failed is started again (2)
# --dry_run        print the commands instead
#
# All other options go to `jaxconv train`. --config is a file of this checkout, --workdir a folder of this machine. gcloud must be installed and logged in (gcloud init), with your key in ssh-agent.
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

# The files of the checkout that git does not ignore, and so those that are not committed, too; without git all that are not hidden.
list_files() {
  local file
  cd "$root"
  {
    git ls-files -z --cached --others --exclude-standard 2>/dev/null || find . -type f -not -path '*/.*' -print0
  } | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi # git lists those that are deleted
  done
}

pack() { # ARCHIVE
  if [ -n "${dry_run:-}" ]; then
    echo "git -C $root ls-files -z --cached --others --exclude-standard | tar -C $root -czf $1 --null -T -"
  else
    (list_files) | tar -C "$root" -czf "$1" --null -T -
  fi
}

# uv brings a Python that is new enough: the hosts' own may be 3.10.
# shellcheck disable=SC2016 # expanded on the hosts
python_there='PYTHON=$(~/.local/bin/uv python find'

install() {
  local archive=${TMPDIR:-/tmp}/jaxconv-$name.tar.gz there
  pack "$archive" || return
  tpus tpu-vm scp "$archive" "$name:jaxconv.tar.gz" --worker=all || return
  there="mkdir -p jaxconv && tar -C jaxconv -xzf jaxconv.tar.gz"
  there+=" && { python3 -m pip install --quiet --user uv || curl -LsSf https://astral.sh/uv/install.sh | sh; }"
  there+=" && ~/.local/bin/uv python install $python"
  there+=" && $python_there $python) VENV=\$HOME/jaxconv_venv jaxconv/launch/local.sh --install_only --extras=$extras"
  if [ -n "$setup" ]; then
    there+=" && PATH=\$HOME/jaxconv_venv/bin:\$PATH && $setup"
  fi
  on_all_hosts "$there"
}

push() {
  if [ -n "${dry_run:-}" ] || [ -d "$workdir" ]; then
    on_all_hosts "mkdir -p $(there_quoted)" || return
    # Into a folder that all see, once.
    tpus tpu-vm scp --recurse "$workdir" "$name:${shared:-jaxconv_runs}/" --worker="$([ -n "$shared" ] && echo 0 || echo all)"
  fi
}

there_quoted() { # the folder of runs on the hosts, for their shell
  # shellcheck disable=SC2016 # expanded on the hosts
  if [ -n "$shared" ]; then printf %q "$shared"; else printf '$HOME/jaxconv_runs'; fi
}

train() {
  local there
  there="cd jaxconv && $python_there $python) VENV=\$HOME/jaxconv_venv launch/local.sh --extras=$extras --restarts=$restarts"
  there+=" --retries=$retries --distributed=on --workdir=$(there_quoted)/$(printf %q "$(basename "$workdir")")"
  on_all_hosts "$there $(show "${arguments[@]}")"
}

fetch() {
  run mkdir -p "$(dirname "$workdir")" || return
  tpus tpu-vm scp --recurse "$name:${shared:-jaxconv_runs}/$(basename "$workdir")" "$(dirname "$workdir")/" --worker=0
}

is_there() { # whether the TPU VM is up; in a dry run it is not yet
  [ -z "${dry_run:-}" ] && [ "$(tpus tpu-vm describe "$name" --format="value(state)" 2>/dev/null)" = READY ]
}

fetch_now_and_then() {
  while sleep "$fetch_every"; do
    fetch || echo "the workdir could not be fetched; it is tried again"
  done
}

train_and_fetch() { # trains, and copies the workdir every now and then
  local code=0
  if [ -z "${dry_run:-}" ]; then
    set -m # a process group of its own, to be ended together with what it has started
    fetch_now_and_then >&2 &
    fetching=$!
    set +m
  fi
  train || code=$?
  end_fetching
  return "$code"
}

end_fetching() {
  if [ -n "${fetching:-}" ]; then
    kill -- "-$fetching" 2>/dev/null || true
    wait "$fetching" 2>/dev/null || true
    fetching=""
  fi
}

interrupted() {
  end_fetching
  echo "stopped; the TPU may be there still, and costs; to delete it: $0 delete --name=$name --zone=$zone${queued:+ --queued}" >&2
  exit 130
}

run_all() {
  local code taken=0 failed=0 came
  trap interrupted INT TERM
  while :; do
    code=0 came=""
    { is_there || create; } && came=1 && install && push && train_and_fetch || code=$?
    if [ "$code" -eq 0 ] || is_there; then
      break
    elif [ -n "$came" ]; then
      taken=$((taken + 1))
      [ "$taken" -le "$restarts" ] || break
      echo "$name was taken away; create it again, $taken of at most $restarts times" >&2
    else
      failed=$((failed + 1))
      [ "$failed" -le "$retries" ] || break
      echo "$name could not be created; try again, $failed of at most $retries times" >&2
    fi
    delete || echo "$name could not be deleted; it may be gone" >&2
    sleep "${retry_pause:-10}"
  done
  if [ -n "${dry_run:-}" ] || is_there; then
    if ! fetch; then
      echo "the workdir could not be fetched, so that $name is kept; it costs until: $0 delete --name=$name --zone=$zone" >&2
      return 1
    fi
  fi
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
      --shared=*) shared=${argument#*=} ;;
      --setup=*) setup=${argument#*=} ;;
      --fetch_every=*) fetch_every=${argument#*=} ;;
      --extras=*) extras=${argument#*=} ;;
      --python=*) python=${argument#*=} ;;
      --spot) spot=1 ;;
      --queued) queued=1 ;;
      --keep) keep=1 ;;
      --config=*) arguments+=("--config=$(in_checkout "${argument#*=}")") ;;
      --workdir=*) workdir=$(expand_home "${argument#*=}") ;;
      *) common_option "$argument" || arguments+=("$argument") ;;
    esac
  done
}

in_checkout() { # FILE.py[:ARGUMENT]: the same, from the root of the checkout
  local file=${1%%:*} path
  [ -f "$file" ] || fail "--config=$1: there is no file $file"
  path=$(cd "$(dirname "$file")" && pwd)/$(basename "$file")
  case $path in "$root"/*) ;; *) fail "--config=$1: must lie in $root, which goes to the TPU" ;; esac
  echo "${path#"$root"/}${1#"$file"}"
}

check() { # COMMAND: that the options that it needs are there
  case $1 in
    run | create | install | push | train | fetch | delete) ;;
    *) fail "$1: must be run, create, install, push, train, fetch or delete" ;;
  esac
  [ -n "$name" ] || fail "--name=NAME is missing"
  [ -n "$zone" ] || fail "--zone=ZONE is missing"
  case $shared in "" | /*) ;; *) fail "--shared=$shared: must begin with /, as the hosts see it" ;; esac
  check_number --fetch_every 1 "$fetch_every"
  case $1 in run | create) [ -n "$type" ] || fail "--type=TYPE is missing, such as v5litepod-8" ;; esac
  case $1 in run | push | train | fetch) [ -n "$workdir" ] || fail "--workdir=DIR is missing" ;; esac
  case $1 in
    run | train) case " ${arguments[*]-}" in *" --config="*) ;; *) fail "--config=FILE.py is missing" ;; esac ;;
    *) [ ${#arguments[@]} -eq 0 ] || fail "${arguments[0]}: $1 does not take it" ;;
  esac
  if [ -z "${dry_run:-}" ] && ! command -v gcloud >/dev/null; then
    fail "gcloud is not there; see https://cloud.google.com/sdk/docs/install"
  fi
}

case ${1:-} in
  "" | --help | -h)
    say_help "$0"
    exit $(($# ? 0 : 2))
    ;;
esac
name="" zone="" type="" version="" project="" shared="" setup="" fetch_every=900 extras=tpu python=3.12 spot="" queued="" keep="" workdir=""
arguments=()
parse "${@:2}"
version=${version:-$(software_of "$type")}
check "$1"
case $1 in
  run) run_all ;;
  *) "$1" ;;
esac
