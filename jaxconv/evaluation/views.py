"""What a network sees of each image in evaluation, and how its predictions are combined.

    center    the center crop, as in evaluation during training
    flip      the center crop and its mirror image
    6-crop    the center crop, and the same moved by one pixel up and left, and down and right, with
              the border mirrored; and their mirror images. The moved ones count half (Jordan 2024,
              arXiv:2404.00498, section 3.5)
    10-crop   the four corners and the center, and their mirror images, of the central square of the
              image resized to size / crop_ratio: AlexNet's (Krizhevsky et al. 2012, section 4.1)
              224 of 256
    dense     the whole image and its mirror image, at each of several scales; fully connected
              layers slide over it as convolutions, and the class scores are averaged over positions
              (Simonyan and Zisserman 2014, arXiv:1409.1556, section 3.2)

The probabilities of an image's views are averaged.

Dense evaluation does not crop images to squares. The shorter side is resized to the scale Q, and
the longer one is center-cropped to Q + n * S, where S is the stride of the network's last feature
maps: 32 for VGG. So there are few shapes, each compiled once, and every network that takes Q x Q
takes them. The longer side is cropped to at most three times the shorter one.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxconv.data import decode
from jaxconv.data.interface import Batch, Source, as_targets
from jaxconv.data.loading import Reader, ResidentLoader, StreamedLoader, make_loader
from jaxconv.data.sources import as_files, eval_size, open_source
from jaxconv.data.stored import StoredSource
from jaxconv.errors import UserError, nearest
from jaxconv.evaluation.sliding import Apply, images_of, sliding, total_stride
from jaxconv.tasks import Task

VIEWS = ("center", "flip", "6-crop", "10-crop", "dense")
# The most that the longer side of a whole image may be, in shorter sides.
LONGEST = 3

Loader = ResidentLoader | StreamedLoader


@dataclasses.dataclass(frozen=True)
class View:
    """Which views of an image are taken.

    Attributes:
      name: of `VIEWS`.
      scales: for `dense`, pixels of the shorter side; empty for the size that the center crop is
        cut from.
      crop_ratio: share of the shorter side that a crop covers; 0 for the run's `data.crop_ratio`.

    Raises:
      UserError: the view is unknown, or the settings do not apply to it.
    """

    name: str = "center"
    scales: tuple[int, ...] = ()
    crop_ratio: float = 0.0

    def __str__(self) -> str:
        scales = f" at {', '.join(map(str, self.scales))}" if self.scales else ""
        return self.name + scales + (f", crop_ratio {self.crop_ratio:g}" if self.crop_ratio else "")

    def __post_init__(self) -> None:
        if self.name not in VIEWS:
            raise UserError(
                f"--views={self.name}: unknown view{nearest(self.name, VIEWS)}; it must be one "
                f"of {', '.join(VIEWS)}"
            )
        if self.scales and self.name != "dense":
            raise UserError(
                f"--scales={','.join(map(str, self.scales))}: applies to --views=dense, not to "
                f"{self.name}"
            )
        if any(type(scale) is not int or scale < 1 for scale in self.scales):
            raise UserError(
                f"--scales={','.join(map(str, self.scales))}: must be whole numbers of pixels, "
                "such as 256,384,512"
            )
        if not 0 <= self.crop_ratio <= 1:
            raise UserError(
                f"--crop_ratio={self.crop_ratio:g}: must be more than 0 and at most 1, such as "
                "0.875"
            )
        if self.crop_ratio and self.name == "dense":
            raise UserError(
                f"--crop_ratio={self.crop_ratio:g}: does not apply to --views=dense; give --scales"
            )


def read_scales(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas; raises UserError for anything else."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UserError(
            f"--scales={text}: must be whole numbers of pixels, such as 256,384,512"
        ) from error


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
    model = task.model()
    if str(view) != "center" and description["kind"] != "image":
        raise UserError(
            f"--views={view}: is for images, and {config.data.source} holds "
            f"{description['kind']}s; they can only be evaluated with center"
        )
    if view.name in ("10-crop", "dense") or view.crop_ratio:
        _check_files(view, config, description, source)
    around = math.floor(size / ratio)
    if view.name == "dense":
        return [
            _dense(config, description, model, split, scale) for scale in view.scales or (around,)
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
    kind = config.data.source.partition(":")[0]
    if source is not None or kind not in ("folder", "tfds") or description["kind"] != "image":
        name = "a custom source" if source is not None else config.data.source
        raise UserError(
            f"{what}: needs image files larger than the crop, and {name} gives exactly "
            f"{height}x{width}; use center or flip"
        )
    if height != width and view.name != "dense":
        raise UserError(
            f"{what}: crops squares, and the network takes {height}x{width}; use center, flip or "
            "dense"
        )


def mirrored(images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 2, H, W, C]: images and their mirror images."""
    return jnp.stack([images, images[:, :, ::-1]], axis=1)


