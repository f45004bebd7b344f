"""The part of an image that a network sees, and how the boxes, points and masks in it move.

A part of an image is a `Box` (top, left, height, width) in the image's own pixels. Cropping the box
and resizing it once is equivalent to the papers' "resize, then crop", but does not resize pixels
that the crop discards.

    crop_box    random resized crop: a random share of the area at a random aspect ratio (Szegedy et
                al. 2014, arXiv:1409.4842, section 6)
    jitter_box  scale jitter: the shorter side is resized to a random S, then a random square is
                cropped (Simonyan and Zisserman 2014, arXiv:1409.1556, section 3.1). With a single S
                it is AlexNet's random crop
    eval_box    the shorter side is resized to one size, then the middle square is cropped
    whole_box   the shorter side is resized to one size, and nearly all of the longer side is kept
                (Simonyan and Zisserman, section 3.2)
    whole_size  the size of a whole image whose shorter side is resized to one size

A `Transform` maps the pixels of an image: `crop`, `flip`, `scale`, `shift`, `rotate`, chained by
`compose`, undone by `inverse`. It is drawn once per example and moves all of the example's targets.
Coordinates are pixels; pixel (i, j) covers [i, i + 1) x [j, j + 1). The kinds of targets that move:

    boxes       [..., 4] float32: top, left, bottom, right
    points      [..., 2] float32: y, x
    keypoints   [..., J, 3] float32: y, x, and a number that stays, such as whether it is visible;
                `keypoints:1-2,3-4` swaps the 1st with the 2nd and the 3rd with the 4th of the J,
                counted from 0, where the image is mirrored: left and right
    mask        [H, W] or [H, W, C] integers, such as the class of each pixel or bits; pixels from
                outside the image are 0, or 255 if the kind is `mask:255`

Functions of transforms take numpy or JAX arrays of one example; use `jax.vmap` for batches.
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Box = tuple[int, int, int, int]
Size = tuple[int, int]
Array = Any  # numpy or JAX
Number = Any  # a Python number, or a JAX float32 scalar
Moves = Mapping[str, str]  # name of an entry of the batch -> its kind

TRIES = 10
# Which objects a crop leaves: all of which it shows something, or those whose centre it shows.
KEPT = ("visible", "centre")
NO_MOVES: Moves = types.MappingProxyType({})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transform:
    """The affine map from (y, x) to (yy * y + yx * x + down, xy * y + xx * x + right), in pixels.

    A field is a Python number or a JAX float32 scalar; [B] for a batch.
    """

    yy: Number
    yx: Number
    xy: Number
    xx: Number
    down: Number
    right: Number


def scale(down: Number, across: Number) -> Transform:
    """Stretch by these factors, with the top left corner fixed."""
    return Transform(down, 0.0, 0.0, across, 0.0, 0.0)


def shift(down: Number, right: Number) -> Transform:
    """Move by a number of pixels. Padding moves an image by the padding at its top and left."""
    return Transform(1.0, 0.0, 0.0, 1.0, down, right)


def crop(box: Any, size: Size) -> Transform:
    """Crop a `Box` and stretch it to a size (height, width) in pixels."""
    top, left, height, width = (box[n] for n in range(4))
    return compose(shift(-top, -left), scale(size[0] / height, size[1] / width))


def flip(width: Number) -> Transform:
    """Mirror an image of this width in pixels left to right."""
    right = width if isinstance(width, jax.Array) else float(width)
    return Transform(1.0, 0.0, 0.0, -1.0, 0.0, right)


def rotate(degrees: Number, height: int, width: int) -> Transform:
    """Rotate an image of this size in pixels about its center, counterclockwise on the screen."""
    library: Any = jnp if isinstance(degrees, jax.Array) else math
    cos, sin = (f(degrees * (math.pi / 180)) for f in (library.cos, library.sin))
    turn = Transform(cos, -sin, sin, cos, 0.0, 0.0)
    return compose(shift(-height / 2, -width / 2), turn, shift(height / 2, width / 2))


def compose(*transforms: Transform) -> Transform:
    """One transform that applies all of these, from first to last."""
    a, *others = transforms
    for b in others:
        a = Transform(
            b.yy * a.yy + b.yx * a.xy,
            b.yy * a.yx + b.yx * a.xx,
            b.xy * a.yy + b.xx * a.xy,
            b.xy * a.yx + b.xx * a.xx,
            *_apply(b, a.down, a.right),
        )
    return a


def inverse(transform: Transform) -> Transform:
    """The inverse of a transform, which must not be singular."""
    t = transform
    area = t.yy * t.xx - t.yx * t.xy
    back = Transform(t.xx / area, -t.yx / area, -t.xy / area, t.yy / area, 0.0, 0.0)
    return compose(shift(-t.down, -t.right), back)


def _apply(t: Transform, y: Array, x: Array) -> tuple[Array, Array]:
    return t.yy * y + t.yx * x + t.down, t.xy * y + t.xx * x + t.right


def _library(*values: Any) -> Any:
    """`jax.numpy` if any value is a JAX array, else numpy."""
    return jnp if any(isinstance(x, jax.Array) for x in jax.tree.leaves(values)) else np


def move_points(points: Array, transform: Transform) -> Array:
    """Transform points [..., 2]: [..., 2] float32, possibly outside the image."""
    y, x = (points[..., n].astype(np.float32) for n in range(2))
    return _library(y, transform).stack(_apply(transform, y, x), axis=-1).astype(np.float32)


def move_boxes(boxes: Array, transform: Transform) -> Array:
    """Transform boxes [..., 4]: [..., 4] float32, possibly outside the image.

    The result is the axis-aligned box around the transformed corners. It is the exact box of the
    content for all transforms but rotations.
    """
    xp = _library(boxes, transform)
    top, left, bottom, right = (boxes[..., n].astype(np.float32) for n in range(4))
    y, x = xp.stack([top, top, bottom, bottom]), xp.stack([left, right, left, right])
    y, x = _apply(transform, y, x)
    hull = [y.min(axis=0), x.min(axis=0), y.max(axis=0), x.max(axis=0)]
    return xp.stack(hull, axis=-1).astype(np.float32)


def clip_boxes(boxes: Array, size: Sequence[Number]) -> Array:
    """Clip boxes [..., 4] to an image of a size (height, width); a box outside it has area 0."""
    xp = _library(boxes, size)
    most = [side if isinstance(side, jax.Array) else float(side) for side in size]
    return xp.stack([xp.clip(boxes[..., n], 0.0, most[n % 2]) for n in range(4)], axis=-1)


def shows_centre(boxes: Array, size: Sequence[Number]) -> Array:
    """Whether the centre of each box [..., 4] lies in an image of a size: [...] bool."""
    y, x = ((boxes[..., n] + boxes[..., n + 2]) / 2 for n in range(2))
    return (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])


def blank_mask(mask: Array, seen: Sequence[Number], fill: int) -> Array:
    """A mask [H, W, ...] with `fill` below and right of what is seen (height, width)."""
    xp = _library(mask, seen)
    y, x = (xp.arange(length, dtype=np.float32) + 0.5 for length in mask.shape[:2])
    inside = (y.reshape(-1, 1) < seen[0]) & (x.reshape(1, -1) < seen[1])
    inside = inside.reshape(*inside.shape, *(1 for _ in mask.shape[2:]))
    return xp.where(inside, mask, xp.asarray(fill, mask.dtype))


def move_mask(mask: Array, transform: Transform, size: Size, fill: int = 0) -> Array:
    """Transform a mask [H, W] or [H, W, C] to an image of a size (height, width).

    Each pixel is the one that its center comes from, or `fill` if that is outside the image.
    """
    xp, (height, width) = _library(mask, transform), mask.shape[:2]
    y, x = (xp.arange(length, dtype=np.float32) + 0.5 for length in size)
    y, x = _apply(inverse(transform), y.reshape(-1, 1), x.reshape(1, -1))
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    row, column = (xp.clip(xp.floor(v), 0, n - 1) for v, n in ((y, height), (x, width)))
    pixels = mask[row.astype(np.int32), column.astype(np.int32)]
    inside = inside.reshape(*size, *(1 for _ in mask.shape[2:]))
    return xp.where(inside, pixels, xp.asarray(fill, mask.dtype))


def move_keypoints(keypoints: Array, transform: Transform, pairs: str = "") -> Array:
    """Transform keypoints [..., J, 3]: [..., J, 3] float32, possibly outside the image.

    Args:
      keypoints: y, x, and a number that stays.
      transform: of the image; if it mirrors, `pairs` change places.
      pairs: such as `1-2,3-4`, indices among the J; empty for none.
    """
    xp = _library(keypoints, transform)
    points = move_points(keypoints[..., :2], transform)
    moved = xp.concatenate([points, keypoints[..., 2:].astype(np.float32)], axis=-1)
    if not pairs:
        return moved
    order = list(range(keypoints.shape[-2]))
    for pair in pairs.split(","):
        one, other = (int(number) for number in pair.split("-"))
        order[one], order[other] = other, one
    mirrors = transform.yy * transform.xx - transform.yx * transform.xy < 0
    return xp.where(mirrors, moved[..., np.array(order), :], moved)


def mask_fill(kind: str) -> int | None:
    """The fill value of a kind: 255 for `mask:255`, 0 for `mask`, None for other kinds."""
    name, _, fill = kind.partition(":")
    return int(fill or 0) if name == "mask" else None


def move(
    targets: dict[str, Any],
    moves: Moves,
    transform: Transform,
    size: Size,
    seen: Sequence[Number] | None = None,
    kept: str = "visible",
) -> dict[str, Any]:
    """One example's targets after a transform of its image; boxes are clipped to it, points not.

    Args:
      targets: arrays by name; those not in `moves` are unchanged.
      moves: the kind of each target that moves with the image, by name; see the module.
      transform: of the image.
      size: (height, width) of the transformed image, in pixels.
      seen: (height, width) of what it shows, from the top left on; the rest is padding. None for
        all of it.
      kept: which boxes stay, one of `KEPT`; others become zeros, and the target `valid` [M], if
        there is one, is False.

    Raises:
      ValueError: a kind is unknown.
    """
    moved: dict[str, Any] = {}
    for name, kind in moves.items():
        if (fill := mask_fill(kind)) is not None:
            moved[name] = move_mask(targets[name], transform, size, fill)
            if seen is not None:
                moved[name] = blank_mask(moved[name], seen, fill)
        elif kind == "points":
            moved[name] = move_points(targets[name], transform)
        elif kind.partition(":")[0] == "keypoints":
            moved[name] = move_keypoints(targets[name], transform, kind.partition(":")[2])
        elif kind == "boxes":
            whole = move_boxes(targets[name], transform)
            moved[name] = clip_boxes(whole, size if seen is None else seen)
            if kept == "centre":
                stays = shows_centre(whole, size if seen is None else seen)
                moved[name] = moved[name] * stays[..., None].astype(np.float32)
                if "valid" in targets:
                    moved["valid"] = targets["valid"] & stays
        else:
            raise ValueError(
                f"{name} has moves={kind!r}; it must be boxes, points, keypoints or mask"
            )
    return targets | moved


def train_box(
    random: np.random.Generator | None, height: int, width: int, image_size: int, augment: Any
) -> Box:
    """The box for training: of the random crop in `config.augment`, or else the middle square.

    Args:
      random: the example's own generator; needed only for a random crop.
      height, width, image_size: pixels of the image and of the network's input.
      augment: `config.augment`; `random_resized_crop` and `scale_jitter` are used.
    """
    if random is None:
        return eval_box(height, width, image_size)
    if augment.random_resized_crop.scale:
        return crop_box(random, height, width, **augment.random_resized_crop)
    if augment.scale_jitter:
        return jitter_box(random, height, width, image_size, augment.scale_jitter)
    return eval_box(height, width, image_size)


def crop_box(
    random: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw the box of a random resized crop, by torchvision's rule for RandomResizedCrop.

    Its share of the area is uniform in `scale`, its width over its height log-uniform in `ratio`.
    If ten tries do not fit the image, it is the largest centered box with a ratio in that range.
    """
    for _ in range(TRIES):
        share = random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w, fits = crop_size(share, aspect, height, width)
        if fits:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            return int(top), int(left), int(h), int(w)
    return middle_box(height, width, ratio)


