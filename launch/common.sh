# shellcheck shell=bash
# Sourced by launch/*.sh: options, dry runs, and a training that is started again when it was stopped from outside.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/.." && pwd)
# shellcheck source=launch/venv.sh
. "$here/venv.sh"

# How often what was preempted (exit code 75, after it has saved) is started again, and how often what failed.
restarts=100
retries=2

fail() { # says what is wrong with the command, and ends by 2
  echo "$(basename "$0"): $*" >&2
  exit 2
}

say_help() { # prints the comment at the head of the script
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

expand_home() { # PATH: the same, a ~ at its head replaced, as jaxconv does
  case $1 in \~ | \~/*) echo "$HOME${1#\~}" ;; *) echo "$1" ;; esac
}

# Runs a command as a job of its own, and hands on the SIGTERM or SIGINT that this script gets; returns its exit code.
# stopped is 1 afterwards where there was one. Bash waits for a command in the foreground before it looks at a signal.
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

# Runs a command until it ends well: again when it was preempted, a few times when it failed, never when it was wrong (2),
# interrupted (130), or when this script itself was told to stop.
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
        echo "preempted; start again, $preempted of at most $restarts times" >&2
        ;;
      *)
        failed=$((failed + 1))
        [ "$failed" -le "$retries" ] || break
        echo "ended by exit code $code; try again, $failed of at most $retries times" >&2
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

# launch_here COMMAND [OPTION ...]: installs jaxconv on this machine and runs one of its commands; see local.sh for the options.
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
  make_venv "$venv" "${extras:+[$extras]}" "$python"
  if [ -n "$install_only" ]; then
    return
  fi
  if [ ${#arguments[@]} -eq 0 ]; then
    arguments=("${default_arguments[@]}")
  fi
  keep_running "$venv/bin/jaxconv" "$command" ${arguments[@]+"${arguments[@]}"}
}
