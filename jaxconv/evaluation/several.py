"""Several runs evaluated together: each, their mean and spread, and their averaged prediction.

The lecture averages the probabilities of seven AlexNets in this way.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxconv.errors import UserError, short
from jaxconv.evaluation.evaluation import Evaluation, evaluate_run
from jaxconv.files import expand
from jaxconv.train.evaluate import mean_and_spread
from jaxconv.train.workdir import opened_config, saved_data


def evaluate_runs(workdirs: Sequence[str], *arguments: Any, **settings: Any) -> Evaluation:
    """Evaluate one run, or several `together`; other arguments are those of `evaluate_run`.

    Raises:
      UserError: as `evaluate_run` and `together`. Cheap checks, such as of the classes, run first.
    """
    folders = [expand(workdir).resolve() for workdir in workdirs]
    for number, (folder, workdir) in enumerate(zip(folders, workdirs, strict=True)):
        if folder in folders[:number]:
            raise UserError(
                f"--workdir={workdir}: is given twice, so its predictions would count twice"
            )
        opened_config(folder, settings.get("overrides", ()))
        difference = _other_classes(
            saved_data(folders[0])["class_names"], saved_data(folder)["class_names"], workdirs[0]
        )
        if difference:
            raise _other_data(workdir, difference)
    return together([evaluate_run(workdir, *arguments, **settings) for workdir in workdirs])


def together(runs: Sequence[Evaluation]) -> Evaluation:
    """Several runs as one: their mean and spread, and the mean of their probabilities, or what the
    task fuses of what they have found.

    `result` is that of an ensemble whose members are the runs, named by their workdirs. A run that
    is an ensemble itself counts by its averaged prediction. Custom metrics have no `ensemble_`
    figure.

    Args:
      runs: of the same split.

    Raises:
      UserError: they were not evaluated on the same examples and classes; the message says where
        they differ.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    for other in runs[1:]:
        difference = _difference(first, other)
        if difference:
            raise _other_data(other.name, difference)
    own = [_of_itself(run.result) for run in runs]
    joint = first.task.averaged([run.outcomes for run in runs])
    joint = first.task.fused([run.outcomes for run in runs]) if joint is None else joint
    if joint is None:
        raise UserError(
            f"the task of {first.name} cannot average the predictions of several runs; evaluate "
            "each of them separately"
        )
    result = {"split": first.split, "examples": len(joint)} | mean_and_spread(own)
    result |= {
        f"ensemble_{name}": value
        for name, value in first.task.joint_figures(joint).items()
        if name in own[0]
    }
    members = [
        {"name": run.name, "step": run.step, **one} for run, one in zip(runs, own, strict=True)
    ]
    step = max(run.step for run in runs)
    result |= {"members": members, "step": step}
    return dataclasses.replace(
        first, name=" ".join(run.name for run in runs), step=step, result=result, outcomes=joint,
        members={run.name: run.outcomes for run in runs},
    )  # fmt: skip


def _of_itself(result: Mapping[str, Any]) -> dict[str, float]:
    """A run's own figures; for an ensemble those of its averaged prediction."""
    joint = {
        name.removeprefix("ensemble_"): value
        for name, value in result.items()
        if name.startswith("ensemble_")
    }
    return joint or {
        name: value for name, value in result.items() if name not in ("split", "examples", "step")
    }


def _other_data(workdir: str, difference: str) -> UserError:
    return UserError(
        f"--workdir={workdir}: {difference}; only runs on the same data can be averaged",
        exit_code=1,
    )


def _other_classes(ours: Sequence[str], its: Sequence[str], name: str) -> str:
    for number, (mine, theirs) in enumerate(zip(ours, its, strict=False)):
        if mine != theirs:
            return f"its class {number} is {short(theirs)!r}, where {name} has {short(mine)!r}"
    return (
        "" if len(its) == len(ours) else f"it has {len(its)} classes, where {name} has {len(ours)}"
    )


def _difference(one: Evaluation, other: Evaluation) -> str:
    """Where the examples or classes of two runs differ; empty if they do not."""
    ours, its, task = one.outcomes, other.outcomes, one.task
    classes = _other_classes(task.class_names, other.task.class_names, one.name)
    if classes:
        return classes
    if len(its) != len(ours) or not np.array_equal(its.index, ours.index):
        return (
            f"it was evaluated on {len(its):,} examples, and {one.name} on {len(ours):,} or on "
            "different ones"
        )
    differs = np.asarray(task.truth(its) != task.truth(ours)).reshape(len(ours), -1)
    wrong = np.flatnonzero(differs.any(axis=1))
    if len(wrong):
        place = int(wrong[0])
        mine, theirs = (task.truth_in_words(outcomes, place) for outcomes in (ours, its))
        return (
            f"{other.source.name(int(its.index[place]))} is {theirs}, where {one.name} has {mine}"
        )
    if one.checksum() != other.checksum():
        return (
            f"its examples have the checksum {other.checksum()}, while those of {one.name} have "
            f"{one.checksum()}"
        )
    return ""
