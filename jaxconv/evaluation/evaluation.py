"""Evaluation: every example of a split exactly once.

While training, sums are enough (`evaluate`). Of a run that is there, the logits for every example
are kept, in the order of its source, so that all of outcomes.py can be asked of them
(`evaluate_run`), in one process, on all its devices; several.py has several runs together.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxconv.data.interface import Source
from jaxconv.data.loading import ResidentLoader, StreamedLoader
from jaxconv.data.sources import as_files, open_source
from jaxconv.evaluation.views import GroupedLoader, View, passes
from jaxconv.files import expand
from jaxconv.tasks.classification.losses import cross_entropy
from jaxconv.tasks.classification.outcomes import Outcomes, averaged, log_mean
from jaxconv.train.build import (
    BuiltRun,
    build,
    build_eval_step,
    build_model,
    make_transforms,
    own_metrics,
)
from jaxconv.train.ensemble import form_of_run
from jaxconv.train.evaluate import evaluate_each, result_of
from jaxconv.train.parallel import make_parallel
from jaxconv.train.restore import restore_run
from jaxconv.train.step import make_measure
from jaxconv.train.workdir import opened_config, saved_data

Loader = ResidentLoader | StreamedLoader | GroupedLoader


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
      outcomes: the logits for every example; of several networks, the logarithms of their mean
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
    config, description = opened_config(folder), saved_data(folder)
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
    logits = _logits_of_members([rows["logits"] for rows in each])
    labels, index = each[0]["label"], each[0]["index"]
    result = results[0] if len(ways) == 1 else _measure(logits, labels, config, built, len(classes))
    single = [Outcomes(labels, of_one, classes, index) for of_one in logits]
    named = zip(built.members.names, single, strict=True) if built.members else ()
    members = {name: outcomes for name, outcomes in named if np.isfinite(outcomes.logits).all()}
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


def _logits_of_members(passes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The logits [N, K] of each member, or of the one network, over all passes [N, K] or [N,
    members, K].
    """
    apart = [[logits] if logits.ndim == 2 else list(np.moveaxis(logits, 1, 0)) for logits in passes]
    return [log_mean(of_one) for of_one in zip(*apart, strict=True)]


def _measure(
    logits: Sequence[np.ndarray], labels: np.ndarray, config: Any, built: BuiltRun, classes: int
) -> dict[str, Any]:
    """What `evaluate` returns, of logits that are there."""
    ensemble = built.members is not None
    measure = jax.jit(
        make_measure(cross_entropy, own_metrics(config.eval.metrics, classes), ensemble)
    )
    sums = []
    for start in range(0, len(labels), config.eval.batch_size):
        part = slice(start, start + config.eval.batch_size)
        of_part = np.stack([of_one[part] for of_one in logits]) if ensemble else logits[0][part]
        sums.append(measure(of_part, labels[part], np.ones(len(labels[part]), np.float32)))
    return result_of(
        {name: sum(np.asarray(part[name], np.float64) for part in sums) for name in sums[0]},
        built.members,
    )


def _checksum(config: Any, split: str, source: Source | None) -> int:
    return (source or open_source(as_files(config.data), split)).checksum()
