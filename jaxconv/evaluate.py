"""Evaluation: every example of a split exactly once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.interface import Source
from jaxconv.data.loading import Resident, Streamed, make_loader
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.train.build import Built, build
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.ensemble import Members, form_of_run, of_each
from jaxconv.train.parallel import Parallel, make_parallel
from jaxconv.train.state import TrainState
from jaxconv.train.workdir import expand, saved_config, saved_data

# Batches that the host may be ahead of the device.
_AHEAD = 3


def evaluate(
    eval_step: Callable, parallel: Parallel, state: Any, data: Resident | Streamed, batch_size: int, members: Members | None = None
) -> dict[str, Any]:
    """Means over a whole split.

    Args:
      eval_step: a compiled step, see `Parallel.compile_eval`.
      parallel: places the batches.
      state: placed on the devices.
      data: the split.
      batch_size: images a step, rounded up to a multiple of the devices; the last batch is filled up and masked.
      members: of an ensemble.

    Returns:
      `examples`, those that can be read, `loss`, `top1`, and metrics of one's own. Of an ensemble these are the means over the members that
      have not diverged; `loss_spread` and `top1_spread` their standard deviations; `ensemble_loss` and `ensemble_top1` those of the mean
      of all members' probabilities; `members` the `name` of each, and `loss` and `top1` unless it has diverged.

    Raises:
      RuntimeError: not every example was counted exactly once.
      UserError: too many of them cannot be read.
    """
    batch_size = -(-batch_size // len(parallel.devices)) * len(parallel.devices)
    sums: list[dict[str, Any]] = []
    for batch in data.eval_batches(batch_size):
        sums.append(eval_step(state, data.data, batch))
        # Streamed batches must not pile up before a device that is slower than the host.
        jax.block_until_ready(sums[-_AHEAD:][0])
    totals = {name: sum(np.asarray(batch[name], np.float64) for batch in sums) for name in sums[0]}
    examples = data.examples - data.left_out  # after all batches: they tell which are damaged
    if totals["examples"] != examples:
        raise RuntimeError(f"{examples} examples went into the evaluation, {totals['examples']} were counted")
    means = {name: value / examples for name, value in totals.items() if name != "examples"}
    if members is None:
        return {"examples": examples, **{name: float(value) for name, value in means.items()}}
    finite = np.isfinite(means["loss"])
    left = finite if finite.any() else slice(None)
    singles = [name for name in means if not name.startswith("ensemble_")]
    each = [{"name": name} | {key: float(means[key][n]) for key in singles if finite[n]} for n, name in enumerate(members.names)]
    result = {"examples": examples}
    for name in singles:
        values = means[name][left]
        result |= {name: float(values.mean()), f"{name}_spread": float(values.std(ddof=1)) if len(values) > 1 else 0.0}
    return result | {name: float(value) for name, value in means.items() if name not in singles} | {"members": each}


def evaluate_workdir(
    workdir: str, split: str = "", checkpoint: str = "latest", devices: list | None = None, source: Source | None = None
) -> dict[str, Any]:
    """Evaluate the network that a run has trained.

    Args:
      workdir: of the run.
      split: by default the config's `data.eval_split`.
      checkpoint: `latest`, `best`, or a step.
      devices: those to use; all by default.
      source: what to evaluate on instead of the split of the config's source.

    Returns:
      `split`, `examples`, `loss`, `top1`, `step`.

    Raises:
      UserError: there is no run, no such checkpoint or split, or the data cannot be read.
    """
    folder = expand(workdir)
    config, description = saved_config(folder), saved_data(folder)
    parallel = make_parallel(config.parallel, devices)
    built = build(config, description, description["train_examples"], parallel.axis_name, form_of_run(config, folder))
    state, step = restore_run(folder, checkpoint, built, parallel)
    source = source or open_source(config.data, split or config.data.eval_split, like=description)
    data = make_loader(source, parallel, config.data)
    eval_step = parallel.compile_eval(built.eval_step, built.abstract)
    result = evaluate(eval_step, parallel, parallel.to_steps(state), data, config.eval.batch_size, built.members)
    return {"split": split or config.data.eval_split, **result, "step": step}


def restore_run(
    folder: Path, checkpoint: str = "latest", built: Built | None = None, parallel: Parallel | None = None
) -> tuple[TrainState, int]:
    """The whole state in a checkpoint of a run, and its step.

    Args:
      folder: the run's workdir.
      checkpoint: `latest`, `best`, or a step.
      built: of the run; by default it is built here.
      parallel: where to put it; by default on one device.

    Raises:
      UserError: there is no run, or no such checkpoint, or it cannot be read.
    """
    config, description = saved_config(folder), saved_data(folder)
    built = built or build(config, description, description["train_examples"], axis_name=None)
    parallel = parallel or make_parallel("jit", jax.local_devices()[:1])
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"--workdir={folder}: the run has no checkpoint yet", exit_code=1)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    targets = parallel.targets(built.abstract)
    try:
        if checkpoint == "best":
            return _best(checkpoints, of_each(config.checkpoint.metric, built.members), targets)
        if checkpoint != "latest" and not checkpoint.isdecimal():
            raise UserError(f"--checkpoint={checkpoint}: must be latest, best or a step")
        restored = checkpoints.restore(targets, None if checkpoint == "latest" else int(checkpoint))
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"--workdir={folder}: the run has no checkpoint yet", exit_code=1)
    return restored[0], int(np.max(jax.device_get(restored[0].step)))


def _best(checkpoints: Checkpoints, metrics: tuple[str, ...], targets: TrainState) -> tuple[TrainState, int]:
    """The best state, and its step; of an ensemble each member's own best, and the latest of their steps."""
    found = [checkpoints.best_step(metric) for metric in metrics]
    evaluated = [step for step in found if step is not None]
    if not evaluated:
        raise UserError(f"--checkpoint=best: no checkpoint was evaluated; there are steps {checkpoints.steps()}", exit_code=1)
    # A member that diverged before its first evaluation has no best, and is as diverged in the latest of the others'.
    steps = [max(evaluated) if step is None else step for step in found]
    states = {step: checkpoints.restore(targets, step)[0] for step in set(steps)}
    if len(metrics) == 1:
        return states[steps[0]], steps[0]
    return jax.tree.map(lambda *each: jnp.stack([x[n] for n, x in enumerate(each)]), *(states[step] for step in steps)), max(steps)
