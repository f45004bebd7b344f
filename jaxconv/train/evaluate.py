"""Evaluation of a state on every example of a split exactly once.

The results are sums over devices and processes and, if the task needs them, values of each example.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxconv.tasks.task import means
from jaxconv.train.ensemble import Members
from jaxconv.train.parallel import Parallel
from jaxconv.train.step import MEMBER_MASK

# Batches by which the host may run ahead of the device.
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
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compute the figures of a whole split.

    Args:
      eval_step: a compiled step, see `Parallel.compile_eval`.
      parallel: places the batches.
      state: the state, placed on the devices.
      data: the loader of the split.
      batch_size: images per step, rounded up to a multiple of the devices; the last batch is padded
        and masked.
      members: the members of an ensemble; None for one network.
      finish: computes the figures from the sums.
      before: the result of an earlier evaluation of the run; it tells which members have diverged
        already, so that one pass over the split is enough.

    Returns:
      `examples`, the number of readable examples, and the figures, such as `loss` and `top1`. For
      an ensemble, these are means over the members that have not diverged; `loss_spread` and so on
      are their standard deviations; `ensemble_loss` and so on are the figures of the combined
      prediction of the members that have not diverged; `members` has the `name` of each member, and
      its figures unless it has diverged: whether it has is decided once, for the whole split.

    Raises:
      RuntimeError: not every example was counted exactly once.
      UserError: too many examples cannot be read.
    """

    def measure(resident: Any) -> tuple[dict[str, Any], None]:
        sums = list(_batches(eval_step, parallel, state, data, resident, batch_size))
        return result_of(_totals(sums, data), members, finish), None

    return _decided_once(measure, parallel, data, members, before)[0]


def evaluate_each(
    eval_step: Callable,
    parallel: Parallel,
    state: Any,
    data: Any,
    batch_size: int,
    members: Members | None = None,
    finish: Finish = means,
    before: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Like `evaluate`, but also returns what the task keeps of each example.

    These values are [N, ...], or [N, members, ...], on every process: one for each readable
    example, in the order of `index`.

    Args, Raises: as in `evaluate`; `eval_step` returns these values, see `step.make_eval_step`.
    """

    def measure(resident: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        sums, rows = [], []
        for batch_sums, each in _batches(eval_step, parallel, state, data, resident, batch_size):
            sums.append(batch_sums)
            each = parallel.in_order(each)
            seen = each.pop("mask") > 0
            rows.append({name: values[seen] for name, values in each.items()})
        joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        order = np.argsort(joined["index"], kind="stable")
        kept = {name: values[order] for name, values in joined.items()}
        return result_of(_totals(sums, data), members, finish, kept), kept

    return _decided_once(measure, parallel, data, members, before)


def _decided_once(
    measure: Callable[[Any], tuple[dict[str, Any], Any]],
    parallel: Parallel,
    data: Any,
    members: Members | None,
    before: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], Any]:
    """What `measure` returns of the resident data, with the mask of an ensemble's members.

    Only after a pass over the whole split is it known which members have diverged; if they are
    others than was thought, there is another pass.
    """
    if members is None:
        return measure(data.data)
    taking = member_mask(before, members)
    for _ in range(2):
        found = measure(data.data | {MEMBER_MASK: parallel.replicate(taking)})
        decided = member_mask(found[0], members)
        if np.array_equal(decided, taking):
            break
        taking = decided
    return found


def member_mask(result: Mapping[str, Any] | None, members: Members) -> np.ndarray:
    """`MEMBER_MASK`, [M] float32: 1 for members that have not diverged by a result of `evaluate`.

    All are 1 without a result, or if all have diverged.
    """
    left = ["loss" in member for member in result["members"]] if result else []
    return np.array(left if any(left) else [True] * len(members.names), np.float32)


def _batches(
    eval_step: Callable, parallel: Parallel, state: Any, data: Any, resident: Any, batch_size: int
) -> Iterator[Any]:
    """Yield what the step returns for each batch, once the device has finished it."""
    batch_size = -(-batch_size // len(parallel.devices)) * len(parallel.devices)
    pending: collections.deque[Any] = collections.deque()
    for batch in data.eval_batches(batch_size):
        pending.append(eval_step(state, resident, batch))
        # Streamed batches must not pile up if the device is slower than the host.
        if len(pending) == _AHEAD:
            yield jax.block_until_ready(pending.popleft())
    yield from pending


def _totals(sums: Sequence[dict[str, Any]], data: Any) -> dict[str, Any]:
    totals: dict[str, Any] = {
        name: sum(np.asarray(batch[name], np.float64) for batch in sums) for name in sums[0]
    }
    examples = data.examples - data.left_out  # known only after all batches were read
    if totals["examples"] != examples:
        raise RuntimeError(
            f"{examples} examples were evaluated, but {totals['examples']} were counted"
        )
    return totals


def result_of(
    totals: Mapping[str, Any],
    members: Members | None,
    finish: Finish = means,
    kept: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """What `evaluate` returns, from the sums over all examples and the values kept of each."""
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
    """The mean (`loss`) and standard deviation (`loss_spread`) of each figure that all have.

    The standard deviation of a single value is 0.
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
