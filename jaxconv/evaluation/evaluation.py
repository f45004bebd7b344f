"""Evaluation of an existing run: every example of a split exactly once.

`evaluate_run` runs in one process, on all its devices. It keeps the outcomes of every example, in
the order of the source, so that more than the figures can be computed from them. several.py
evaluates several runs together.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxconv.data.interface import Source
from jaxconv.data.sources import as_files, open_source
from jaxconv.errors import UserError
from jaxconv.evaluation.passes import passes
from jaxconv.evaluation.views import View
from jaxconv.files import expand
from jaxconv.tasks import Task, needs_of
from jaxconv.train.build import BuiltNetwork, build_eval_step, build_network
from jaxconv.train.ensemble import form_of_run
from jaxconv.train.evaluate import evaluate_each, member_mask, result_of
from jaxconv.train.other_data import Overrides, as_overrides, reading
from jaxconv.train.parallel import in_32_bits, make_parallel
from jaxconv.train.restore import restore_run
from jaxconv.train.step import MEMBER_MASK, make_sums
from jaxconv.train.workdir import opened_config, saved_data


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The results of a run's network, or of several together, on every example of a split.

    Attributes:
      name: the run's workdir, or those of several.
      data: the source of the examples, as in `config.data.source`.
      split: of the data.
      step: of the checkpoint; for several the latest.
      view: what the network saw of each example.
      task: of the run, or of the first of several.
      result: see `evaluate`, plus `split` and `step`. Several runs are reported as members of an
        ensemble.
      outcomes: of every example, see `Task.outcomes`; for several networks, of their combined
        prediction.
      members: the outcomes of each of several networks by name, without diverged members of an
        ensemble. Empty for a single network.
      source: the examples: `source.read(i)["image"]` and `source.name(i)` for each i of
        `outcomes.index`.
      checksum: of the examples as they are stored, independent of the size they are read at.
    """

    name: str
    data: str
    split: str
    step: int
    view: View
    task: Task
    result: dict[str, Any]
    outcomes: Any
    members: dict[str, Any]
    source: Source
    checksum: Callable[[], int]


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


@in_32_bits
def evaluate_run(
    workdir: str,
    split: str = "",
    checkpoint: str = "latest",
    devices: list | None = None,
    source: Source | None = None,
    views: str = "center",
    scales: Sequence[float] = (),
    crop_ratio: float = 0.0,
    own_size: bool = False,
    overrides: Overrides = (),
    only_present: bool = False,
    files: Sequence[str] = (),
) -> Evaluation:
    """Evaluate the network that a run has trained, in one process.

    Args:
      workdir: of the run.
      split: by default the config's `data.eval_split`.
      checkpoint: `latest`, `best`, or a step.
      devices: those to use; all of this process by default.
      source: to evaluate on instead of the split of the config's source.
      views, scales, crop_ratio, own_size: what the network sees of each image, see views.py.
      overrides: `KEY=VALUE` each or values by key, such as data.source=folder:DIR,
        to evaluate on other data, see train/other_data.py.
      only_present: predictions are among the classes that the split has examples of.
      files: the names of those of the task's `writers` that will be called.

    Raises:
      UserError: the run, checkpoint, split or view does not exist, or the data cannot be read.
    """
    view = View(views, tuple(scales), crop_ratio, own_size)
    folder = expand(workdir)
    config, description = opened_config(folder, overrides), saved_data(folder)
    if split and any(
        override.startswith("data.eval_split=") for override in as_overrides(overrides)
    ):
        raise UserError(f"--split={split}: and --config.data.eval_split: give only one of them")
    split = split or config.data.eval_split
    parallel = make_parallel(config.parallel, devices or jax.local_devices())
    network = build_network(config, description, parallel.axis_name)
    network.task.files = tuple(files)
    # Outside any mapped axis: these traces look at the network alone.
    with reading(config):
        ways = passes(view, config, description, network.task, split, source)
    state, step = restore_run(folder, checkpoint, network.abstract, parallel, config)
    state, form, found = parallel.to_steps(state), form_of_run(config, folder), []
    for way in ways:
        arguments = (config, description, network, parallel.axis_name, form, way.apply)
        eval_step = build_eval_step(*arguments, each=True)
        compiled = parallel.compile_eval(eval_step, network.abstract, each=True)
        data, size = way.loader(parallel, config.data), way.batch_size(config.eval.batch_size)
        settings = (parallel, state, data, size, network.members, network.task.finish)
        found.append(evaluate_each(compiled, *settings))
    kept = _join([rows for _, rows in found], network)
    result = found[0][0] if len(ways) == 1 else _measured_again(kept, config, network)
    outcomes, members = _outcomes_of(kept, result, found[0][1]["index"], network)
    if only_present:
        if network.members:
            raise UserError(f"--only_present: {workdir} holds an ensemble; it is for one network")
        outcomes, classes = network.task.restricted(outcomes)
        figures = network.task.joint_figures(outcomes)
        result = {"examples": result["examples"], **figures, "classes": classes}
    return Evaluation(
        str(workdir),
        config.data.source if source is None else f"a given {type(source).__name__}",
        split,
        step,
        view,
        network.task,
        {"split": split, **result, "step": step},
        outcomes,
        members,
        ways[0].source,
        functools.partial(_checksum, config, split, source),
    )


