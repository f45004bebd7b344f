"""Which box of the truth each anchor is to find, and samples of anchors for the loss.

    rule            an anchor's truth                                               of
    match           the one it overlaps most, from `high` on; below `low` it is     R-CNN, RPN,
                    background, between the two it is ignored; and a truth's best   RetinaNet
                    anchors are its own
    match_best      the one it overlaps most, from a threshold on; and every        SSD
                    truth has its best anchor
    match_points    the smallest that its centre lies in, near the middle, if the   FCOS
                    sides are as far away as fits the level

    sample          at random, a share of them positive                             R-CNN, RPN
    hard_negatives  those with the largest loss, three for each positive            SSD

Ren et al. 2015, arXiv:1506.01497, section 3.1.2; Lin et al. 2017, arXiv:1708.02002, section 4.1;
Liu et al. 2016, arXiv:1512.02325, section 2.2; Tian et al. 2019, arXiv:1904.01355, section 3. All
as torchvision has them, with truths padded to a fixed number. Without a truth all is background.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# In place of the index of a truth.
BACKGROUND, IGNORED = -1, -2


def match(
    overlaps: jax.Array, valid: jax.Array, low: float, high: float, best_too: bool = False
) -> jax.Array:
    """The truth of each anchor: [A] int32, an index, `BACKGROUND` or `IGNORED`.

    Of truths that an anchor overlaps equally it has the first. Unlike in torchvision, a truth that
    no anchor overlaps makes no anchor positive.

    Args:
      overlaps: IoU of truths and anchors, [M, A].
      valid: [M] bool, which truths there are.
      low, high: from `high` on an anchor is positive, below `low` it is background.
      best_too: whether the anchors that a truth overlaps most are positive too, whatever the
        overlap; each has the truth that it overlaps most itself.

    Raises:
      ValueError: `low` is above `high`.
    """
    if low > high:
        raise ValueError(f"match: low is {low} and high {high}; low must be at most high")
    overlaps = _of_valid(overlaps, valid)
    value, truth = _first_best(overlaps)
    result = jnp.where(value >= high, truth, jnp.where(value < low, BACKGROUND, IGNORED))
    if best_too and overlaps.shape[0]:
        highest = jnp.max(overlaps, axis=1, keepdims=True)
        best = jnp.any((overlaps == highest) & (highest > 0), axis=0)
        result = jnp.where(best, truth, result)
    return result


def match_best(overlaps: jax.Array, valid: jax.Array, threshold: float) -> jax.Array:
    """The truth of each anchor: [A] int32, an index or `BACKGROUND`.

    Where two truths have the same best anchor, the last has it.

    Args:
      overlaps: IoU of truths and anchors, [M, A].
      valid: [M] bool, which truths there are.
      threshold: from here on an anchor is positive.
    """
    result = match(overlaps, valid, threshold, threshold)
    if not overlaps.size:
        return result
    truths = jnp.arange(overlaps.shape[0], dtype=jnp.int32)
    best = jnp.argmax(_of_valid(overlaps, valid), axis=1)
    owner = jnp.full(overlaps.shape[1], BACKGROUND, jnp.int32)
    owner = owner.at[best].max(jnp.where(valid, truths, BACKGROUND))
    return jnp.where(owner >= 0, owner, result)


def match_points(
    anchors: Sequence[np.ndarray | jax.Array],
    truths: jax.Array,
    valid: jax.Array,
    radius: float = 1.5,
) -> jax.Array:
    """The truth of each anchor of all levels, by its centre: [A] int32, an index or `BACKGROUND`.

    The centre lies inside the truth and, along both axes, less than `radius` strides from its
    middle; the farthest side is more than 4 and less than 8 strides away, on the finest level also
    less, on the coarsest also more. Of several truths it has the smallest; areas that differ by a
    few pixels count as equal, as in torchvision.

    Args:
      anchors: of each level, from the finest on, squares of the stride: [A_l, 4] each.
      truths: [M, 4].
      valid: [M] bool, which truths there are.
    """
    strides = [jnp.asarray(level[:, 2] - level[:, 0]) for level in anchors]
    lower = [4 * stride for stride in strides]
    upper = [8 * stride for stride in strides]
    lower[0], upper[-1] = jnp.zeros_like(lower[0]), jnp.full_like(upper[-1], jnp.inf)
    stride, lower, upper = (jnp.concatenate(x)[:, None] for x in (strides, lower, upper))
    boxes = jnp.concatenate([jnp.asarray(level) for level in anchors])
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
    truths = truths[None]
    middle = (truths[..., :2] + truths[..., 2:]) / 2
    near = jnp.max(jnp.abs(centre - middle), axis=-1) < radius * stride
    sides = jnp.concatenate([centre - truths[..., :2], truths[..., 2:] - centre], axis=-1)
    farthest = jnp.max(sides, axis=-1)
    fits = near & (jnp.min(sides, axis=-1) > 0) & (farthest > lower) & (farthest < upper)
    area = (truths[..., 2] - truths[..., 0]) * (truths[..., 3] - truths[..., 1])
    score, truth = _first_best(jnp.where(fits & valid[None], 1e8 - area, 0).T)
    return jnp.where(score > 0, truth, BACKGROUND)


def sample(
    key: jax.Array, positive: jax.Array, negative: jax.Array, count: int, share: float
) -> tuple[jax.Array, jax.Array]:
    """A random sample of `count` entries: their indices, and which of them count, [count] each.

    At most `share * count` of them are positive; negative ones fill the rest. Positives stand
    first; the indices that do not count stand last. Ren et al. 2015, section 3.1.3.

    Args:
      key: a key of its own for this use and this image. Each entry draws a number, and those with
        the largest are taken: entries added at the end do not change the sample.
      positive, negative: [A] bool; an entry that is neither is ignored.
    """
    size = positive.shape[0]
    priority = jax.random.uniform(key, (size,))
    most = min(int(count * share), size)

    def drawn(among: jax.Array, most: int) -> jax.Array:
        order = lax.top_k(jnp.where(among, priority, -1), min(most, size))[1]
        return jnp.pad(order, (0, count - len(order)))

    positives = jnp.minimum(jnp.sum(positive, dtype=jnp.int32), most)
    negatives = jnp.minimum(jnp.sum(negative, dtype=jnp.int32), count - positives)
    place = jnp.arange(count, dtype=jnp.int32)
    fill = jnp.take(drawn(negative, count), place - positives, mode="clip")
    index = jnp.where(place < positives, drawn(positive, most), fill)
    return index, place < positives + negatives


def hard_negatives(
    losses: jax.Array, positive: jax.Array, ratio: float = 3, valid: jax.Array | None = None
) -> jax.Array:
    """The negatives with the largest losses, `ratio` for each positive: [A] bool.

    Args:
      losses: of the classes of all anchors, [A].
      positive: [A] bool.
      valid: [A] bool, which anchors count; all by default.
    """
    negative = ~positive if valid is None else valid & ~positive
    order = jnp.argsort(jnp.where(negative, -losses, jnp.inf), stable=True)
    wanted = ratio * jnp.sum(positive).astype(jnp.float32)
    taken = jnp.arange(len(order), dtype=jnp.float32) < wanted
    return jnp.zeros(positive.shape, bool).at[order].set(taken, unique_indices=True) & negative


def _of_valid(overlaps: jax.Array, valid: jax.Array) -> jax.Array:
    """Overlaps [M, A] with -1 for truths that there are not.

    They are computed once: XLA may otherwise compute them anew, rounded differently, and the
    largest would equal none.
    """
    return lax.optimization_barrier(jnp.where(valid[:, None], overlaps, -1))


def _first_best(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest of values [M, A] for each of A, and its index, the first; -1 and 0 for M = 0."""
    if not values.shape[0]:
        return jnp.full(values.shape[1], -1.0), jnp.zeros(values.shape[1], jnp.int32)
    return jnp.max(values, axis=0), jnp.argmax(values, axis=0).astype(jnp.int32)
