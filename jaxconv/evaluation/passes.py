"""The passes over a split that the views of views.py need: of which images, by which function."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, cast

import flax.errors
import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxconv.data import decode
from jaxconv.data.interface import Source, moves_of
from jaxconv.data.loading import Reader, make_loader
from jaxconv.data.sources import as_files, eval_size, open_source
from jaxconv.data.stored import StoredSource
from jaxconv.errors import UserError
from jaxconv.evaluation import pixels
from jaxconv.evaluation.sliding import Apply, images_of, sliding, total_stride
from jaxconv.evaluation.views import View, mirrored, over_views, six_crops, ten_crops
from jaxconv.evaluation.whole import GroupedLoader, Mirrored, OwnSizes, WholeImages
from jaxconv.own import is_own
from jaxconv.tasks import Task

# The most that the longer side of a whole image may be, in shorter sides.
LONGEST = 3
# How many examples tell how large the images of a set are.
_LOOKED_AT = 8


class Pass(NamedTuple):
    """One pass over all examples.

    Attributes:
      source: of the images.
      apply: (variables, images) -> logits; None for the model's own.
      work: pixels that the network sees per example, in multiples of its training image.
      whole: whether the images have different shapes.
    """

    source: Source
    apply: Apply | None
    work: float
    whole: bool = False

    def loader(self, parallel: Any, settings: Any) -> Any:
        """How batches reach the devices; `settings` is `config.data`."""
        return (
            GroupedLoader(self.source, parallel, settings)
            if self.whole
            else make_loader(self.source, parallel, settings)
        )

    def batch_size(self, images: int) -> int:
        """Examples per batch, for a memory budget of `images` training images."""
        return max(1, round(images / self.work))


def passes(
    view: View,
    config: Any,
    description: dict[str, Any],
    task: Task,
    split: str,
    source: Source | None = None,
) -> list[Pass]:
    """The passes over a split that the views need; their probabilities are to be averaged.

    Args:
      view: which views.
      config: the whole config.
      description: of the training data, see `interface.describe`.
      task: of the run; it provides the network and the views allowed.
      split: the split's name.
      source: to evaluate on instead of the split of the config's source.

    Raises:
      UserError: the data or the network does not support the views.
    """
    shape = tuple(description["image_shape"])
    size, ratio = eval_size(config.data) or shape[0], view.crop_ratio or config.data.crop_ratio
    if view.name not in task.views:
        raise UserError(
            f"--views={view}: the task {config.task.name} does not support it; it supports "
            f"{', '.join(task.views)}"
        )
    if view.own_size and not task.of_pixels:
        raise UserError(
            f"--own_size: the task {config.task.name} does not have an output for each pixel"
        )
    model = task.model()
    volumes = task.of_pixels and not (view.own_size or view.crop_ratio)
    if str(view) != "center" and description["kind"] != "image" and not volumes:
        raise UserError(
            f"--views={view}: is for images, and {config.data.source} holds "
            f"{description['kind']}s; they can only be evaluated with center"
        )
    if view.name in ("10-crop", "dense") or view.crop_ratio:
        _check_files(view, config, description, source)
    around = math.floor(size / ratio)
    if view.own_size:
        scale = around if eval_size(config.data) else 0
        stored = source or open_source(as_files(config.data), split, like=description)
        return [_own_size(view, config, description, task, stored, scale)]
    if view.name == "dense":
        return [
            _dense(config, description, model, split, int(scale))
            for scale in view.scales or (around,)
        ]
    settings = {"crop_ratio": view.crop_ratio, "eval_image_size": size} if view.crop_ratio else {}
    if view.name == "10-crop":
        if around <= size:
            raise UserError(
                "--views=10-crop: the run's crop is the whole image (data.crop_ratio is "
                f"{ratio:g}), so the ten crops would be two; give a --crop_ratio below 1, such as "
                "0.875"
            )
        settings = {"crop_ratio": 1.0, "eval_image_size": around}
    if source is None:
        source = open_source(ConfigDict(config.data.to_dict() | settings), split, like=description)
    if view.name == "center":
        return [Pass(source, None, 1)]
    if task.joins_views:
        return [Pass(source, None, 1), Pass(Mirrored(source), None, 1)]
    if task.of_pixels:
        seen = source.element.shape if description["kind"] == "image" else shape
        return [Pass(source, *_pixel_views(view, description, model, seen))]
    cut, weights = {
        "flip": (mirrored, (1, 1)),
        "6-crop": (six_crops, (2, 1, 1) * 2),
        "10-crop": (functools.partial(ten_crops, size=size), (1,) * 10),
    }[view.name]
    apply = over_views(functools.partial(model.apply, train=False), cut, weights)
    return [Pass(source, apply, len(weights))]


def _check_files(
    view: View, config: Any, description: dict[str, Any], source: Source | None
) -> None:
    """Raise UserError unless the view can be cropped from the image files."""
    what = (
        f"--views={view.name}"
        if view.name in ("10-crop", "dense")
        else f"--crop_ratio={view.crop_ratio:g}"
    )
    height, width = description["image_shape"][:2]
    kind, colon, _ = config.data.source.partition(":")
    files = colon and kind not in ("arrays", "text") and not is_own(config.data.source)
    if source is not None or not files or description["kind"] != "image":
        name = "a custom source" if source is not None else config.data.source
        raise UserError(
            f"{what}: needs image files larger than the crop, and {name} gives exactly "
            f"{height}x{width}; use center or flip"
        )
    if config.data.canvas:
        raise UserError(
            f"{what}: crops squares, and images stand whole on a canvas of {height}x{width}; leave "
            "it out"
        )
    if height != width and view.name != "dense":
        raise UserError(
            f"{what}: crops squares, and the network takes {height}x{width}; use center, flip or "
            "dense"
        )


def _dense(
    config: Any, description: dict[str, Any], model: nn.Module, split: str, scale: int
) -> Pass:
    shape, channels = tuple(description["image_shape"]), description["image_shape"][-1]
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images_of(shape)
    )
    slid, stride = sliding(model, variables, shape), total_stride(model, variables, shape)
    try:
        jax.eval_shape(slid, variables, images_of((scale, scale, channels)))
    except (ValueError, TypeError, ArithmeticError, flax.errors.FlaxError) as error:
        raise UserError(
            f"--scales={scale}: the network, for {shape[0]}x{shape[1]}, cannot take "
            f"{scale}x{scale}: {' '.join(str(error).split())}"
        ) from error
    stored = open_source(as_files(config.data), split, like=description)
    decoder = decode.choose_decoder(config.data.decoder, config.data.interpolation)

    def read(content: bytes, key: tuple[int, int]) -> np.ndarray:
        background = config.data.background
        return decode.decode_whole(content, scale, stride, LONGEST, channels, decoder, background)

    fields: dict[str, Any] = {
        field.name: getattr(stored, field.name) for field in dataclasses.fields(StoredSource)
    }
    source = WholeImages(**{**fields, "decode": read})
    return Pass(
        source, over_views(slid, mirrored), 2 * scale * scale / (shape[0] * shape[1]), whole=True
    )


def _pixel_views(
    view: View, description: dict[str, Any], model: nn.Module, seen: tuple[int, ...]
) -> tuple[Apply, float]:
    """The function over the views, and its work in multiples of one view.

    Args:
      view: which.
      description: of the training data, whose size windows have.
      model: the network.
      seen: (*spatial, C) of the smallest images.
    """
    trained, work = tuple(description["image_shape"]), 1.0
    apply = cast(Apply, functools.partial(model.apply, train=False))
    if view.name == "flip":
        apply, work = pixels.flipped(apply), 2.0
    elif view.name == "scales":
        factors = view.scales or pixels.FACTORS
        apply, work = pixels.at_scales(apply, factors), 2.0 * sum(f**2 for f in factors)
    elif view.name == "sliding":
        window = trained[:-1]
        if not view.own_size and all(side <= w for side, w in zip(seen, window, strict=False)):
            raise UserError(
                "--views=sliding: the images are no larger than the "
                f"{'x'.join(map(str, window))} that the network was trained on; add --own_size, "
                "or set a larger --config.data.eval_image_size"
            )
        apply = pixels.in_windows(apply, window)
        work = (1 - pixels.OVERLAP) ** -len(window)
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images_of(trained)
    )
    try:
        jax.eval_shape(apply, variables, images_of(seen))
    except (ValueError, TypeError, ArithmeticError, flax.errors.FlaxError) as error:
        raise UserError(
            f"--views={view}: the network, for {'x'.join(map(str, trained[:-1]))}, cannot take "
            f"images of {'x'.join(map(str, seen[:-1]))} so: {' '.join(str(error).split())}"
        ) from error
    return apply, work


def _own_size(
    view: View, config: Any, description: dict[str, Any], task: Task, stored: Source, scale: int
) -> Pass:
    """The pass over whole images at their own size."""
    masks = [name for name in task.needs if name in moves_of(task.targets)]
    if not isinstance(stored, StoredSource) or not masks:
        raise UserError(
            "--own_size: needs image files with masks; the examples of "
            f"{config.data.source} are read at one size, so leave it out"
        )
    model, shape = task.model(), tuple(description["image_shape"])
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images_of(shape)
    )
    step = total_stride(model, variables, shape)
    source = OwnSizes(stored, config.data, scale, step, masks)
    found = list(Reader(source, config.data.threads, 1.0).examples(_LOOKED_AT))
    if not found:
        raise UserError("--own_size: none of the images can be read", exit_code=1)
    seen = min((example["image"].shape for example in found), key=math.prod)
    apply, work = _pixel_views(view, description, model, seen)
    # Outputs have as many pixels as what they are resized to, if that is larger.
    most = max(
        math.prod(values.shape[:2])
        for example in found
        for name, values in example.items()
        if name in ("image", *masks)
    )
    return Pass(source, apply, work * most / math.prod(shape[:2]), whole=True)