def crop_size(share: Array, aspect: Array, height: int, width: int) -> tuple[Array, Array, Array]:
    """Height and width of a box in whole pixels, and whether it fits the image; all of one shape.

    The box has a share of the image's area and an aspect ratio, which is width over height.
    """
    xp = _library(share, aspect)
    area = height * width * share
    w, h = xp.round(xp.sqrt(area * aspect)), xp.round(xp.sqrt(area / aspect))
    return h, w, (w > 0) & (w <= width) & (h > 0) & (h <= height)


def middle_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """The largest centered box whose width over height is in a range."""
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_box(
    random: np.random.Generator, height: int, width: int, image_size: int, sides: tuple[int, int]
) -> Box:
    """Draw the box of VGG's scale jitter.

    It is what a crop of `image_size` covers after the shorter side is resized to a random S in
    `sides`.

    Raises:
      ValueError: the crop would be larger than the smallest S.
    """
    least, most = sides
    if image_size > least:
        raise ValueError(
            f"augment.scale_jitter starts at {least} pixels, less than the {image_size} of the crop"
        )
    side = max(1, round(min(height, width) * image_size / random.integers(least, most + 1)))
    top, left = (int(random.integers(length - side + 1)) for length in (height, width))
    return top, left, side, side


def eval_box(height: int, width: int, image_size: int, crop_ratio: float = 1.0) -> Box:
    """The middle square for evaluation, rounded to whole pixels.

    It is what a center crop of `image_size` covers after the shorter side is resized to
    `image_size / crop_ratio`, rounded down. With 224 and 0.875 that is the papers' 224 of 256.
    """
    side = max(1, round(min(height, width) * image_size / math.floor(image_size / crop_ratio)))
    return (height - side) // 2, (width - side) // 2, side, side


