"""Evaluation of a state: every example of a split exactly once, as sums that devices and processes
add up, and where the task asks for it, what is kept of each example.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxconv.tasks.task import means
from jaxconv.train.ensemble import Members
from jaxconv.train.parallel import Parallel

# Batches that the host may be ahead of the device.
_AHEAD = 3

# (sums, examples, kept) -> figures, see `Task.finish`.
Finish = Callable[[Mapping[str, np.ndarray], int, Mapping[str, np.ndarray] | None], dict]


def evaluate(
    eval_step: Callable,
    parallel: Parallel,
    state: Any,
    data: Any,
    batch_size: int,
    members: Members | None = None,
    finish: Finish = means,
) -> dict[str, Any]:
    """The figures of a whole split.

    Args:
      eval_step: a compiled step, see `Parallel.compile_eval`.
      parallel: places the batches.
      state: placed on the devices.
      data: the split.
      batch_size: images a step, rounded up to a multiple of the devices; the last batch is filled
        up and masked.
      members: of an ensemble.
      finish: makes the figures of the sums.

    Returns:
      `examples`, those that can be read, and the figures, such as `loss` and `top1`. Of an ensemble
      these are the means over the members that have not diverged; `loss_spread` and so on their
      standard deviations; `ensemble_loss` and so on those of the combined prediction; `members` the
      `name` of each, and its own figures unless it has diverged.

    Raises:
      RuntimeError: not every example was counted exactly once.
      UserError: too many of them cannot be read.
    """
    sums = list(_batches(eval_step, parallel, state, data, batch_size))
    return result_of(_totals(sums, data), members, finish)


def evaluate_each(
    eval_step: Callable,
    parallel: Parallel,
    state: Any,
    data: Any,
    batch_size: int,
    members: Members | None = None,
    finish: Finish = means,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `evaluate` returns, and of each example that can be read, once each and in the order of
    `index`, what the task keeps of it: [N, ...], or [N, members, ...], on every process.

    Args, Raises: as of `evaluate`; the step is one that keeps them, see `step.make_eval_step`.
    """
    sums, rows = [], []
    for batch_sums, each in _batches(eval_step, parallel, state, data, batch_size):
        sums.append(batch_sums)
        each = parallel.in_order(each)
        seen = each.pop("mask") > 0
        rows.append({name: values[seen] for name, values in each.items()})
    joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    order = np.argsort(joined["index"], kind="stable")
    kept = {name: values[order] for name, values in joined.items()}
    return result_of(_totals(sums, data), members, finish, kept), kept


def _batches(
    eval_step: Callable, parallel: Parallel, state: Any, data: Any, batch_size: int
) -> Iterator[Any]:
    """What the step returns for each batch, when the device is done with it."""
    batch_size = -(-batch_size // len(parallel.devices)) * len(parallel.devices)
    pending: collections.deque[Any] = collections.deque()
    for batch in data.eval_batches(batch_size):
        pending.append(eval_step(state, data.data, batch))
        # Streamed batches must not pile up before a device that is slower than the host.
        if len(pending) == _AHEAD:
            yield jax.block_until_ready(pending.popleft())
    yield from pending


def _totals(sums: Sequence[dict[str, Any]], data: Any) -> dict[str, np.ndarray]:
    totals = {name: sum(np.asarray(batch[name], np.float64) for batch in sums) for name in sums[0]}
    examples = data.examples - data.left_out  # after all batches: they tell which are damaged
    if totals["examples"] != examples:
        raise RuntimeError(
            f"{examples} examples went into the evaluation, {totals['examples']} were counted"
        )
    return totals


def result_of(
    totals: Mapping[str, Any],
    members: Members | None,
    finish: Finish = means,
    kept: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """What `evaluate` returns, from the sums over all examples and what was kept of each."""
    examples = int(totals["examples"])
    sums = {name: value for name, value in totals.items() if name != "examples"}
    if members is None:
        return {"examples": examples, **finish(sums, examples, kept)}
    singles = {name: value for name, value in sums.items() if not name.startswith("ensemble_")}
    joint = {name.removeprefix("ensemble_"): sums[name] for name in sums.keys() - singles.keys()}
    own = {k for k in kept or () if k != "index" and not k.startswith("ensemble_")}
    together = kept and {k: kept[f"ensemble_{k}"] for k in own}
    each = [
        finish(
            {name: value[n] for name, value in singles.items()},
            examples,
            kept and {k: v[:, n] for k, v in kept.items() if k in own},
        )
        for n in range(len(members.names))
    ]
    left = [one for one in each if np.isfinite(one["loss"])]
    named = [
        {"name": name} | (one if np.isfinite(one["loss"]) else {})
        for name, one in zip(members.names, each, strict=True)
    ]
    combined = finish(joint, examples, together)
    combined = {f"ensemble_{name}": value for name, value in combined.items()}
    return {"examples": examples} | mean_and_spread(left or each) | combined | {"members": named}


def mean_and_spread(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """`loss` and `loss_spread`, the mean and the standard deviation, and so on, of figures that all
    have; of one the spread is 0.
    """
    shared = [name for name in each[0] if all(name in other for other in each)]
    result: dict[str, float] = {}
    for name in shared:
        values = [figures[name] for figures in each]
        result |= {
            name: float(np.mean(values)),
            f"{name}_spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        }
    return result
