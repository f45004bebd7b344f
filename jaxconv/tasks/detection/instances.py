"""Masks and keypoints of instances on the device: what regions learn, and what is measured.

The truth's masks of an image are bits [H, W, ceil(M / 8)] uint8: bit m % 8 of byte m // 8 is object
m (`data.objects.as_bits`). No function here makes float32 maps of the whole image for all objects.

    masks       the head's 28 x 28 of a box, pasted as in masks.py and counted where above 0.5
    keypoints   the head's 56 x 56 of a box, resized to it by cubic interpolation (Keys 1981, with
                a = -0.75), and the pixel with the highest value, as torchvision has them
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.layers.roi_align import taps

# Numbers of pasted masks and of the truth's that are made at once, for an image.
_AT_ONCE = 1 << 21
# Side of the squares of pixels in which a keypoint is looked for, one after the other.
_SQUARE = 64
_CUBIC = -0.75
_THRESHOLD = 0.5


def masks_of_regions(
    bits: jax.Array,
    boxes: jax.Array,
    index: jax.Array,
    side: int = 28,
    samples: int = 2,
    aligned: bool = False,
) -> jax.Array:
    """The truth's masks inside regions [R, 4], each of its object `index` [R]: [R, side, side].

    They are float32 from 0 to 1, what `roi_align` reads of the object's mask.

    Args:
      bits: [H, W, ceil(M / 8)] of the image.
      boxes: of the regions, in pixels.
      index: of the objects; below 0 any.
      side: of the result.
      samples: points of a cell along each axis.
      aligned: as for `roi_align`.
    """
    height, width, _ = bits.shape
    boxes = boxes - (0.5 if aligned else 0)
    sides = boxes[:, 2:] - boxes[:, :2]
    sides = sides if aligned else jnp.maximum(sides, 1)
    y, of_y = taps(boxes[:, 0], sides[:, 0], height, side, samples)
    x, of_x = taps(boxes[:, 1], sides[:, 1], width, side, samples)
    index = jnp.maximum(index, 0)[:, None, None]
    byte, bit = index // 8, (index % 8).astype(jnp.uint8)
    total = jnp.zeros((len(boxes), side, side), jnp.float32)
    for m in range(y.shape[2]):
        for n in range(x.shape[2]):
            cells = bits[y[:, :, None, m], x[:, None, :, n], byte]
            inside = ((cells >> bit) & 1).astype(jnp.float32)
            total = total + of_y[:, :, None, m] * of_x[:, None, :, n] * inside
    return total


def planes(bits: jax.Array, objects: int) -> jax.Array:
    """Bits [..., ceil(M / 8)] -> [..., M] uint8, 0 or 1."""
    return jnp.unpackbits(bits, axis=-1, count=objects, bitorder="little")


def _grown(boxes: jax.Array, cells: int, axis: int) -> tuple[jax.Array, jax.Array]:
    """First and last pixel [D] of boxes along an axis, grown as their masks by a border."""
    low, high = boxes[:, axis], boxes[:, axis + 2]
    half, middle = (high - low) * 0.5 * (cells / (cells - 2)), (high + low) * 0.5
    return (middle - half).astype(jnp.int32), (middle + half).astype(jnp.int32)


def _weights(pixels: jax.Array, boxes: jax.Array, cells: int, axis: int) -> jax.Array:
    """How much each of some pixels [P] takes of each cell of a mask with its border: [D, P, cells].

    As `masks._resized` has them; all are 0 outside of a box.
    """
    first, last = (value[:, None] for value in _grown(boxes, cells, axis))
    pixels = pixels[None]
    length = jnp.maximum(last - first + 1, 1).astype(jnp.float32)
    at = (pixels - first).astype(jnp.float32) + 0.5
    at = jnp.maximum(at * (cells / length) - 0.5, 0)[..., None]
    lower = jnp.minimum(jnp.floor(at), cells - 1)
    upper, share = jnp.minimum(lower + 1, cells - 1), at - lower
    cell = jnp.arange(cells, dtype=jnp.float32).reshape(1, 1, cells)
    weights = jnp.where(cell == lower, 1 - share, 0) + jnp.where(cell == upper, share, 0)
    inside = (pixels >= first) & (pixels <= last) & jnp.isfinite(boxes).all(axis=1)[:, None]
    return jnp.where(inside[..., None], weights, 0)


def mask_measures(
    masks: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    bits: jax.Array,
    crowd: jax.Array,
) -> dict[str, jax.Array]:
    """Overlaps of pasted masks and the truth's, of one image.

    Args:
      masks: [D, m, m], probabilities in their boxes [D, 4].
      valid: [D]; the others' are empty.
      bits: [H, W, ceil(M / 8)].
      crowd: [M].

    Returns:
      `mask_overlaps` [D, M], the IoU, of a crowd the share of the detection that lies in it;
      `mask_areas` [D] and `true_mask_areas` [M] in pixels. float32; areas are exact.
    """
    (height, width, _), (found, objects) = bits.shape, (len(masks), len(crowd))
    cells, exact = masks.shape[1] + 2, lax.Precision.HIGHEST
    bordered = jnp.pad(masks, ((0, 0), (1, 1), (1, 1)))
    across = _weights(jnp.arange(width), boxes, cells, 1)
    wide = jnp.einsum("dij,dxj->dix", bordered, across, precision=exact)
    rows = min(max(_AT_ONCE // (width * (found + objects)), 1), height)
    padded = jnp.pad(bits, ((0, -height % rows), (0, 0), (0, 0)))

    def add(total: tuple[jax.Array, ...], top: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        pixels = top + jnp.arange(rows)
        down = _weights(pixels, boxes, cells, 0)
        pasted = jnp.einsum("dyi,dix->dyx", down, wide, precision=exact) > _THRESHOLD
        pasted &= valid[:, None, None] & (pixels < height)[None, :, None]
        own = pasted.reshape(found, -1).astype(jnp.float32)
        truth = planes(lax.dynamic_slice_in_dim(padded, top, rows), objects)
        truth = truth.reshape(-1, objects).astype(jnp.float32)
        parts = own @ truth, jnp.sum(own, axis=1), jnp.sum(truth, axis=0)
        return tuple(jnp.add(a, b) for a, b in zip(total, parts, strict=True)), None

    shapes = (found, objects), (found,), (objects,)
    start = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    (common, areas, true_areas), _ = lax.scan(add, start, jnp.arange(0, height, rows))
    union = jnp.where(crowd[None], areas[:, None], areas[:, None] + true_areas[None] - common)
    overlaps = jnp.where(common > 0, common / jnp.maximum(union, 1), 0)
    return {"mask_overlaps": overlaps, "mask_areas": areas, "true_mask_areas": true_areas}


def _cubic(pixels: jax.Array, count: jax.Array, cells: int) -> jax.Array:
    """How much pixels [P] of `count` along an axis take of each cell of a map: [P, cells]."""
    at = (pixels.astype(jnp.float32) + 0.5) * (cells / count.astype(jnp.float32)) - 0.5
    lower, a = jnp.floor(at), _CUBIC
    cell = jnp.arange(cells, dtype=jnp.float32)[None]
    weights = jnp.zeros((len(pixels), cells), jnp.float32)
    for tap in (-1, 0, 1, 2):
        x = jnp.abs(at - lower - tap)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        place = jnp.clip(lower + tap, 0, cells - 1)[:, None]
        weights += jnp.where(cell == place, jnp.where(x <= 1, near, far)[:, None], 0)
    return weights


def keypoints_of(maps: jax.Array, box: jax.Array, valid: jax.Array) -> jax.Array:
    """The keypoints of a region: maps [h, w, J] over its box [4] -> [J, 3]: y, x, and the score,
    the highest value of the map. Zeros where it is not `valid`.

    torchvision's `heatmaps_to_keypoints`: a map is resized to the box in whole pixels. Here that is
    done square by square, as many as the box has, so that shapes are static; of several pixels with
    the same value it may be another one.
    """
    height, width, joints = maps.shape
    sides = jnp.maximum(box[2:] - box[:2], 1)
    counts = jnp.ceil(sides).astype(jnp.int32)
    squares = jnp.where(valid, -(-counts // _SQUARE), 0)

    def look(n: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start = jnp.stack([n // squares[1], n % squares[1]]) * _SQUARE
        y, x = (start[axis] + jnp.arange(_SQUARE) for axis in (0, 1))
        down, across = _cubic(y, counts[0], height), _cubic(x, counts[1], width)
        rows = jnp.einsum("yi,ijk->yjk", down, maps, precision=lax.Precision.HIGHEST)
        values = jnp.einsum("xj,yjk->kyx", across, rows, precision=lax.Precision.HIGHEST)
        real = (y < counts[0])[:, None] & (x < counts[1])[None]
        values = jnp.where(real[None], values, -jnp.inf).reshape(joints, -1)
        place = jnp.argmax(values, axis=1)
        here = jnp.stack([y[place // _SQUARE], x[place % _SQUARE]], axis=1)
        top = jnp.max(values, axis=1)
        better = top > best[0]
        return jnp.where(better, top, best[0]), jnp.where(better[:, None], here, best[1])

    start = jnp.full((joints,), -jnp.inf), jnp.zeros((joints, 2), jnp.int32)
    score, place = lax.fori_loop(0, jnp.prod(squares), look, start)
    step = sides / counts.astype(jnp.float32)
    points = (place.astype(jnp.float32) + 0.5) * step[None] + box[None, :2]
    return jnp.where(valid, jnp.concatenate([points, score[:, None]], axis=1), 0)


def all_keypoints(maps: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """Of an image: maps [D, h, w, J] over boxes [D, 4] -> [D, J, 3], see `keypoints_of`."""
    return lax.map(lambda given: keypoints_of(*given), (maps, boxes, valid))
