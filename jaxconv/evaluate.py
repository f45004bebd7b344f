"""Evaluation: every example of a split exactly once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxconv.data.interface import Source
from jaxconv.data.loading import Resident, Streamed, make_loader
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.train.build import Built, build
from jaxconv.train.checkpoint import Checkpoints, abstract_of
from jaxconv.train.parallel import Parallel, make_parallel
from jaxconv.train.state import TrainState
from jaxconv.train.workdir import expand, saved_config, saved_data

# Batches that the host may be ahead of the device.
_AHEAD = 3


def evaluate(eval_step: Callable, parallel: Parallel, state: Any, data: Resident | Streamed, batch_size: int) -> dict[str, float]:
    """Means over a whole split.

    Args:
      eval_step: a compiled step, see `Parallel.compile_eval`.
      parallel: places the batches.
      state: placed on the devices.
      data: the split.
      batch_size: images a step, rounded up to a multiple of the devices; the last batch is filled up and masked.

    Returns:
      `examples`, those that can be read, `loss`, `top1`.

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
    totals = {name: sum(float(batch[name]) for batch in sums) for name in sums[0]}
    examples = data.examples - data.left_out
    if totals["examples"] != examples:
        raise RuntimeError(f"{examples} examples went into the evaluation, {totals['examples']} were counted")
    return {"examples": examples, "loss": totals["loss"] / examples, "top1": totals["top1"] / examples}


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
    built = build(config, description, description["train_examples"], parallel.axis_name)
    state, step = restore_run(folder, checkpoint, built)
    source = source or open_source(config.data, split or config.data.eval_split, like=description)
    data = make_loader(source, parallel, config.data)
    result = evaluate(parallel.compile_eval(built.eval_step), parallel, parallel.replicate(state), data, config.eval.batch_size)
    return {"split": split or config.data.eval_split, **result, "step": step}


def restore_run(folder: Path, checkpoint: str = "latest", built: Built | None = None) -> tuple[TrainState, int]:
    """The state in a checkpoint of a run, on one device, and its step.

    Args:
      folder: the run's workdir.
      checkpoint: `latest`, `best`, or a step.
      built: of the run; by default it is built here.

    Raises:
      UserError: there is no run, or no such checkpoint, or it cannot be read.
    """
    config, description = saved_config(folder), saved_data(folder)
    built = built or build(config, description, description["train_examples"], axis_name=None)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"--workdir={folder}: the run has no checkpoint yet", exit_code=1)
    checkpoints = Checkpoints(folder / "checkpoints", metric=config.checkpoint.metric, read_only=True)
    try:
        step = _step_of(checkpoints, checkpoint)
        restored = checkpoints.restore(abstract_of(built.abstract), step)
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"--workdir={folder}: the run has no checkpoint yet", exit_code=1)
    return restored[0], int(jax.device_get(restored[0].step))


def _step_of(checkpoints: Checkpoints, name: str) -> int | None:
    if name == "latest":
        return None
    if name == "best":
        best = checkpoints.best_step()
        if best is None:
            raise UserError(f"--checkpoint=best: no checkpoint was evaluated; there are steps {checkpoints.steps()}", exit_code=1)
        return best
    if not name.isdecimal():
        raise UserError(f"--checkpoint={name}: must be latest, best or a step")
    return int(name)
