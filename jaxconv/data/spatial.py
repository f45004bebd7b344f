"""Augmentations that move pixels, jitted and on the device: random crops, padding, flips.

Each draws one transform per example (data/geometry.py) and applies it to the image and to the
targets in `moves`. Whole-pixel moves of images and masks are slices, which are faster than
resampling.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.data import geometry
from jaxconv.data.geometry import NO_MOVES, Moves, Transform
from jaxconv.data.interface import Batch, keys_of

Range = Sequence[float]


def uniform(
    keys: jax.Array, name: str, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()
) -> jax.Array:
    """Uniform draws [B, *shape] from the examples' keys; `name` separates one use from another."""
    number = zlib.crc32(name.encode())
    return jax.vmap(
        lambda k: jax.random.uniform(jax.random.fold_in(k, number), shape, minval=low, maxval=high)
    )(keys)


def _whole(share: jax.Array, count: jax.Array | int) -> jax.Array:
    """An integer from 0 to count - 1, from a uniform draw."""
    return jnp.minimum(jnp.floor(share * count), count - 1)


def draw_boxes(
    keys: jax.Array, height: int, width: int, scale: Range, ratio: Range
) -> tuple[jax.Array, jax.Array]:
    """Draw boxes [B, 4] (top, left, height, width) in whole pixels, float32, like
    `geometry.crop_box`; and whether one of the ten tries fits [B].
    """
    share = uniform(keys, "area", *scale, shape=(geometry.TRIES,))
    log_ratio = jnp.log(jnp.array(ratio, jnp.float32))
    aspect = jnp.exp(
        log_ratio[0]
        + (log_ratio[1] - log_ratio[0]) * uniform(keys, "aspect", shape=(geometry.TRIES,))
    )
    h, w, fits = geometry.crop_size(share, aspect, height, width)
    first = jnp.argmax(fits, axis=1)[:, None]
    w, h = (jnp.take_along_axis(size, first, axis=1)[:, 0] for size in (w, h))
    top, left = (
        _whole(uniform(keys, "top"), height - h + 1),
        _whole(uniform(keys, "left"), width - w + 1),
    )
    return jnp.stack([top, left, h, w], axis=1), jnp.any(fits, axis=1)


def _move_targets(
    batch: Batch,
    moves: Moves,
    transform: Callable[[Any], Transform],
    drawn: Any,
    slices: Callable[[jax.Array, int], jax.Array] | None = None,
    seen: jax.Array | None = None,
    kept: str = "visible",
) -> Batch:
    """The targets in `moves`, moved by one transform per example.

    `transform` maps an example's part of `drawn` [B, ...] to its transform. If the transforms move
    by whole pixels, `slices` does the same to masks [B, H, W, ...], with a given fill value. For
    `seen` [B, 2] and `kept` see `geometry.move`.
    """
    sliced = {}
    if slices is not None:
        fills = {name: geometry.mask_fill(kind) for name, kind in moves.items()}
        sliced = {name: slices(batch[name], n) for name, n in fills.items() if n is not None}
    rest = {name: kind for name, kind in moves.items() if name not in sliced}
    if not rest:
        return sliced
    size = batch["image"].shape[1:3]

    def move(targets: Batch, one: Any, seen: Any) -> Batch:
        return geometry.move(targets, rest, transform(one), size, seen, kept)

    names = [*rest, *(["valid"] if "valid" in batch else [])]
    return sliced | jax.vmap(move)({name: batch[name] for name in names}, drawn, seen)