def six_crops(images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 6, H, W, C]: as it is, moved by a pixel either way, then mirror images.

    It is moved up and left, and down and right; the border is mirrored.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    moved = [padded[:, n : n + height, n : n + width] for n in (1, 2, 0)]
    crops = jnp.stack(moved, axis=1)
    return jnp.concatenate([crops, crops[:, :, :, ::-1]], axis=1)


def ten_crops(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, 10, size, size, C]: four corners, center, then their mirror images."""
    bottom, right = images.shape[1] - size, images.shape[2] - size
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    crops = jnp.stack(
        [images[:, top : top + size, left : left + size] for top, left in corners], axis=1
    )
    return jnp.concatenate([crops, crops[:, :, :, ::-1]], axis=1)


def over_views(
    apply: Apply, cut: Callable[[jax.Array], jax.Array], weights: Sequence[float] = ()
) -> Apply:
    """A network that returns log mean probabilities [B, K] over each image's views.

    Args:
      apply: (variables, images [B, ...]) -> logits.
      cut: images [B, ...] -> their views [B, V, ...].
      weights: of the views, V numbers; by default they are equal.
    """

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        views = cut(images)
        count = views.shape[1]
        # Views of an image stay adjacent, so that each device keeps those of its own images.
        each = apply(variables, views.reshape(-1, *views.shape[2:]))
        logarithms = jax.nn.log_softmax(each).reshape(-1, count, each.shape[-1])
        shares = np.array(weights or (1,) * count, np.float32).reshape(1, -1, 1)
        return jax.nn.logsumexp(logarithms, axis=1, b=shares / shares.sum())

    return logits


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
    decoder = decode.choose_decoder(config.data.decoder)

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


class WholeImages(StoredSource):
    """Whole images, each of its own shape."""

    def read(self, i: int, key: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """Read and decode example i; raises DamagedError."""
        payload, targets = self.records[i]
        return {"image": self.decode(payload, key), **as_targets(targets)}


class GroupedLoader:
    """Batches of images of different shapes; each batch holds images of one shape.

    Args, Attributes: as for `loading.StreamedLoader`.
    """

    def __init__(self, source: Source, parallel: Any, settings: Any):
        self.data: dict[str, Any] = {}
        self.examples, self._parallel = len(source), parallel
        share = 1.0 if settings.skip_unreadable else settings.damaged_share
        self._reader = Reader(source, settings.threads, share)

    @property
    def left_out(self) -> int:
        """Examples that the last evaluation could not read, and did not count."""
        return self._reader.left_out

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every example once, as batches fill up: `image`, targets, `index` and `mask`."""
        groups: dict[tuple[int, ...], list[Mapping[str, Any]]] = collections.defaultdict(list)
        for example in self._reader.examples():
            group = groups[example["image"].shape]
            group.append(example)
            if len(group) == batch_size:
                yield self._batch(groups.pop(example["image"].shape), batch_size)
        for group in groups.values():
            yield self._batch(group, batch_size)

    def _batch(self, examples: list[Mapping[str, Any]], batch_size: int) -> Batch:
        mask = (np.arange(batch_size) < len(examples)).astype(np.float32)
        filled = examples + examples[:1] * (batch_size - len(examples))
        return self._parallel.place(
            {name: np.stack([example[name] for example in filled]) for name in examples[0]}
            | {"mask": mask}
        )
