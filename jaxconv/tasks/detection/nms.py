"""Non-maximum suppression: of boxes that overlap, the one with the best score stays.

A box stays unless one with a better score that stays overlaps it by more than the threshold; of
equal scores the earlier box is the better. This is the greedy rule of R-CNN (Girshick et al. 2014,
arXiv:1311.2524, section 2.2), and exactly what torchvision's operator keeps.

    tiles      64 boxes at a time, from the best score on
    earlier    a tile against the boxes that stay so far, which stand side by side, 256 at a time
    within     a tile against itself: its boxes stay until nothing changes, which is the greedy
               result after as many rounds as the longest chain of boxes that suppress one another

Work grows with the boxes that count times those that stay, not with padding: the loops end with the
last valid box, or once `limit` boxes stay. The memory is that of one tile. Under `jax.vmap` all
images take as many turns as the slowest.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The fastest of several sizes on a CPU, for few and for many boxes that stay.
TILE, EARLIER = 64, 256


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float,
    valid: jax.Array | None = None,
    limit: int = 0,
) -> jax.Array:
    """Which of the boxes [N, 4] with scores [N] stay: [N] bool, in the order of the boxes.

    Args:
      threshold: of the IoU; boxes that overlap by more are suppressed, those without area never.
      valid: [N] bool, which boxes count; all by default. A score that is NaN does not count.
      limit: at most so many stay, those with the best scores; 0 for no limit.

    >>> boxes = jnp.array([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30]])
    >>> nms(boxes, jnp.array([0.8, 0.9, 0.3]), threshold=0.5).tolist()
    [False, True, True]
    """
    return batched_nms(boxes, scores, jnp.zeros(scores.shape, jnp.int32), threshold, valid, limit)


def batched_nms(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array,
    threshold: float,
    valid: jax.Array | None = None,
    limit: int = 0,
) -> jax.Array:
    """`nms` of each class on its own: boxes of other classes do not suppress one another.

    Classes are compared, not moved apart as in torchvision's `batched_nms`, whose offsets cost
    precision.

    Args:
      classes: [N] integers; levels of a pyramid, for proposals.
      boxes, scores, threshold, valid: as for `nms`.
      limit: of all classes together.
    """
    count = scores.shape[0]
    if not count:
        return jnp.zeros(0, bool)
    sound = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)
    order = jnp.argsort(jnp.where(sound, -scores, jnp.inf), stable=True)
    tile = min(TILE, count)
    rows = jnp.concatenate([boxes.astype(jnp.float32), _area(boxes.T)[:, None]], axis=1)[order]
    rest = -count % tile
    rows, kinds, alive = (
        jnp.pad(x, ((0, rest), *((0, 0),) * (x.ndim - 1)))
        for x in (rows, classes.astype(jnp.int32)[order], sound[order])
    )
    stays = _greedy(rows.T, kinds, alive, _below(threshold), tile, limit or count)[:count]
    stays &= jnp.cumsum(stays) <= (limit or count)
    return jnp.zeros(count, bool).at[order].set(stays, unique_indices=True)


def best(scores: jax.Array, keep: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` kept entries with the best scores, from the best on.

    Args:
      scores: [N].
      keep: [N] bool, such as the result of `nms`.

    Returns:
      Indices [count], int32, and which of them are of kept entries, [count] bool. Of equal scores
      the earlier entry comes first. Where N is less than `count`, the last ones are 0 and False. A
      score of minus infinity counts as dropped.
    """
    few = min(count, scores.shape[0])
    found, order = lax.top_k(jnp.where(keep, scores, -jnp.inf), few)
    rest = (0, count - few)
    return jnp.pad(order, rest), jnp.pad(found > -jnp.inf, rest)


