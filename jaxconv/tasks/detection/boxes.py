"""Boxes (top, left, bottom, right) in pixels, as arrays [..., 4]: overlaps, clipping and codes.

    code     of a box relative to an anchor                                     paper
    encode   (t_x, t_y, t_w, t_h): shift of the centre in sizes of the anchor,  R-CNN, Appendix C
             logarithm of the ratio of the sizes, times four weights            (arXiv:1311.2524)
    sides    (l, t, r, b): distances of the anchor's centre to the four sides,  FCOS, equation 1
             in sizes of the anchor                                             (arXiv:1904.01355)

Codes have the order of the papers, which the published weights have too. The weights are (1, 1, 1,
1) for RPN and RetinaNet and (10, 10, 5, 5) for the heads of R-CNN and for SSD.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Of the logarithm of a ratio of sizes, so that `exp` stays finite: a box of 1000 pixels at an
# anchor of 16.
LIMIT = math.log(1000 / 16)

Corners = Callable[[jax.Array, jax.Array], jax.Array]


def area(boxes: jax.Array) -> jax.Array:
    """[..., 4] -> [...]; 0 for boxes without height or width."""
    return jnp.maximum(boxes[..., 2] - boxes[..., 0], 0) * jnp.maximum(
        boxes[..., 3] - boxes[..., 1], 0
    )


def iou(some: jax.Array, others: jax.Array) -> jax.Array:
    """Intersection over union of boxes [..., 4] with others, which broadcast: [...].

    `iou(a[:, None], b[None])` has all pairs. It is 0 where both have no area.

    >>> one, others = jnp.array([[0.0, 0, 2, 2]]), jnp.array([[0.0, 1, 2, 3], [2, 2, 4, 4]])
    >>> [round(float(value), 3) for value in iou(one, others)]
    [0.333, 0.0]
    """
    common, union = _common(some, others)
    return _ratio(common, union)


def giou(some: jax.Array, others: jax.Array) -> jax.Array:
    """Generalized IoU of boxes [..., 4] with others, which broadcast: [...], from -1 to 1.

    The IoU less the share of the smallest box around both that neither covers. It is 0 where the
    box around both has no area. Rezatofighi et al. 2019, arXiv:1902.09630, Algorithm 1.
    """
    common, union = _common(some, others)
    around = _joined(some, others, jnp.minimum, jnp.maximum)
    return _ratio(common, union) - _ratio(area(around) - union, area(around))


def clip(boxes: jax.Array, size: Sequence[float] | jax.Array) -> jax.Array:
    """Boxes [..., 4] within an image of `size` (height, width), numbers or an array [2]."""
    height, width = (jnp.asarray(side, boxes.dtype) for side in size)
    limits = jnp.stack([height, width, height, width])
    return jnp.clip(boxes, 0, limits.reshape((1,) * (boxes.ndim - 1) + (4,)))


def at_least(boxes: jax.Array, size: float) -> jax.Array:
    """Whether neither height nor width of boxes [..., 4] is less than `size` pixels: [...]."""
    return jnp.min(boxes[..., 2:] - boxes[..., :2], axis=-1) >= size


def encode(
    boxes: jax.Array, anchors: jax.Array, weights: Sequence[float] = (1, 1, 1, 1)
) -> jax.Array:
    """Codes (t_x, t_y, t_w, t_h) of boxes [..., 4] relative to anchors, which broadcast: [..., 4].

    The code is 0 where a box or its anchor has no height or width, so that padding gives no NaN.
    """
    (y, x, height, width), (of_y, of_x, of_height, of_width) = map(_centred, (boxes, anchors))
    sound = (jnp.minimum(height, width) > 0) & (jnp.minimum(of_height, of_width) > 0)
    height, width, of_height, of_width = (
        jnp.where(sound, side, 1) for side in (height, width, of_height, of_width)
    )
    code = [
        (x - of_x) / of_width,
        (y - of_y) / of_height,
        jnp.log(width / of_width),
        jnp.log(height / of_height),
    ]
    return jnp.stack(
        [jnp.where(sound, weight * c, 0) for weight, c in zip(weights, code, strict=True)], axis=-1
    )


def decode(
    codes: jax.Array,
    anchors: jax.Array,
    weights: Sequence[float] = (1, 1, 1, 1),
    limit: float = LIMIT,
) -> jax.Array:
    """The boxes [..., 4] of codes (t_x, t_y, t_w, t_h) and anchors, which broadcast.

    A code of each class [N, K, 4] goes with anchors [N, 1, 4].

    Args:
      weights: as for `encode`.
      limit: of the logarithm of the ratio of sizes.
    """
    of_y, of_x, of_height, of_width = _centred(anchors)
    t_x, t_y, t_w, t_h = (codes[..., n] / weight for n, weight in enumerate(weights))
    y, x = t_y * of_height + of_y, t_x * of_width + of_x
    height, width = (
        jnp.exp(jnp.minimum(log, limit)) * side for log, side in ((t_h, of_height), (t_w, of_width))
    )
    return jnp.stack(
        [y - 0.5 * height, x - 0.5 * width, y + 0.5 * height, x + 0.5 * width], axis=-1
    )


def encode_sides(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """Codes (l, t, r, b) of boxes [..., 4] relative to anchors, which broadcast: [..., 4].

    Distances from the anchor's centre, positive inside the box, over the anchor's width or height;
    FCOS's anchors have the size of the stride. They are 0 for an anchor without height or width.
    """
    y, x, height, width = _centred(anchors)
    distances = [
        x - boxes[..., 1],
        y - boxes[..., 0],
        boxes[..., 3] - x,
        boxes[..., 2] - y,
    ]
    sizes = [width, height, width, height]
    return jnp.stack([_ratio(*pair) for pair in zip(distances, sizes, strict=True)], axis=-1)


def decode_sides(codes: jax.Array, anchors: jax.Array) -> jax.Array:
    """The boxes [..., 4] of codes (l, t, r, b) and anchors, which broadcast."""
    y, x, height, width = _centred(anchors)
    left, top, right, bottom = (codes[..., n] for n in range(4))
    return jnp.stack(
        [y - top * height, x - left * width, y + bottom * height, x + right * width], axis=-1
    )


def _centred(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """[..., 4] -> y and x of the centre, height, width, [...] each."""
    height, width = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * height, boxes[..., 1] + 0.5 * width, height, width


def _joined(some: jax.Array, others: jax.Array, first: Corners, last: Corners) -> jax.Array:
    """Corners of boxes [..., 4] and others, joined by a function each."""
    corners = [first(some[..., :2], others[..., :2]), last(some[..., 2:], others[..., 2:])]
    return jnp.concatenate(corners, axis=-1)


def _common(some: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Areas of intersection and union, [...] each."""
    common = area(_joined(some, others, jnp.maximum, jnp.minimum))
    return common, area(some) + area(others) - common


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole, 0 where the whole is not positive."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)
