"""A run that is there, from its workdir: the state in one of its checkpoints."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.errors import UserError
from jaxconv.train.build import BuiltRun, build
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.ensemble import of_each
from jaxconv.train.parallel import Parallel, make_parallel
from jaxconv.train.state import TrainState
from jaxconv.train.workdir import opened_config, saved_data


def restore_run(
    folder: Path,
    checkpoint: str = "latest",
    built: BuiltRun | None = None,
    parallel: Parallel | None = None,
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
    config, description = opened_config(folder), saved_data(folder)
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


def _best(
    checkpoints: Checkpoints, metrics: tuple[str, ...], targets: TrainState
) -> tuple[TrainState, int]:
    """The best state, and its step; of an ensemble each member's own best, and the latest of their
    steps.
    """
    found = [checkpoints.best_step(metric) for metric in metrics]
    evaluated = [step for step in found if step is not None]
    if not evaluated:
        raise UserError(
            "--checkpoint=best: no checkpoint was evaluated; there are steps "
            f"{checkpoints.steps()}",
            exit_code=1,
        )
    # A member that diverged before its first evaluation has no best, and is as diverged in the
    # latest of the others'.
    steps = [max(evaluated) if step is None else step for step in found]
    states = {step: checkpoints.restore(targets, step)[0] for step in set(steps)}
    if len(metrics) == 1:
        return states[steps[0]], steps[0]
    return jax.tree.map(
        lambda *each: jnp.stack([x[n] for n, x in enumerate(each)]),
        *(states[step] for step in steps),
    ), max(steps)
