"""Opens the teacher of a distillation: the network of a run, or weights by others."""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.canvas import per_channel
from jaxconv.errors import UserError, short
from jaxconv.files import at_home, expand
from jaxconv.models import abstract_variables, create_model
from jaxconv.tasks import Task, open_task
from jaxconv.train.build import build_network
from jaxconv.train.distill import Teacher, pairs_of
from jaxconv.train.initial import load_weights
from jaxconv.train.restore import restore_run
from jaxconv.train.workdir import opened_config, saved_config, saved_data

_KEY = "--config.distill.teacher"


class TeacherWeights(NamedTuple):
    """Weights that are no run: what network they are of, what they want of images, if known, and
    the network's arguments with which they were trained.
    """

    network: str
    variables: dict[str, Any]
    what: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    arguments: Mapping[str, Any] = types.MappingProxyType({})


# `config.distill.teacher` -> the weights there.
ReadTeacher = Callable[[str], TeacherWeights]


def read_converted(place: str) -> TeacherWeights:
    """The weights in a folder of `jaxconv convert`; raises UserError if it is none."""
    variables, about = load_weights(expand(place, _KEY))
    wants = about.get("preprocessing") or {}
    what = f"weights of {about['model']} ({about['source']})"
    mean, std = (tuple(wants.get(key) or ()) for key in ("mean", "std"))
    return TeacherWeights(about["model"], variables, what, mean, std)


def open_teacher(
    config: Any, description: dict[str, Any], read: ReadTeacher = read_converted
) -> Teacher | None:
    """The teacher of `config.distill`, checked against the data and the student; None without one.

    Args:
      config: the whole config of the student.
      description: of the student's data, see `interface.describe`.
      read: reads weights that are no run.

    Raises:
      UserError: there is no such network, it has another task, other classes or inputs, or lacks a
        feature map.
    """
    place = config.distill.teacher
    if not place:
        return None
    pairs, own = pairs_of(config.distill.features), (config.data.mean, config.data.std)
    if (at_home(place, _KEY) / "config.json").is_file():
        model, variables, norm, what = _of_run(expand(place, _KEY), config, description)
    else:
        found = read(place)
        variables, what = found.variables, found.what
        norm = (found.mean or own[0], found.std or own[1])
        try:
            classes = len(description["class_names"])
            model = create_model(found.network, classes, **found.arguments)
        except ValueError as error:
            raise UserError(f"{_KEY}={place}: {error}", exit_code=1) from error
    scale, shift = _between(own, norm, description)
    maps = tuple(dict.fromkeys(other for _, other in pairs))
    teacher = Teacher(model, variables, scale, shift, maps, what)
    _check_shapes(teacher, config, description, open_task(config, description), pairs)
    return teacher


def _of_run(folder: Path, config: Any, description: dict[str, Any]) -> tuple[Any, ...]:
    saved = saved_config(folder)
    if saved.task.name != config.task.name:
        raise UserError(
            f"{_KEY}={folder}: its task is {saved.task.name}, and that of the student "
            f"{config.task.name}"
        )
    other = opened_config(folder)
    data = saved_data(folder)
    network = build_network(other, data)
    if network.members:
        raise UserError(f"{_KEY}={folder}: holds an ensemble; name the workdir of one network")
    if data["class_names"] != description["class_names"]:
        raise UserError(
            f"{_KEY}={folder}: its classes are {short(data['class_names'])}, and those of the "
            f"student {short(description['class_names'])}",
            exit_code=1,
        )
    if data.get("words") != description.get("words"):
        raise UserError(
            f"{_KEY}={folder}: its texts have another vocabulary than the student's; train both "
            "with the same data and data.text",
            exit_code=1,
        )
    state, step = restore_run(folder, config=other)
    norm = (other.data.mean, other.data.std)
    return network.model, jax.device_get(state.variables), norm, f"step {step} of a run"


def _between(
    own: tuple[Any, Any], norm: tuple[Any, Any], description: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The scale and shift [C] from images normalised for the student to those for the teacher."""
    channels = description["image_shape"][-1]
    if description["kind"] == "text":
        return np.ones(1, np.float32), np.zeros(1, np.float32)
    ours, theirs = (
        [
            np.broadcast_to(np.asarray(per_channel(name, x, channels), np.float32), (channels,))
            for name, x in zip(("mean", "std"), pair, strict=True)
        ]
        for pair in (own, norm)
    )
    return ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]


def _check_shapes(
    teacher: Teacher,
    config: Any,
    description: dict[str, Any],
    task: Task,
    pairs: tuple[tuple[str, str], ...],
) -> None:
    """Raise UserError unless both networks take the images and give what is compared."""
    images = jax.ShapeDtypeStruct((1, *description["image_shape"]), jnp.float32)
    place = f"{_KEY}={config.distill.teacher}"
    student = task.model()
    variables = abstract_variables(student, images.shape)
    names = (*dict.fromkeys(own for own, _ in pairs), "logits")
    asked = {"features": names} if pairs else {}
    with _reraised(place, description):
        shapes = abstract_variables(teacher.model, images.shape)
    if not _alike(shapes, teacher.variables):
        raise UserError(
            f"{place}: {teacher.what} do not fit {type(teacher.model).__name__} for "
            f"{task.outputs} classes; the teacher must have those of the student",
            exit_code=1,
        )
    with _reraised(place, description):
        said = jax.eval_shape(teacher.apply, teacher.variables, images)
    with _reraised("config.distill.features", description):
        own = jax.eval_shape(
            functools.partial(student.apply, train=False, **asked), variables, images
        )
    for ours, theirs in pairs:
        if len(own[ours].shape) != len(said[theirs].shape) or len(own[ours].shape) < 3:
            raise UserError(
                f"config.distill.features: {ours}:{theirs} are {own[ours].shape[1:]} and "
                f"{said[theirs].shape[1:]}; both must be maps"
            )


def _alike(shapes: Any, variables: Any) -> bool:
    if jax.tree.structure(shapes) != jax.tree.structure(variables):
        return False
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(variables), strict=True)
    return all(one.shape == other.shape for one, other in pairs)


@contextlib.contextmanager
def _reraised(place: str, description: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, flax.errors.FlaxError) as error:
        size = "x".join(map(str, description["image_shape"]))
        raise UserError(
            f"{place}: with images of {size}: {' '.join(str(error).split())}", exit_code=1
        ) from error
