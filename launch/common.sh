# shellcheck shell=bash
# Sourced by launch/*.sh: options, dry runs, and restarting a run that was preempted or failed.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/.." && pwd)
# shellcheck source=launch/venv.sh
. "$here/venv.sh"

# Large pages for large arrays: a training step on a CPU otherwise spends a tenth to a half of its time on page faults (glibc 2.35 or later).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

# How often to start a run again after a preemption (exit code 75; the run has saved), and after a failure.
restarts=100
retries=2

fail() { # prints what is wrong with the command and exits with 2
  echo "$(basename "$0"): $*" >&2
  exit 2
}

say_help() { # prints the comment at the top of the script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
}

common_option() { # takes --dry_run, --restarts=N, --retries=N; returns 1 for any other
  case $1 in
    --dry_run) dry_run=1 ;;
    --restarts=* | --retries=*)
      [[ ${1#*=} =~ ^[0-9]+$ ]] || fail "$1: must be a whole number"
      case $1 in
        --restarts=*) restarts=${1#*=} ;;
        *) retries=${1#*=} ;;
      esac
      ;;
    *) return 1 ;;
  esac
}

check_number() { # OPTION LEAST VALUE
  if ! [[ $3 =~ ^[0-9]+$ ]] || [ "$3" -lt "$2" ]; then
    fail "$1=$3: must be a whole number of at least $2"
  fi
}

expand_home() { # PATH: prints it with a leading ~ replaced, as jaxconv does
  case $1 in \~ | \~/*) echo "$HOME${1#\~}" ;; *) echo "$1" ;; esac
}

is_address() { # PATH: whether it is in a bucket
  case $1 in gs://?* | s3://?*) ;; *) return 1 ;; esac
}

with_cloud() { # EXTRAS: prints them with the one that buckets need
  case ",$1," in *,cloud,*) echo "$1" ;; *) echo "${1:+$1,}cloud" ;; esac
}

# Runs a command in the background, forwards SIGTERM and SIGINT to it, and returns its exit code; sets stopped=1 after a signal.
# Bash would handle a signal only after a command in the foreground has ended.
attend() {
  local code=0 child
  stopped=
  set -m
  "$@" &
  child=$!
  set +m
  trap 'stopped=1; kill -TERM -- -$child 2>/dev/null' TERM
  trap 'stopped=1; kill -INT -- -$child 2>/dev/null' INT
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  trap - TERM INT
  return "$code"
}

# Runs a command until it succeeds: again after a preemption, a few times after a failure, but not after a usage error (2), an
# interrupt (130), or a signal to this script.
keep_running() {
  local code preempted=0 failed=0
  if [ -n "${dry_run:-}" ]; then
    show "$@"
    return
  fi
  while :; do
    code=0
    attend "$@" || code=$?
    if [ -n "$stopped" ]; then
      return "$code"
    fi
    case $code in
      0 | 2 | 130) return "$code" ;;
      75)
        preempted=$((preempted + 1))
        [ "$preempted" -le "$restarts" ] || break
        echo "preempted; restarting ($preempted of at most $restarts)" >&2
        ;;
      *)
        failed=$((failed + 1))
        [ "$failed" -le "$retries" ] || break
        echo "failed with exit code $code; retrying ($failed of at most $retries)" >&2
        sleep "${retry_pause:-10}"
        ;;
    esac
  done
  # jaxconv/results.py looks for this line.
  echo "stopped with exit code $code" >&2
  return "$code"
}

venv_folder() { # EXTRAS: .venv, or .venv-cuda and the like
  echo "${VENV:-$root/.venv${1:+-${1//,/-}}}"
}

# launch_here COMMAND [OPTION ...]: installs jaxconv on this machine and runs one of its commands; local.sh explains the options.
launch_here() {
  local command=$1 argument extras="" install_only="" arguments=() venv python
  shift
  retries=0
  for argument in "$@"; do
    case $argument in
      --help | -h)
        say_help "$0"
        exit 0
        ;;
      --extras=*) extras=${argument#*=} ;;
      --install_only) install_only=1 ;;
      *) common_option "$argument" || arguments+=("$argument") ;;
    esac
  done
  python=$(find_python)
  venv=$(venv_folder "$extras")
  make_venv "$venv" "[${extras:-train}]" "$python"
  if [ -n "$install_only" ]; then
    return
  fi
  if [ ${#arguments[@]} -eq 0 ]; then
    arguments=("${default_arguments[@]}")
  fi
  keep_running "$venv/bin/jaxconv" "$command" ${arguments[@]+"${arguments[@]}"}
}
