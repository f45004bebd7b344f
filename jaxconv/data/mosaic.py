"""Mosaic: four images of a batch as one (Bochkovskiy et al. 2020, arXiv:2004.10934, section 3.3).

    +-------+-----------+    The four meet at a point that is drawn for each example, in the middle
    |    0  |  1        |    half of the image. Each is half as large as it was, touches the point
    |       |           |    with a corner, and ends at the border of its quadrant; what none of
    +-------*-----------+    them covers has the mean colour.
    |    2  |  3        |
    +-------+-----------+    Of the objects of all four, the M largest stay.

The example at position p is 0, and those at p + B/4, p + B/2 and p + 3B/4 of the global batch are 1
to 3, so that it does not depend on the number of devices and hosts.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.data import geometry
from jaxconv.data.interface import Batch, keys_of
from jaxconv.data.spatial import uniform

# The targets of objects, which a mosaic joins, and their masks as bits, see `objects.as_bits`.
OF_OBJECTS = ("boxes", "classes", "valid", "crowd", "filled", "keypoints")
MASKS = "masks"


def partners(x: jax.Array, axis_name: str | None = None) -> list[jax.Array]:
    """For the example at each position p of the global batch, those at p + kB/4, k = 0 to 3.

    Args:
      x: [B, ...], or this device's part of it.
      axis_name: under `pmap`, the axis of the devices, which hold consecutive parts of the batch.
    """
    if axis_name is None:
        step = max(1, len(x) // 4)
        return [jnp.roll(x, -k * step, axis=0) for k in range(4)]
    whole = lax.all_gather(x, axis_name, tiled=True)
    place, step = lax.axis_index(axis_name) * len(x) + jnp.arange(len(x)), max(1, len(whole) // 4)
    return [whole[(place + k * step) % len(whole)] for k in range(4)]


def mosaic(
    key: jax.Array,
    batch: Batch,
    probability: float,
    colour: Sequence[int],
    moves: geometry.Moves,
    kept: str = "visible",
    axis_name: str | None = None,
) -> Batch:
    """Join each image [B, H, W, C] with three others of the batch, with a probability.

    Args:
      key, batch: of training; with `boxes` [B, M, 4], `classes` and `valid` [B, M], maybe others of
        `OF_OBJECTS`, `masks` [B, H, W, ceil(M / 8)], and `seen` [B, 2], which becomes all of the
        image. `size` stays that of 0.
      probability: that an example becomes a mosaic.
      colour: [C] uint8, of what no image covers.
      moves: of `boxes`, `keypoints` and `masks`, see data/geometry.py.
      kept: which objects stay, see `geometry.move`.
      axis_name: see `partners`.
    """
    image, keys = batch["image"], keys_of(key, batch)
    height, width = image.shape[1:3]
    chosen = uniform(keys, "coin") < probability
    size = jnp.array([[height, width]], jnp.float32)
    seen = batch["seen"] if "seen" in batch else jnp.broadcast_to(size, (len(image), 2))
    ratio = height // 2 / height, width // 2 / width
    # A little more, since a rounded product may fall below the whole number that it stands for.
    sides = jnp.maximum(jnp.floor(seen * jnp.array([ratio], jnp.float32) + 1e-3), 1)
    drawn = jnp.stack([uniform(keys, name, 0.25, 0.75) for name in ("top", "left")], axis=1)
    centre = jnp.round(drawn * size)
    filling = jnp.array(colour, jnp.float32) / (1 if image.dtype == jnp.uint8 else 255)
    joined = jnp.broadcast_to(filling.reshape(1, 1, 1, -1), image.shape)
    objects: dict[str, list[jax.Array]] = {name: [] for name in OF_OBJECTS if name in batch}
    given = {name: batch[name] for name in objects} | {"sides": sides, "small": _halved(image)}
    given |= {MASKS: batch[MASKS]} if MASKS in moves else {}
    rest = {name: kind for name, kind in moves.items() if name != MASKS}
    of_all, bits = {name: partners(x, axis_name) for name, x in given.items()}, []
    for k in range(4):
        one = {name: x[k] for name, x in of_all.items()}
        start, end, corner = _places(k, centre, one["sides"], size)
        pixels, covered = _laid(one["small"], corner, height, width)
        inside = jnp.maximum(start, corner), jnp.minimum(end, corner + one["sides"])
        covered &= _between(*inside, height, width)
        joined = jnp.where(covered[..., None], pixels, joined)
        moving, how = {name: one[name] for name in (*rest, "valid")}, {"moves": rest, "kept": kept}
        moved = jax.vmap(partial(_moved, ratio=ratio, **how))(moving, corner, *inside)
        if MASKS in moves:
            own = jax.vmap(partial(_moved_bits, ratio=ratio))(one[MASKS], corner)
            bits.append(jnp.where(covered[..., None], own, 0))
        for name, values in objects.items():
            values.append(moved.get(name, one[name]))
    together = {name: jnp.concatenate(values, axis=1) for name, values in objects.items()}
    most = batch["boxes"].shape[1]
    order = largest(together["boxes"], together["valid"], most)
    found = {name: _taken(x, order) for name, x in together.items()}
    found["image"] = joined.astype(image.dtype)
    if bits:
        found[MASKS] = joined_bits(bits, order, most)
    if "seen" in batch:
        found["seen"] = jnp.broadcast_to(size, seen.shape)
    return batch | {
        name: jnp.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), x, batch[name])
        for name, x in found.items()
    }


def _halved(images: jax.Array) -> jax.Array:
    """Images [B, H, W, C] half as large, float32; in whole levels if they are uint8.

    The size is whole, so that they are moved afterwards, and not resampled once more.
    """
    count, height, width, channels = images.shape
    size = (count, height // 2, width // 2, channels)
    small = jax.image.resize(images.astype(jnp.float32), size, "linear")
    return jnp.clip(jnp.round(small), 0, 255) if images.dtype == jnp.uint8 else small


def _places(
    k: int, centre: jax.Array, sides: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where quadrant k starts and ends, and the top left corner of its image: [B, 2] each."""
    after = jnp.array([[k // 2, k % 2]], jnp.float32)
    start, end = after * centre, after * size + (1 - after) * centre
    return start, end, after * centre + (1 - after) * (centre - sides)


def _laid(
    images: jax.Array, corner: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Images [B, h, w, C] with their top left corners [B, 2] at whole pixels of larger ones: [B, H,
    W, C], and which pixels they cover [B, H, W].
    """
    y, x = (
        (jnp.arange(length, dtype=jnp.float32)[None] - corner[:, n : n + 1]).astype(jnp.int32)
        for n, length in enumerate((height, width))
    )
    rows, columns = images.shape[1:3]

    def one(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
        return image[jnp.clip(y, 0, rows - 1)][:, jnp.clip(x, 0, columns - 1)]

    inside = ((y >= 0) & (y < rows))[:, :, None] & ((x >= 0) & (x < columns))[:, None]
    return jax.vmap(one)(images, y, x), inside


def _between(start: jax.Array, end: jax.Array, height: int, width: int) -> jax.Array:
    """Which pixels [B, H, W] lie between two corners [B, 2]."""
    y, x = (
        (place >= start[:, n : n + 1]) & (place < end[:, n : n + 1])
        for n, place in enumerate(
            jnp.arange(length, dtype=jnp.float32)[None] for length in (height, width)
        )
    )
    return y[:, :, None] & x[:, None]


def _moved(
    targets: Batch,
    corner: jax.Array,
    start: jax.Array,
    end: jax.Array,
    ratio: tuple[float, float],
    moves: geometry.Moves,
    kept: str,
) -> Batch:
    """One image's objects after it is scaled and moved to a corner, of which a window is seen.

    Those of which nothing stays are not valid, and keypoints outside are not labelled.
    """
    moved = geometry.shift(*(corner - start))
    transform = geometry.compose(geometry.scale(*ratio), moved)
    window = tuple(end - start)
    found = geometry.move(targets, moves, transform, (0, 0), window, kept)
    boxes, valid = found["boxes"], found["valid"]
    valid &= jnp.all(boxes[:, :2] < boxes[:, 2:], axis=1)
    found["boxes"] = jnp.where(valid[:, None], boxes + jnp.tile(start, 2)[None], 0)
    if "keypoints" in moves:
        points, labelled = found["keypoints"][..., :2], found["keypoints"][..., 2]
        inside = jnp.all((points >= 0) & (points < jnp.array([[window]])), axis=-1)
        points = points + start[None, None]
        found["keypoints"] = jnp.concatenate([points, (labelled * inside)[..., None]], axis=-1)
    return found | {"valid": valid}


def _moved_bits(bits: jax.Array, corner: jax.Array, ratio: tuple[float, float]) -> jax.Array:
    """One image's masks [H, W, C] after it is scaled and moved to a corner."""
    transform = geometry.compose(geometry.scale(*ratio), geometry.shift(*corner))
    return geometry.move_mask(bits, transform, (bits.shape[0], bits.shape[1]))


def largest(boxes: jax.Array, valid: jax.Array, most: int) -> jax.Array:
    """The places [B, M] of the `most` valid objects with the largest boxes, the largest first.

    Args:
      boxes, valid: of objects, [B, N, 4] and [B, N].
      most: M.
    """
    top, left, bottom, right = (boxes[..., n] for n in range(4))
    return lax.top_k(jnp.where(valid, (bottom - top) * (right - left), -1), most)[1]


def _taken(x: jax.Array, order: jax.Array) -> jax.Array:
    """Rows [B, M, ...] of x [B, N, ...] by their places [B, M]."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)


def joined_bits(bits: Sequence[jax.Array], order: jax.Array, most: int) -> jax.Array:
    """The masks of the objects that stay, as bits [B, H, W, ceil(M / 8)] uint8.

    Args:
      bits: of the M objects of each of four images, in the place of their quadrant.
      order: [B, M] places among the 4 M objects.
      most: M.
    """
    found = jnp.zeros((*bits[0].shape[:3], most), jnp.uint8)
    for k, own in enumerate(bits):
        planes = jnp.unpackbits(own, axis=-1, count=most, bitorder="little")
        ordered = jax.vmap(partial(jnp.take, axis=-1))(planes, order % most)
        of_k = order // most == k
        found |= jnp.where(of_k[:, None, None], ordered, 0)
    return jnp.packbits(found, axis=-1, bitorder="little")
