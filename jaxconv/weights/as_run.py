"""Weights that others have trained as a run, which evaluation, prediction and export open like one.

with as_run("resnet50", "a1_in1k", ["data.source=folder:DIR"], split="") as run:
    evaluate_run(run.workdir, only_present=run.some_classes)

It is a workdir that lasts as long as the context: its config is the default one with what the
weights want of images, data.json has their classes, and the checkpoint of step 0 holds them.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxconv.checks import check_config
from jaxconv.config import change, default_config
from jaxconv.data.interface import describe
from jaxconv.data.sources import as_files, open_source
from jaxconv.data.wordnet import imagenet, labels_of
from jaxconv.errors import UserError, some
from jaxconv.models import create_model, usual_task
from jaxconv.tasks import needs_of
from jaxconv.train.build import build_network
from jaxconv.train.checkpoint import Checkpoints
from jaxconv.train.initial import fit, with_variables
from jaxconv.train.other_data import TAKES, Overrides, as_overrides, within
from jaxconv.train.workdir import begin_or_compare, read_json
from jaxconv.values import AnyConfig
from jaxconv.weights.preprocessing import complete, networks_of
from jaxconv.weights.pretrained import (
    EXPORTED,
    Weights,
    classes_in,
    find_weights,
    read_weights,
)

log = logging.getLogger(__name__)

_OPTION = "--pretrained"
# What of a config may be set, besides what may be for a run: the network, and what it wants.
_OWN = ("data.mean", "data.std", "data.image_size", "model.kwargs", "model.dtype")
# In place of a source where single files are read: they are resized and cropped as a folder's are.
_FILES = "folder:."


class AsRun(NamedTuple):
    """A run of weights.

    Attributes:
      workdir: its folder, until the context ends.
      weights: what they are, for people.
      some_classes: whether the set to evaluate on has some of the classes alone.
    """

    workdir: str
    weights: str
    some_classes: bool


@contextlib.contextmanager
def as_run(
    model: str,
    pretrained: str | bool | os.PathLike[str],
    overrides: Overrides = (),
    split: str | None = None,
) -> Iterator[AsRun]:
    """A workdir with the weights of a classifier, see the module.

    Args:
      model: as `config.model.name`.
      pretrained: as `config.model.init_from`, but for the workdir of a run.
      overrides: `KEY=VALUE` each or values by key: `data.source` and what else may be set for a
        run, see train/other_data.py, and what the weights want, such as `data.mean`.
      split: to evaluate on, of `data.source`; empty for `data.eval_split`; None for single files,
        with which `data.source` is not used.

    Raises:
      UserError: there are no such weights, they are no classifier's or lack its last layer, or the
        classes of the set are not theirs.
    """
    config, weights = _config(model, os.fspath(_text(pretrained)), overrides, split)
    networks = networks_of(config)
    variables, what = read_weights(weights.text, networks, _OPTION)
    count = classes_in(model, variables, config.model.kwargs)
    description, some_classes = _description(config, _class_names(weights, count), count, split)
    check_config(config)
    network = build_network(config, description)
    try:
        fitted, said = fit(variables, network.variables, count)
        leaves = jax.tree.leaves(fitted)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            raise ValueError("they have no last layer of it; fine-tune them")
    except ValueError as error:
        raise UserError(
            f"{_OPTION}={weights.text}: the weights do not fit {model}: {error}", exit_code=1
        ) from error
    for line in said:
        log.info("%s", line)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), network.abstract)
    with tempfile.TemporaryDirectory(prefix="jaxconv-") as place:
        begin_or_compare(Path(place), config, description)
        checkpoints = Checkpoints(Path(place) / "checkpoints")
        try:
            checkpoints.save(0, with_variables(empty, fitted), {})
            checkpoints.wait()
        finally:
            checkpoints.close()
        yield AsRun(place, what, some_classes)


def _text(pretrained: str | bool | os.PathLike[str]) -> str | os.PathLike[str]:
    return str(pretrained) if isinstance(pretrained, bool) else pretrained


def _config(
    model: str, pretrained: str, overrides: Overrides, split: str | None
) -> tuple[AnyConfig, Weights]:
    """The config of the run, and its weights."""
    config, given = default_config(), as_overrides(overrides)
    takes = (*TAKES["predict" if split is None else "evaluate"], *_OWN)
    for override in given:
        key = override.partition("=")[0]
        if not within(key, takes):
            raise UserError(
                f"--config.{key}: is not used with --model; set some of {', '.join(takes)}"
            )
    keys = {override.partition("=")[0] for override in given}
    if split is not None and "data.source" not in keys:
        raise UserError("--model: say on what, such as --config.data.source=folder:DIR")
    if split and "data.eval_split" in keys:
        raise UserError(f"--split={split}: and --config.data.eval_split: give only one of them")
    config.model.name, config.model.init_from = model, pretrained
    config.optimizer.momentum, config.steps = 0.0, 1  # nothing is trained: no state of it
    if split is None:
        config.data.source = _FILES
    elif "data.folder.test_fraction" not in keys:
        config.data.folder.test_fraction = 1.0  # of a folder that is not split, nothing was seen
    change(config, given)
    config.data.eval_split = split or config.data.eval_split
    networks = _check_classifier(config)
    weights = find_weights(pretrained, networks, _OPTION)
    if weights.path and (weights.path / "config.json").is_file():
        raise UserError(f"{_OPTION}={pretrained}: is a run; give --workdir={pretrained}")
    return complete(config, weights, keys), weights


def _check_classifier(config: AnyConfig) -> tuple[str, ...]:
    """The networks of a config; raises UserError unless it is one classifier of images."""
    name, networks = config.model.name, networks_of(config)
    try:
        shape = usual_task(name)[0]
        create_model(name, 2, **dict(config.model.kwargs))
    except (ValueError, TypeError) as error:
        raise UserError(f"--model={name}: {error}") from error
    if len(networks) > 1 or len(shape) != 3:
        what = f"a network on {networks[1]}" if len(networks) > 1 else "a network of clips"
        raise UserError(
            f"--model={name}: is {what}, and this is for classifiers of images; train it with "
            "--config.model.init_from, and give that run by --workdir"
        )
    return networks


def _class_names(weights: Weights, count: int) -> tuple[str, ...]:
    """The names of the classes of weights, or () where nobody says."""
    if weights.path and (file := weights.path / EXPORTED).is_file():
        names = read_json(file, dict).get("class_names", ())
        if len(names) == count:
            return tuple(map(str, names))
    return imagenet() if count == len(imagenet()) else ()


def _description(
    config: AnyConfig, names: tuple[str, ...], count: int, split: str | None
) -> tuple[dict[str, Any], bool]:
    """What a run says of its data (see `interface.describe`), and whether the set has some of the
    classes alone.
    """
    if split is None:
        size, channels = config.data.image_size, usual_task(config.model.name)[0][-1]
        numbers = tuple(map(str, range(count)))
        shape = {"image_shape": [size, size, channels], "kind": "image", "cropped": False}
        return {**shape, "class_names": [*(names or numbers)], "train_examples": 0}, False
    settings = as_files(config.data)
    settings.eval_image_size = 0  # the shape is that of training
    source = open_source(settings, config.data.eval_split, needs=needs_of(config))
    own = tuple(source.class_names)
    names = _agreed(own, names, count, config.data.source)
    described = {**describe(source), "class_names": [*names], "train_examples": 0}
    return described, len(own) < count and set(own) <= set(names)


def _agreed(own: Sequence[str], names: tuple[str, ...], count: int, source: str) -> tuple[str, ...]:
    """The names of the weights' classes as the set writes them.

    Args:
      own: names of the set's classes.
      names: of the weights' classes, or () where nobody says.
      count: of the weights' classes.
      source: for messages.
    """
    numbers = [*map(str, range(len(own)))]
    if not names or (len(own) == count and [*own] == numbers):
        if len(own) != count:
            raise UserError(
                f"{source}: has {len(own):,} classes, and the weights {count:,}, whose names are "
                "not known",
                exit_code=1,
            )
        log.info("the %d classes of the weights are taken for those of %s, in order", count, source)
        return tuple(own)
    if set(own) <= set(names) or [*own] == numbers:
        return names
    if names != imagenet():
        other = sorted(set(own) - set(names))
        raise UserError(
            f"{source}: {some(other)}: not among the {count:,} classes of the weights, such as "
            f"{some(names, 3)}",
            exit_code=1,
        )
    labels = labels_of(own)
    if other := [name for name, label in zip(own, labels, strict=True) if label < 0]:
        raise UserError(
            f"{source}: {some(other)}: not among ImageNet's 1,000 classes, which the weights "
            "tell apart; name folders by their ids or words (`jaxconv wordnet WORD` shows them)",
            exit_code=1,
        )
    twice = [name for name, label in zip(own, labels, strict=True) if labels.count(label) > 1]
    if twice:
        raise UserError(f"{source}: {some(twice)}: the same class of ImageNet", exit_code=1)
    spelled = dict(zip(labels, own, strict=True))
    log.info("%d classes of %s are ImageNet's, by their names", len(own), source)
    return tuple(spelled.get(label, name) for label, name in enumerate(names))
