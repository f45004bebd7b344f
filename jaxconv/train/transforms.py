"""Transforms of a batch on the device, before the network."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.config import default_config, flatten
from jaxconv.data.augment import make_augment, make_preprocess, normalise
from jaxconv.data.canvas import per_channel
from jaxconv.data.interface import Target, moves_of
from jaxconv.errors import UserError
from jaxconv.own import tried
from jaxconv.tasks import Task, open_task
from jaxconv.train.step import Batch

# The settings of `config.augment` that volumes have too.
VOLUMES = ("pad_crop", "padding", "flip", "own")


def make_transforms(
    config: Any,
    description: dict[str, Any],
    axis_name: str | None = None,
    task: Task | None = None,
) -> tuple[Callable[[jax.Array, Batch], Batch], Callable[[Batch], Batch]]:
    """Make the transforms of a batch on the device.

    The first, (key, batch) -> batch, is for training; the second, batch -> batch, for evaluation.
    Images are augmented and normalised, volumes too by the settings of `VOLUMES`; other signals are
    normalised, and texts are one-hot encoded, unless their codes are of words.

    Args:
      config: the whole config.
      description: of the data, see `interface.describe`.
      axis_name: under `pmap`, the axis of the devices.
      task: the run's task, whose targets are mixed; by default it is opened here.

    Raises:
      UserError: a setting does not fit the shape or the kind of the examples.
    """
    preprocess = make_preprocessing(config, description)
    shape, kind = tuple(description["image_shape"]), description["kind"]
    volume = kind == "signal" and len(shape) == 4
    defaults = flatten(default_config().augment)
    for key, value in flatten(config.augment).items():
        if kind != "image" and value != defaults[key] and not (volume and key in VOLUMES):
            also = f" (volumes have {', '.join(VOLUMES)})" if volume else ""
            raise UserError(
                f"config.augment.{key} is {value}, but it is only for images and "
                f"{config.data.source} holds {kind}s{also}"
            )
    if kind == "image" or volume:
        task = task or open_task(config, description)
        _check_against_images(config.augment, shape)
        if config.augment.own:
            _try_augmentation(config.augment.own, shape, task.targets)
        moves = moves_of(task.targets)
        augment = make_augment(config, task.mix, axis_name, description["cropped"], moves)
        return augment, preprocess
    return (lambda key, batch: preprocess(batch)), preprocess


def make_preprocessing(
    config: Any, description: dict[str, Any], one_hot: bool = False
) -> Callable[[Batch], Batch]:
    """Make the evaluation transform of `make_transforms` alone, which runs no custom code.

    Args:
      config, description: as there.
      one_hot: texts of words are one-hot encoded too, [N, L, V], which can be differentiated by and
        takes memory.

    Raises:
      UserError: the length of mean or std does not fit the channels.
    """
    shape, kind = tuple(description["image_shape"]), description["kind"]
    if "words" in description and not one_hot:
        return lambda batch: batch | {"image": batch["image"].astype(jnp.int32)}
    if kind == "text":
        return lambda batch: batch | {"image": jax.nn.one_hot(batch["image"], shape[-1])}
    for name in ("mean", "std"):
        per_channel(name, config.data[name], shape[-1])
    if kind == "image":
        return make_preprocess(config)
    return lambda batch: normalise(batch, config.data.mean, config.data.std)


def _try_augmentation(name: str, shape: tuple[int, ...], targets: Mapping[str, Target]) -> None:
    numbers, images = (
        jax.ShapeDtypeStruct((2,), jnp.int32),
        jax.ShapeDtypeStruct((2, *shape), jnp.float32),
    )
    batch = {"image": images, "position": numbers} | {
        name: jax.ShapeDtypeStruct((2, *target.shape), target.dtype)
        for name, target in targets.items()
    }
    tried(
        name,
        "config.augment.own",
        images.shape,
        jax.eval_shape(jax.random.key, 0),
        batch,
        of=lambda batch: batch["image"],
    )


def _check_against_images(augment: Any, shape: tuple[int, ...]) -> None:
    """Raise UserError for settings of `config.augment` that do not fit images of this shape."""
    channels = shape[-1]
    if augment.pad_crop >= min(shape[:-1]):
        raise UserError(
            f"config.augment.pad_crop is {augment.pad_crop}, but the images have only "
            f"{'x'.join(map(str, shape[:-1]))} pixels"
        )
    if augment.scale_jitter and augment.scale_jitter[0] < min(shape[:2]):
        raise UserError(
            f"config.augment.scale_jitter is {augment.scale_jitter}; it cannot start below the "
            f"{min(shape[:2])} pixels of the images"
        )
    colours = {"pca_colour": augment.pca_colour, "colour_jitter.hue": augment.colour_jitter.hue}
    colours |= {"grey": augment.grey}
    of_either = {"randaugment.layers": augment.randaugment.layers, "trivial": augment.trivial}
    of_either |= {
        f"colour_jitter.{name}": augment.colour_jitter[name] for name in ("contrast", "saturation")
    }
    for settings, wanted, words in ((colours, (3,), "3"), (of_either, (1, 3), "1 or 3")):
        for name, value in settings.items():
            if value and channels not in wanted:
                raise UserError(
                    f"config.augment.{name} is {value}, which needs {words} channels, but the "
                    f"images have {channels}"
                )