def _resampled(image: jax.Array, scale: jax.Array, shift: jax.Array, antialias: bool) -> jax.Array:
    """Images [B, H, W, C], each scaled and then shifted by [B, 2] (down, right), bilinearly."""

    def one(pixels: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        return jax.image.scale_and_translate(
            pixels, pixels.shape, (0, 1), scale, shift, "linear", antialias=antialias
        )

    stretched = jax.vmap(one)(image.astype(jnp.float32), scale, shift)
    if image.dtype == jnp.uint8:
        stretched = jnp.clip(jnp.round(stretched), 0, 255)
    return stretched.astype(image.dtype)


def _crop(batch: Batch, boxes: jax.Array, moves: Moves, kept: str = "visible") -> Batch:
    """Crop one box [B, 4] (top, left, height, width) per example and resize it bilinearly to the
    size of the images [B, H, W, C].
    """
    image = batch["image"]
    scale = jnp.array([image.shape[1:3]], jnp.float32) / boxes[:, 2:]
    stretched = _resampled(image, scale, -boxes[:, :2] * scale, antialias=False)
    transform = partial(geometry.crop, size=image.shape[1:3])
    moved = _move_targets(batch, moves, transform, boxes, kept=kept)
    return batch | {"image": stretched} | moved


def large_scale_jitter(
    key: jax.Array,
    batch: Batch,
    factors: Range,
    moves: Moves = NO_MOVES,
    kept: str = "visible",
) -> Batch:
    """Resize each image [B, H, W, C] by a random factor, then crop it at random, or pad it.

    The size stays. `seen` [B, 2] becomes the part from the top left on that shows the image, or is
    added; what lies beyond is left for `augment.blank`. See `canvas.jittered`, which does this to
    files, and data/geometry.py for `moves` and `kept`.
    """
    image = batch["image"]
    size, keys = jnp.array([image.shape[1:3]], jnp.float32), keys_of(key, batch)
    before = batch["seen"] if "seen" in batch else jnp.broadcast_to(size, (len(image), 2))
    factor = uniform(keys, "factor", factors[0], factors[1])[:, None]
    full = jnp.maximum(jnp.round(before * factor), 1)
    seen = jnp.minimum(full, size)
    corner = jnp.stack([uniform(keys, "top"), uniform(keys, "left")], axis=1)
    corner, scale = _whole(corner, full - seen + 1), full / before
    stretched = _resampled(image, scale, -corner, antialias=True)

    def transform(drawn: tuple[jax.Array, jax.Array]) -> Transform:
        factors, corner = drawn
        moved = geometry.shift(-corner[0], -corner[1])
        return geometry.compose(geometry.scale(factors[0], factors[1]), moved)

    moved = _move_targets(batch, moves, transform, (scale, corner), seen=seen, kept=kept)
    return batch | {"image": stretched, "seen": seen} | moved


def random_resized_crop(
    key: jax.Array,
    batch: Batch,
    scale: Range,
    ratio: Range,
    moves: Moves = NO_MOVES,
    kept: str = "visible",
) -> Batch:
    """Resize a random part of each image [B, H, W, C] to the size of the image.

    See `geometry.crop_box` for `scale` and `ratio`, and data/geometry.py for `moves` and `kept`.
    """
    h, w = batch["image"].shape[1:3]
    boxes, fits = draw_boxes(keys_of(key, batch), h, w, scale, ratio)
    low, high = ratio
    middle = jnp.array(geometry.middle_box(h, w, (low, high)), jnp.float32)
    return _crop(batch, jnp.where(fits[:, None], boxes, middle.reshape(1, 4)), moves, kept)


def scale_jitter(
    key: jax.Array,
    batch: Batch,
    sides: Sequence[int],
    moves: Moves = NO_MOVES,
    kept: str = "visible",
) -> Batch:
    """Enlarge each image [B, H, W, C] to a random shorter side in `sides`, then crop at random.

    The crop has the size of the image. See data/geometry.py for `moves` and `kept`.
    """
    h, w = batch["image"].shape[1:3]
    keys = keys_of(key, batch)
    side = jnp.minimum(sides[0] + _whole(uniform(keys, "side"), sides[1] - sides[0] + 1), sides[1])
    height, width = (jnp.round(length * min(h, w) / side) for length in (h, w))
    top, left = (
        _whole(uniform(keys, "top"), h - height + 1),
        _whole(uniform(keys, "left"), w - width + 1),
    )
    return _crop(batch, jnp.stack([top, left, height, width], axis=1), moves, kept)


def pad_crop(
    key: jax.Array,
    batch: Batch,
    pixels: int,
    moves: Moves = NO_MOVES,
    reflect: bool = False,
    kept: str = "visible",
) -> Batch:
    """Move each image [B, H, W, C], or volume [B, D, H, W, C], by up to `pixels` in each direction.

    It is padded with black, or with `reflect` by itself, mirrored at its border. See
    data/geometry.py for `moves`; masks are padded with their fill value.
    """
    axes = batch["image"].ndim - 2
    corners = jax.vmap(lambda k: jax.random.randint(k, (axes,), 0, 2 * pixels + 1))(
        keys_of(key, batch)
    )

    def slices(images: jax.Array, fill: int | None) -> jax.Array:
        rest, border = images.shape[1 + axes :], (pixels, pixels)
        how: dict[str, Any] = {"constant_values": fill}
        how = {"mode": "reflect"} if fill is None else how
        padded = jnp.pad(images, ((0, 0), *(border,) * axes, *((0, 0) for _ in rest)), **how)

        def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
            start = (*(corner[n] for n in range(axes)), *(0 for _ in rest))
            return jax.lax.dynamic_slice(image, start, images.shape[1:])

        return jax.vmap(crop)(padded, corners)

    def transform(corner: jax.Array) -> Transform:
        return geometry.shift(*(pixels - corner).astype(jnp.float32))

    image = slices(batch["image"], None if reflect else 0)
    moved = _move_targets(batch, moves, transform, corners, slices, kept=kept)
    return batch | {"image": image} | moved


def flip(key: jax.Array, batch: Batch, moves: Moves = NO_MOVES) -> Batch:
    """Mirror each image [B, H, W, C] left to right with probability 1/2.

    Volumes [B, D, H, W, C] are mirrored along W. See data/geometry.py for `moves`.
    """
    return mirror(batch, jax.vmap(jax.random.bernoulli)(keys_of(key, batch)), moves)


def mirror(batch: Batch, mirrored: jax.Array, moves: Moves = NO_MOVES) -> Batch:
    """Mirror those images [B, H, W, C] left to right for which `mirrored` [B] is true.

    Volumes [B, D, H, W, C] are mirrored along W. On a canvas, the part that is `seen` [B, 2] is
    mirrored where it stands. See data/geometry.py for `moves`.
    """
    width, across = batch["image"].shape[-2], batch["image"].ndim - 2
    seen = batch.get("seen")
    widths = jnp.full(len(mirrored), width, jnp.float32) if seen is None else seen[:, 1]

    def slices(images: jax.Array, _: int) -> jax.Array:
        if seen is not None:
            return _mirror_part(images, jnp.where(mirrored, widths, 0))
        chosen = mirrored.reshape(-1, *(1 for _ in images.shape[1:]))
        return jnp.where(chosen, jnp.flip(images, across), images)

    def transform(drawn: tuple[jax.Array, jax.Array]) -> Transform:
        chosen, width = drawn
        other, same = geometry.flip(width), geometry.shift(0.0, 0.0)
        return jax.tree.map(partial(jnp.where, chosen), other, same)

    image, drawn = slices(batch["image"], 0), (mirrored, widths)
    moved = _move_targets(batch, moves, transform, drawn, slices, seen)
    return batch | {"image": image} | moved


def _mirror_part(images: jax.Array, widths: jax.Array) -> jax.Array:
    """Images [B, H, W, ...] whose first so many columns [B] are mirrored."""
    column = jnp.arange(images.shape[2])[None]
    last = widths.astype(jnp.int32)[:, None] - 1
    source = jnp.where(column <= last, last - column, column)
    return jax.vmap(lambda image, order: jnp.take(image, order, axis=1))(images, source)