def _greedy(
    rows: jax.Array, classes: jax.Array, sound: jax.Array, threshold: Any, tile: int, limit: int
) -> jax.Array:
    """Which boxes stay: [N] bool.

    Args:
      rows: top, left, bottom, right, area of boxes by falling score: [5, N], N a multiple of
        `tile`.
      classes, sound: [N] each; which class, and whether the box counts.
      limit: ends the search.
    """

    def part(array: jax.Array, number: jax.Array, size: int = tile) -> jax.Array:
        return lax.dynamic_slice_in_dim(array, number * size, size, axis=-1)

    count = rows.shape[1]
    end = jnp.max(jnp.where(sound, jnp.arange(1, count + 1), 0))

    def unfinished(state: tuple) -> jax.Array:
        number, found, *_ = state
        return (number * tile < end) & (found < limit)

    def one_tile(state: tuple) -> tuple:
        number, found, kept, kept_classes, stays = state
        own, kinds = part(rows, number), part(classes, number)
        places = jnp.arange(tile, dtype=jnp.int32)

        def against(turn: jax.Array, alive: jax.Array) -> jax.Array:
            some, their_classes = part(kept, turn, EARLIER), part(kept_classes, turn, EARLIER)
            stay = turn * EARLIER + jnp.arange(EARLIER, dtype=jnp.int32) < found
            beaten = _beaten(some, their_classes, own, kinds, threshold) & stay.reshape(-1, 1)
            return alive & ~jnp.any(beaten, axis=0)

        turns = (found + EARLIER - 1) // EARLIER
        alive = lax.fori_loop(0, turns, against, part(sound, number))
        beaten = _beaten(own, kinds, own, kinds, threshold)
        beaten &= places.reshape(-1, 1) < places.reshape(1, -1)
        alive = _settled(beaten, alive)
        # Those that stay, side by side, after those of before; the rest is overwritten.
        order = lax.sort((~alive, places), num_keys=1, is_stable=True)[1]
        kept = lax.dynamic_update_slice_in_dim(kept, own[:, order], found, axis=1)
        kept_classes = lax.dynamic_update_slice_in_dim(kept_classes, kinds[order], found, axis=0)
        stays = lax.dynamic_update_slice_in_dim(stays, alive, number * tile, axis=0)
        return number + 1, found + jnp.sum(alive, dtype=jnp.int32), kept, kept_classes, stays

    room = count + tile + EARLIER  # no slice may reach beyond the end
    start = (
        jnp.int32(0),
        jnp.int32(0),
        jnp.zeros((5, room), jnp.float32),
        jnp.zeros(room, jnp.int32),
        jnp.zeros(count, bool),
    )
    return lax.while_loop(unfinished, one_tile, start)[-1]


def _settled(beaten: jax.Array, alive: jax.Array) -> jax.Array:
    """Which boxes stay of those alive, if [i, j] says whether i, the better, suppresses j."""

    def changes(state: tuple) -> jax.Array:
        return jnp.any(state[0] != state[1])

    def once(state: tuple) -> tuple:
        now = state[1]
        return now, alive & ~jnp.any(beaten & now.reshape(-1, 1), axis=0)

    return lax.while_loop(changes, once, once((alive, alive)))[1]


def _beaten(
    some: jax.Array, classes: jax.Array, others: jax.Array, kinds: jax.Array, threshold: Any
) -> jax.Array:
    """Whether some boxes [5, A] overlap others [5, B] of their class by more: [A, B]."""
    top, left, bottom, right, area = (x.reshape(-1, 1) for x in some)
    tops, lefts, bottoms, rights, areas = (x.reshape(1, -1) for x in others)
    height = jnp.maximum(jnp.minimum(bottom, bottoms) - jnp.maximum(top, tops), 0)
    width = jnp.maximum(jnp.minimum(right, rights) - jnp.maximum(left, lefts), 0)
    common = height * width
    # As torchvision divides, so that ties at the threshold are its; 0 / 0 is not above it.
    above = common / (area + areas - common) > threshold
    return above & (classes.reshape(-1, 1) == kinds.reshape(1, -1))


def _area(boxes: jax.Array) -> jax.Array:
    top, left, bottom, right = boxes.astype(jnp.float32)
    return (bottom - top) * (right - left)


def _below(threshold: float) -> np.float32:
    """The largest float32 that is at most the threshold: an IoU is above both or neither."""
    near = np.float32(threshold)
    return np.nextafter(near, np.float32(-1)) if float(near) > threshold else near
