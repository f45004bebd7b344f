#!/usr/bin/env bash
# Make docs/results.md and its curves from runs, which are trained first where they are missing.
#
#   docs/results.sh --runs=DIR --machine='2 cores of an AMD EPYC' [EXPERIMENT[:ARGUMENT] ...]
#
# --runs=DIR        DIR/EXPERIMENT/seed=N is the workdir of a run
# --machine=TEXT    where the runs were, and whether other programs ran beside them
# --seeds='0 1 2'   the seeds to train the experiments that are named with (0)
#
# Without experiments nothing is trained. PYTHON is the Python that has jaxconv (python3).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3} runs="" machine="" seeds=0 names=()
for argument in "$@"; do
  case $argument in
    --runs=*) runs=${argument#*=} ;;
    --machine=*) machine=${argument#*=} ;;
    --seeds=*) seeds=${argument#*=} ;;
    -*) sed -n '2,11s/^# \{0,1\}//p' "$0" && exit 2 ;;
    *) names+=("$argument") ;;
  esac
done
if [ -z "$runs" ] || [ -z "$machine" ]; then
  echo "results.sh: --runs=DIR and --machine=TEXT are needed" >&2
  exit 2
fi
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # as launch/*.sh
for name in ${names[@]+"${names[@]}"}; do
  for seed in $seeds; do
    mkdir -p "$runs/$name"
    "$python" -m jaxconv train --config="jaxconv:$name" --workdir="$runs/$name/seed=$seed" --config.seed="$seed"
  done
done
exec "$python" "$root/docs/results.py" --runs="$runs" --machine="$machine"
