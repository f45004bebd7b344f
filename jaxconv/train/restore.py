"""Restores the state of an existing run from a checkpoint in its workdir."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.errors import UserError
from jaxconv.tasks import find_task
from jaxconv.train.build import build_network
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.ensemble import members_of, of_each
from jaxconv.train.parallel import Parallel, make_parallel
from jaxconv.train.state import TrainState
from jaxconv.train.workdir import opened_config, saved_data


def restore_run(
    folder: Path,
    checkpoint: str = "latest",
    abstract: TrainState | None = None,
    parallel: Parallel | None = None,
    config: Any = None,
) -> tuple[TrainState, int]:
    """The whole state in a checkpoint of a run, and its step.

    Args:
      folder: the run's workdir.
      checkpoint: `latest`, `best`, or a step.
      abstract: shapes of the state; by default they come from building the run's network alone.
      parallel: where to place the state; by default on one device.
      config: that the run was opened with, see `opened_config`, which makes it by default.

    Raises:
      UserError: there is no run or no such checkpoint, or it cannot be read.
    """
    config, description = config or opened_config(folder), saved_data(folder)
    if abstract is None:
        abstract = build_network(config, description).abstract
    parallel = parallel or make_parallel("jit", jax.local_devices()[:1])
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"--workdir={folder}: the run has no checkpoint yet", exit_code=1)
    task = find_task(config.task.name)
    metric = task.metric(config.checkpoint.metric)
    higher = task.figure(metric).higher
    checkpoints = Checkpoints(folder / "checkpoints", higher=higher, read_only=True)
    targets = parallel.targets(abstract)
    try:
        if checkpoint == "best":
            return _best(checkpoints, of_each(metric, members_of(config)), targets)
        if checkpoint != "latest" and not checkpoint.isdecimal():
            raise UserError(f"--checkpoint={checkpoint}: must be latest, best or a step")
        restored = checkpoints.restore(targets, None if checkpoint == "latest" else int(checkpoint))
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"--workdir={folder}: the run has no checkpoint yet", exit_code=1)
    return restored[0], int(np.max(jax.device_get(restored[0].step)))


def _best(
    checkpoints: Checkpoints, metrics: tuple[str, ...], targets: TrainState
) -> tuple[TrainState, int]:
    """The best state and its step; for an ensemble, each member's best and the latest step."""
    found = [checkpoints.best_step(metric) for metric in metrics]
    evaluated = [step for step in found if step is not None]
    if not evaluated:
        raise UserError(
            "--checkpoint=best: no checkpoint was evaluated; choose one of the steps "
            f"{checkpoints.steps()}",
            exit_code=1,
        )
    # A member that diverged before its first evaluation has no best. Any later checkpoint will do:
    # take the latest of the others'.
    steps = [max(evaluated) if step is None else step for step in found]
    restored = {step: checkpoints.restore(targets, step) for step in set(steps)}
    states = {step: found[0] for step, found in restored.items() if found is not None}
    if len(metrics) == 1:
        return states[steps[0]], steps[0]
    return jax.tree.map(
        lambda *each: jnp.stack([x[n] for n, x in enumerate(each)]),
        *(states[step] for step in steps),
    ), max(steps)
