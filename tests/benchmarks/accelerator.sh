#!/usr/bin/env bash
# What a GPU does with jaxconv, in one command of about eight minutes on an NVIDIA H100 or H200:
#
#   tests/benchmarks/accelerator.sh                    # prints each table as it is measured
#   tests/benchmarks/accelerator.sh --cifar10=DIR      # also cifar10_fast on DIR/train and DIR/test
#   tests/benchmarks/accelerator.sh --small            # tiny sizes, for a CPU: does it run?
#
# It needs jax, flax and optax; torch for the ratios to torch.compile, and what jaxconv[train] needs for the loop, starts and CIFAR-10. A
# part that fails or takes too long prints its last lines, and the others go on. PYTHON selects the Python.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
small='' cifar10='' failed=0
for argument in "$@"; do
  case $argument in
    --small) small=1 ;;
    --cifar10=*) cifar10=${argument#*=} ;;
    --help | -h)
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "accelerator.sh: $argument is not an option; see --help" >&2
      exit 2
      ;;
  esac
done
log=$(mktemp)
trap 'rm -f "$log"' EXIT

part() { # TITLE SECONDS COMMAND [ARGUMENT ...]
  local title=$1 seconds=$2 start=$SECONDS code=0
  shift 2
  echo "## $title"
  timeout "$seconds" "$@" 2>"$log" || code=$?
  if [ "$code" != 0 ]; then
    failed=1
    echo "not measured: exit code $code$([ "$code" = 124 ] && echo ", after $seconds s")"
    tail -n 3 "$log"
  fi
  echo "($((SECONDS - start)) s)"
  echo
}

benchmark() { # TITLE SECONDS SCRIPT [ARGUMENT ...]
  local title=$1 seconds=$2 script=$3
  shift 3
  part "$title" "$seconds" "$python" "tests/benchmarks/$script.py" "$@"
}

if [ -n "$small" ]; then
  networks=(--networks lenet5 --batch 2 --repeats 1 --dtypes float32)
  limit=300 loop=(--repeats 1) members=(--members 2 --repeats 1 --batch 2 --size 8 --model "text:conv3-2 relu fc")
  scaling=(--batch 2 --size 8 --repeats 1 --model "text:conv3-2 relu fc") trace=(--network lenet5 --batch 2)
else
  networks=(--batch 256 --repeats 3 --dtypes bfloat16)
  limit=90 loop=(--repeats 3 --steps_per_call 10) members=(--repeats 3 --batch 512)
  scaling=(--batch 1024 --repeats 1 --dtype bfloat16) trace=(--network resnet50 --batch 256 --dtype bfloat16)
fi
if [ -n "$small" ]; then
  benchmark "A training step" $limit networks "${networks[@]}" --modes train --contenders eager
else
  for name in resnet50 vgg16 convnext_tiny; do
    benchmark "$name, a training step" 120 networks "${networks[@]}" --networks $name --modes train --contenders compile,flax
  done
fi
benchmark "The largest entries of a step's trace" $limit trace "${trace[@]}" --entries 5
benchmark "The loop over a bare jit; first and second start" $limit loop_overhead "${loop[@]}"
benchmark "Members in one program over one after another" $limit ensemble "${members[@]}"
benchmark "jit against pmap" $limit scaling "${scaling[@]}" --modes jit,pmap
if [ -n "$cifar10" ]; then
  workdir=$(mktemp -d)
  part "experiments/cifar10_fast.py" 180 "$python" -m jaxconv train --config=experiments/cifar10_fast.py --workdir="$workdir/run" \
    --config.data.source="folder:$cifar10"
  rm -rf "$workdir"
fi
exit "$failed"
