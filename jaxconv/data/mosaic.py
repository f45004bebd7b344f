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

# The targets of objects, which a mosaic joins.
OF_OBJECTS = ("boxes", "classes", "valid", "crowd")


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
    kept: str = "visible",
    axis_name: str | None = None,
) -> Batch:
    """Join each image [B, H, W, C] with three others of the batch, with a probability.

    Args:
      key, batch: of training; with `boxes` [B, M, 4], `classes` and `valid` [B, M], and maybe
        `crowd` [B, M] and `seen` [B, 2], which becomes all of the image. `size` stays that of 0.
      probability: that an example becomes a mosaic.
      colour: [C] uint8, of what no image covers.
      kept: which objects stay, see `geometry.move`.
      axis_name: see `partners`.
    """
    image, keys = batch["image"], keys_of(key, batch)
    height, width = image.shape[1:3]
    chosen = uniform(keys, "coin") < probability
    size = jnp.array([[height, width]], jnp.float32)
    seen = batch["seen"] if "seen" in batch else jnp.broadcast_to(size, (len(image), 2))
    # Smaller by a whole number of pixels, so that the images are moved, not resampled, once more.
    small = jax.image.resize(
        image.astype(jnp.float32), (len(image), height // 2, width // 2, image.shape[-1]), "linear"
    )
    if image.dtype == jnp.uint8:
        small = jnp.clip(jnp.round(small), 0, 255)
    ratio = height // 2 / height, width // 2 / width
    # A little more, since a rounded product may fall below the whole number that it stands for.
    sides = jnp.maximum(jnp.floor(seen * jnp.array([ratio], jnp.float32) + 1e-3), 1)
    drawn = jnp.stack([uniform(keys, name, 0.25, 0.75) for name in ("top", "left")], axis=1)
    centre = jnp.round(drawn * size)
    filling = jnp.array(colour, jnp.float32) / (1 if image.dtype == jnp.uint8 else 255)
    joined = jnp.broadcast_to(filling.reshape(1, 1, 1, -1), image.shape)
    objects: dict[str, list[jax.Array]] = {name: [] for name in OF_OBJECTS if name in batch}
    given = {name: batch[name] for name in objects} | {"sides": sides, "small": small}
    of_all = {name: partners(x, axis_name) for name, x in given.items()}
    for k in range(4):
        one = {name: x[k] for name, x in of_all.items()}
        start, end, corner = _places(k, centre, one["sides"], size)
        pixels, covered = _laid(one["small"], corner, height, width)
        inside = jnp.maximum(start, corner), jnp.minimum(end, corner + one["sides"])
        covered &= _between(*inside, height, width)
        joined = jnp.where(covered[..., None], pixels, joined)
        of_boxes = {name: one[name] for name in ("boxes", "valid")}
        moved = jax.vmap(partial(_moved, ratio=ratio, kept=kept))(of_boxes, corner, *inside)
        for name, values in objects.items():
            values.append(moved.get(name, one[name]))
    together = {name: jnp.concatenate(values, axis=1) for name, values in objects.items()}
    found = largest(together, batch["boxes"].shape[1]) | {"image": joined.astype(image.dtype)}
    if "seen" in batch:
        found["seen"] = jnp.broadcast_to(size, seen.shape)
    return batch | {
        name: jnp.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), x, batch[name])
        for name, x in found.items()
    }


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
    kept: str,
) -> Batch:
    """One image's objects after it is scaled and moved to a corner, of which a window is seen.

    Those of which nothing stays are not valid.
    """
    moved = geometry.shift(*(corner - start))
    transform = geometry.compose(geometry.scale(*ratio), moved)
    found = geometry.move(targets, {"boxes": "boxes"}, transform, (0, 0), tuple(end - start), kept)
    boxes, valid = found["boxes"], found["valid"]
    valid &= jnp.all(boxes[:, :2] < boxes[:, 2:], axis=1)
    return {"boxes": jnp.where(valid[:, None], boxes + jnp.tile(start, 2)[None], 0), "valid": valid}


def largest(objects: Batch, most: int) -> Batch:
    """The `most` valid objects [B, N] with the largest boxes, the largest first.

    Args:
      objects: `boxes` [B, N, 4], `valid` [B, N], and others [B, N].
      most: M.
    """
    top, left, bottom, right = (objects["boxes"][..., n] for n in range(4))
    score = jnp.where(objects["valid"], (bottom - top) * (right - left), -1)
    order = lax.top_k(score, most)[1]
    return {
        name: jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)
        for name, x in objects.items()
    }
