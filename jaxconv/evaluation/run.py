"""Evaluation: every example of a split exactly once.

While training, sums are enough (`evaluate`). Of a run that is there, the votes for every example
are kept, in the order of its source, so that all of outcomes.py can be asked of them
(`evaluate_run`), in one process, on all its devices; several.py has several runs together.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.interface import Source
from jaxconv.data.loading import Resident, Streamed
from jaxconv.data.sources import as_files, open_source
from jaxconv.errors import UserError
from jaxconv.evaluation.outcomes import Outcomes, averaged, log_mean, mean_and_spread
from jaxconv.evaluation.views import Grouped, View, passes
from jaxconv.files import expand
from jaxconv.train.build import (
    Built,
    build,
    build_eval_step,
    build_model,
    make_transforms,
    own_metrics,
)
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.ensemble import Members, form_of_run, of_each
from jaxconv.train.losses import cross_entropy
from jaxconv.train.parallel import Parallel, make_parallel
from jaxconv.train.state import TrainState
from jaxconv.train.step import make_measure
from jaxconv.train.workdir import saved_config, saved_data

# Batches that the host may be ahead of the device.
_AHEAD = 3

Loader = Resident | Streamed | Grouped


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What the network of a run, or several together, make of every example of a split.

    Attributes:
      name: the run's workdir, or those of several.
      split: of the data.
      step: of the checkpoint; of several the latest.
      view: what was seen of each example.
      result: see `evaluate`; with it `split` and `step`. Of several runs as of an ensemble, whose
        members they are.
      outcomes: the votes for every example; of several networks, the logarithms of their mean
        probabilities.
      members: the outcomes of each of several networks by name; a member of an ensemble that has
        diverged is left out. Empty for one.
      source: the examples: `source.read(i)["image"]` and `source.name(i)` for each i of
        `outcomes.index`.
      checksum: of the examples as they are stored, whatever size they are read at.
    """

    name: str
    split: str
    step: int
    view: View
    result: dict[str, Any]
    outcomes: Outcomes
    members: dict[str, Outcomes]
    source: Source
    checksum: Callable[[], int]


def evaluate(
    eval_step: Callable,
    parallel: Parallel,
    state: Any,
    data: Loader,
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
    data: Loader,
    batch_size: int,
    members: Members | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `evaluate` returns, and of each example that can be read, in the order of `index`:
    `votes` [N, K] or [N, members, K], `label`.

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
    eval_step: Callable, parallel: Parallel, state: Any, data: Loader, batch_size: int
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


def _means(sums: Sequence[dict[str, Any]], data: Loader, members: Members | None) -> dict[str, Any]:
    totals = {name: sum(np.asarray(batch[name], np.float64) for batch in sums) for name in sums[0]}
    examples = data.examples - data.left_out  # after all batches: they tell which are damaged
    if totals["examples"] != examples:
        raise RuntimeError(
            f"{examples} examples went into the evaluation, {totals['examples']} were counted"
        )
    return _result(totals, members)


def _result(totals: dict[str, Any], members: Members | None) -> dict[str, Any]:
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


def evaluate_workdir(
    workdir: str,
    split: str = "",
    checkpoint: str = "latest",
    devices: list | None = None,
    source: Source | None = None,
    **view: Any,
) -> dict[str, Any]:
    """The `result` of `evaluate_run`, which takes the same arguments: `split`, `examples`, `loss`,
    `top1`, `step` and more.
    """
    return evaluate_run(workdir, split, checkpoint, devices, source, **view).result


def evaluate_run(
    workdir: str,
    split: str = "",
    checkpoint: str = "latest",
    devices: list | None = None,
    source: Source | None = None,
    views: str = "center",
    scales: Sequence[int] = (),
    crop_ratio: float = 0.0,
) -> Evaluation:
    """Evaluate the network that a run has trained, in one process.

    Args:
      workdir: of the run.
      split: by default the config's `data.eval_split`.
      checkpoint: `latest`, `best`, or a step.
      devices: those to use; all of this process by default.
      source: what to evaluate on instead of the split of the config's source.
      views, scales, crop_ratio: what is seen of each image, see views.py.

    Raises:
      UserError: there is no run, no such checkpoint, split or view, or the data cannot be read.
    """
    view = View(views, tuple(scales), crop_ratio)
    folder = expand(workdir)
    config, description = saved_config(folder), saved_data(folder)
    split, classes = split or config.data.eval_split, tuple(description["class_names"])
    parallel = make_parallel(config.parallel, devices or jax.local_devices())
    form = form_of_run(config, folder)
    built = build(config, description, description["train_examples"], parallel.axis_name, form)
    model, (_, preprocess) = (
        build_model(config.model, len(classes)),
        make_transforms(config, description),
    )
    ways = passes(view, config, description, model, split, source)
    state, step = restore_run(folder, checkpoint, built, parallel)
    state, results, each = parallel.to_steps(state), [], []
    for way in ways:
        eval_step = build_eval_step(
            config, model, preprocess, len(classes), parallel.axis_name, form, way.apply, each=True
        )
        compiled, data = (
            parallel.compile_eval(eval_step, built.abstract, each=True),
            way.loader(parallel, config.data),
        )
        result, rows = evaluate_each(
            compiled, parallel, state, data, way.batch_size(config.eval.batch_size), built.members
        )
        results.append(result)
        each.append(rows)
    votes = _votes_of_members([rows["votes"] for rows in each])
    labels, index = each[0]["label"], each[0]["index"]
    result = results[0] if len(ways) == 1 else _measure(votes, labels, config, built, len(classes))
    single = [Outcomes(labels, of_one, classes, index) for of_one in votes]
    named = zip(built.members.names, single, strict=True) if built.members else ()
    members = {name: outcomes for name, outcomes in named if np.isfinite(outcomes.votes).all()}
    return Evaluation(
        str(workdir),
        split,
        step,
        view,
        {"split": split, **result, "step": step},
        averaged([*members.values()] or single),
        members,
        ways[0].source,
        functools.partial(_checksum, config, split, source),
    )


def _votes_of_members(passes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The votes [N, K] of each member, or of the one network, over all passes [N, K] or [N,
    members, K].
    """
    apart = [[votes] if votes.ndim == 2 else list(np.moveaxis(votes, 1, 0)) for votes in passes]
    return [log_mean(of_one) for of_one in zip(*apart, strict=True)]


def _measure(
    votes: Sequence[np.ndarray], labels: np.ndarray, config: Any, built: Built, classes: int
) -> dict[str, Any]:
    """What `evaluate` returns, of votes that are there."""
    ensemble = built.members is not None
    measure = jax.jit(
        make_measure(cross_entropy, own_metrics(config.eval.metrics, classes), ensemble)
    )
    sums = []
    for start in range(0, len(labels), config.eval.batch_size):
        part = slice(start, start + config.eval.batch_size)
        of_part = np.stack([of_one[part] for of_one in votes]) if ensemble else votes[0][part]
        sums.append(measure(of_part, labels[part], np.ones(len(labels[part]), np.float32)))
    return _result(
        {name: sum(np.asarray(part[name], np.float64) for part in sums) for name in sums[0]},
        built.members,
    )


def _checksum(config: Any, split: str, source: Source | None) -> int:
    return (source or open_source(as_files(config.data), split)).checksum()


def restore_run(
    folder: Path,
    checkpoint: str = "latest",
    built: Built | None = None,
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