# What each network returned for each example; for an ensemble, last, its combined prediction.
Kept = list[Mapping[str, np.ndarray]]


def _join(passes: Sequence[Mapping[str, np.ndarray]], network: BuiltNetwork) -> Kept:
    """What each network returned over all passes, joined; see `Kept`."""
    rows = [{k: v for k, v in one.items() if k != "index"} for one in passes]
    if network.members is None:
        return [network.task.join_passes(rows)]
    own = [{k: v for k, v in one.items() if not k.startswith("ensemble_")} for one in rows]
    each = [
        [{k: v[:, n] for k, v in one.items()} for one in own]
        for n in range(len(network.members.names))
    ]
    prefix = "ensemble_"
    joint = [
        {k.removeprefix(prefix): v for k, v in one.items() if k.startswith(prefix)} for one in rows
    ]
    return [network.task.join_passes(one) for one in (*each, joint)]


def _outcomes_of(
    kept: Kept, result: Mapping[str, Any], index: np.ndarray, network: BuiltNetwork
) -> tuple[Any, dict[str, Any]]:
    """The outcomes of the network or combined prediction, and of members that did not diverge."""
    task = network.task
    if network.members is None:
        return task.outcomes(kept[0], index), {}
    members = {
        member["name"]: task.outcomes(one, index)
        for member, one in zip(result["members"], kept, strict=False)
        if "loss" in member
    }
    together = task.averaged([*members.values()]) if members else None
    return (task.outcomes(kept[-1], index) if together is None else together), members


def _measured_again(kept: Kept, config: Any, network: BuiltNetwork) -> dict[str, Any]:
    """What `evaluate` returns, for outputs joined over several passes."""
    task, members = network.task, network.members
    if not task.kept_outputs:
        return _finished(kept, network)
    add_up = jax.jit(make_sums(task, members is not None))
    each = kept[:-1] if members else kept
    outputs = [one[task.kept_outputs] for one in each]
    others = {name: value for name, value in each[0].items() if name != task.kept_outputs}

    def measure(mask: Mapping[str, np.ndarray]) -> dict[str, Any]:
        sums = []
        for start in range(0, len(outputs[0]), config.eval.batch_size):
            part = slice(start, start + config.eval.batch_size)
            batch = {**{name: value[part] for name, value in others.items()}, **mask}
            batch["mask"] = np.ones(len(outputs[0][part]), np.float32)
            of_part = np.stack([one[part] for one in outputs]) if members else outputs[0][part]
            sums.append(add_up(of_part, batch))
        totals = {
            name: sum(np.asarray(part[name], np.float64) for part in sums) for name in sums[0]
        }
        return result_of(totals, members, task.finish)

    if members is None:
        return measure({})
    # By all passes together, a member may have diverged that had not by some of them.
    first = measure({MEMBER_MASK: member_mask(None, members)})
    mask = member_mask(first, members)
    return first if mask.all() else measure({MEMBER_MASK: mask})


def _finished(kept: Kept, network: BuiltNetwork) -> dict[str, Any]:
    """What `evaluate` returns, of a task that has joined several passes on the host."""
    count, finish = len(kept[0]["loss"]), network.task.finish
    losses = [np.sum(one["loss"], dtype=np.float64) for one in kept]
    if network.members is None:
        return result_of({"examples": count, "loss": losses[0]}, None, finish, kept[0])
    *each, joint = kept
    rows = {name: np.stack([one[name] for one in each], axis=1) for name in joint}
    rows |= {f"ensemble_{name}": value for name, value in joint.items()}
    totals = {"examples": count, "loss": np.array(losses[:-1]), "ensemble_loss": losses[-1]}
    return result_of(totals, network.members, finish, rows)


def _checksum(config: Any, split: str, source: Source | None) -> int:
    needs = needs_of(config)
    return (source or open_source(as_files(config.data), split, needs=needs)).checksum()