def whole_box(
    height: int, width: int, scale: int, step: int, longest: int
) -> tuple[Box, tuple[int, int]]:
    """The part of an image with its longer side center-cropped, and its size after resizing.

    Args:
      height, width: of the image, in pixels.
      scale: of the shorter side, after resizing.
      step: the longer side is `scale` plus a multiple of `step`.
      longest: the largest ratio of the longer side to the shorter one.
    """
    shorter, longer = sorted((height, width))
    room = min(round(longer * scale / shorter), longest * scale) - scale
    long_size = scale + room // step * step
    kept = min(longer, round(shorter * long_size / scale))
    start = (longer - kept) // 2
    if height <= width:
        return (0, start, height, kept), (scale, long_size)
    return (start, 0, kept, width), (long_size, scale)


def whole_size(height: int, width: int, scale: int, step: int) -> Size:
    """The size to which a whole image is resized; its longer side is nearly in proportion.

    Args:
      height, width: of the image, in pixels.
      scale: of the shorter side, after resizing; 0 keeps the image's own size.
      step: the longer side is `scale` plus a multiple of `step`, so that there are few sizes.
    """
    if not scale:
        return height, width
    shorter, longer = sorted((height, width))
    long_size = scale + round((longer - shorter) * scale / shorter / step) * step
    return (scale, long_size) if height <= width else (long_size, scale)
