"""What a network is shown of each image while it is evaluated, and how the answers are joined.

    center    the middle, as while training
    flip      the middle and its mirror image
    10-crop   the four corners and the middle, and their mirror images, of the middle square of the
              image resized to size / crop_ratio: AlexNet's (Krizhevsky et al. 2012, section 4.1)
              224 of 256
    dense     the whole image and its mirror image, at each of several scales; fully connected
              layers slide over it as convolutions, and the class scores are averaged over positions
              (Simonyan and Zisserman 2014, arXiv:1409.1556, section 3.2)

The probabilities of an image's views are averaged.

Dense evaluation does not cut images square. The shorter side is resized to the scale Q, and the
longer one cut, in the middle, to Q + n * S, where S is the stride of the network's last feature
maps: 32 for VGG. So there are few shapes, each compiled once, and every network that takes Q x Q
takes them. A side of more than three times the other is cut to that.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
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

VIEWS = ("center", "flip", "10-crop", "dense")
# The longest side of a whole image, in shorter sides.
LONGEST = 3

Loader = ResidentLoader | StreamedLoader


@dataclasses.dataclass(frozen=True)
class View:
    """Which views of an image are taken.

    Attributes:
      name: of `VIEWS`.
      scales: of `dense`, pixels of the shorter side; empty for the size that the image has around
        the middle crop.
      crop_ratio: share of the shorter side that a crop is; 0 for the run's `data.crop_ratio`.

    Raises:
      UserError: there is no such view, or the settings do not go with it.
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
                f"--views={self.name}: there is no such view{nearest(self.name, VIEWS)}; there are "
                f"{', '.join(VIEWS)}"
            )
        if self.scales and self.name != "dense":
            raise UserError(
                f"--scales={','.join(map(str, self.scales))}: belongs to --views=dense, not to "
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
                f"--crop_ratio={self.crop_ratio:g}: dense evaluation crops nothing; give --scales"
            )


def read_scales(text: str) -> tuple[int, ...]:
    """Numbers with commas between; raises UserError for anything else."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UserError(
            f"--scales={text}: must be whole numbers of pixels, such as 256,384,512"
        ) from error


class Pass(NamedTuple):
    """One way through all examples.

    Attributes:
      source: of the images.
      apply: (variables, images) -> logits; None for the model's own.
      work: pixels that the network sees of each example, in images of its own size.
      whole: whether the images are of different shapes.
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
        """Examples a batch, where `images` are those that the network would get of its own size."""
        return max(1, round(images / self.work))


def passes(
    view: View,
    config: Any,
    description: dict[str, Any],
    task: Task,
    split: str,
    source: Source | None = None,
) -> list[Pass]:
    """The ways through a split that the views need; their probabilities are to be averaged.

    Args:
      view: which views.
      config: the whole config.
      description: of the training data, see `interface.describe`.
      task: of the run, whose network it is, and which says what it may look at.
      split: the split's name.
      source: what to evaluate on instead of the split of the config's source.

    Raises:
      UserError: the views cannot be had of such data, or by such a network.
    """
    shape = tuple(description["image_shape"])
    size, ratio = eval_size(config.data) or shape[0], view.crop_ratio or config.data.crop_ratio
    if view.name not in task.views:
        raise UserError(
            f"--views={view}: the task {config.task.name} has no such view; it has "
            f"{', '.join(task.views)}"
        )
    model = task.model()
    if str(view) != "center" and description["kind"] != "image":
        raise UserError(
            f"--views={view}: is for images, and {config.data.source} holds "
            f"{description['kind']}s; only center is for them"
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
                f"{ratio:g}), so that the ten would be two; "
                "give a --crop_ratio below 1, such as 0.875"
            )
        settings = {"crop_ratio": 1.0, "eval_image_size": around}
    if source is None:
        source = open_source(ConfigDict(config.data.to_dict() | settings), split, like=description)
    if view.name == "center":
        return [Pass(source, None, 1)]
    cut = mirrored if view.name == "flip" else functools.partial(ten_crops, size=size)
    apply = over_views(functools.partial(model.apply, train=False), cut)
    return [Pass(source, apply, 2 if view.name == "flip" else 10)]


def _check_files(
    view: View, config: Any, description: dict[str, Any], source: Source | None
) -> None:
    """Raise UserError unless there may be more pixels of each image than the network sees, and a
    square to cut out of them.
    """
    what = (
        f"--views={view.name}"
        if view.name in ("10-crop", "dense")
        else f"--crop_ratio={view.crop_ratio:g}"
    )
    height, width = description["image_shape"][:2]
    kind = config.data.source.partition(":")[0]
    if source is not None or kind not in ("folder", "tfds") or description["kind"] != "image":
        name = "a source of one's own" if source is not None else config.data.source
        raise UserError(
            f"{what}: reads other parts of image files, and {name} gives {height}x{width} and no "
            "more; center and flip need no more"
        )
    if height != width and view.name != "dense":
        raise UserError(
            f"{what}: cuts squares, and the network takes {height}x{width}; center, flip and dense "
            "do without"
        )


def mirrored(images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 2, H, W, C], with the mirror images."""
    return jnp.stack([images, images[:, :, ::-1]], axis=1)


def ten_crops(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, 10, size, size, C]: four corners and the middle, then their mirror
    images.
    """
    bottom, right = images.shape[1] - size, images.shape[2] - size
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    crops = jnp.stack(
        [images[:, top : top + size, left : left + size] for top, left in corners], axis=1
    )
    return jnp.concatenate([crops, crops[:, :, :, ::-1]], axis=1)


def over_views(apply: Apply, cut: Callable[[jax.Array], jax.Array]) -> Apply:
    """From (variables, images [B, ...]) -> logits to the logarithms [B, K] of the mean
    probabilities of each image's views.

    Args:
      apply: the network.
      cut: images [B, ...] -> their views [B, V, ...].
    """

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        views = cut(images)
        count = views.shape[1]
        # Views beside their image, so that each device keeps those of its own.
        each = apply(variables, views.reshape(-1, *views.shape[2:]))
        logarithms = jax.nn.log_softmax(each).reshape(-1, count, each.shape[-1])
        return jax.nn.logsumexp(logarithms, axis=1) - jnp.log(jnp.float32(count))

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
        return decode.decode_whole(content, scale, stride, LONGEST, channels, decoder)

    source = WholeImages(
        **{field.name: getattr(stored, field.name) for field in dataclasses.fields(StoredSource)}
        | {"decode": read}
    )
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
    """Batches of images of different shapes: each holds those of one shape.

    Args, Attributes: as of `loading.Streamed`.
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
        """Every example once, in the order in which batches fill up: `image`, targets, `index` and
        `mask`.
        """
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
