"""Evaluation while training: every example of a split exactly once, as sums that devices and
processes add up.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxconv.train.ensemble import Members
from jaxconv.train.parallel import Parallel

# Batches that the host may be ahead of the device.
_AHEAD = 3


def evaluate(
    eval_step: Callable,
    parallel: Parallel,
    state: Any,
    data: Any,
    batch_size: int,
    members: Members | None = None,
) -> dict[str, Any]:
    """Means over a whole split.

    Args:
      eval_step: a compiled step, see `Parallel.compile_eval`.
      parallel: places the batches.
      state: placed on the devices.
      data: the split.
      batch_size: images a step, rounded up to a multiple of the devices; the last batch is filled
        up and masked.
      members: of an ensemble.

    Returns:
      `examples`, those that can be read, `loss`, `top1`, of more than 5 classes `top5`, and metrics
      of one's own. Of an ensemble these are the means over the members that have not diverged;
      `loss_spread` and so on their standard deviations; `ensemble_loss` and so on those of the mean
      of all members' probabilities; `members` the `name` of each, and its own unless it has
      diverged.

    Raises:
      RuntimeError: not every example was counted exactly once.
      UserError: too many of them cannot be read.
    """
    return _means(list(_batches(eval_step, parallel, state, data, batch_size)), data, members)


def evaluate_each(
    eval_step: Callable,
    parallel: Parallel,
    state: Any,
    data: Any,
    batch_size: int,
    members: Members | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `evaluate` returns, and of each example that can be read, in the order of `index`:
    `logits` [N, K] or [N, members, K], `label`.

    Args, Raises: as of `evaluate`; the step is one that keeps them, see `step.make_eval_step`, and
    there is one process.
    """
    sums, rows = [], []
    for batch_sums, each in _batches(eval_step, parallel, state, data, batch_size):
        sums.append(batch_sums)
        each = parallel.in_order(each)
        seen = each.pop("mask") > 0
        rows.append({name: values[seen] for name, values in each.items()})
    joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    order = np.argsort(joined["index"], kind="stable")
    return _means(sums, data, members), {name: values[order] for name, values in joined.items()}


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


def _means(sums: Sequence[dict[str, Any]], data: Any, members: Members | None) -> dict[str, Any]:
    totals = {name: sum(np.asarray(batch[name], np.float64) for batch in sums) for name in sums[0]}
    examples = data.examples - data.left_out  # after all batches: they tell which are damaged
    if totals["examples"] != examples:
        raise RuntimeError(
            f"{examples} examples went into the evaluation, {totals['examples']} were counted"
        )
    return result_of(totals, members)


def result_of(totals: dict[str, Any], members: Members | None) -> dict[str, Any]:
    """What `evaluate` returns, from the sums over all examples."""
    examples = int(totals["examples"])
    means = {name: value / examples for name, value in totals.items() if name != "examples"}
    if members is None:
        return {"examples": examples, **{name: float(value) for name, value in means.items()}}
    finite = np.isfinite(means["loss"])
    singles = [name for name in means if not name.startswith("ensemble_")]
    each = [{name: float(means[name][n]) for name in singles} for n in range(len(finite))]
    left = [one for one, good in zip(each, finite, strict=True) if good]
    named = [
        {"name": name} | (one if good else {})
        for name, one, good in zip(members.names, each, finite, strict=True)
    ]
    joint = {name: float(value) for name, value in means.items() if name not in singles}
    return {"examples": examples} | mean_and_spread(left or each) | joint | {"members": named}


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
