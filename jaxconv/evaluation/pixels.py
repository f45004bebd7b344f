"""Views of networks that give logits for each pixel, averaged in place.

    flipped     the image and its mirror image
    at_scales   the image resized by several factors, each with its mirror image (Chen et al. 2017,
                arXiv:1706.05587, section 4.1, which has these six)
    in_windows  windows of the size that the network was trained on, each overlapping the next, for
                larger images

Each takes and returns a function (variables, images [N, *spatial, C]) -> logits [N, *spatial, K].
The logits returned are the logarithms of the mean probabilities.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.evaluation.sliding import Apply
from jaxconv.layers import resize

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# The least share of a window that the next one covers too.
OVERLAP = 1 / 3


def mean_logits(each: Sequence[jax.Array]) -> jax.Array:
    """The logarithms [..., K] of the mean probabilities of several logits [..., K]."""
    total = functools.reduce(jnp.logaddexp, map(jax.nn.log_softmax, each))
    return total - math.log(len(each))


def flipped(apply: Apply) -> Apply:
    """The mean over an image and its mirror image, see the module."""

    def mirror(x: jax.Array) -> jax.Array:
        return jnp.flip(x, axis=-2)

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        return mean_logits([apply(variables, images), mirror(apply(variables, mirror(images)))])

    return logits


def at_scales(apply: Apply, factors: Sequence[float] = FACTORS) -> Apply:
    """The mean over the image resized by each factor, and its mirror image, see the module.

    The logits of a scale are resized to the image. Smaller images are smoothed first.
    """
    both = flipped(apply)

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        batch, *size, channels = images.shape
        each = []
        for factor in factors:
            scaled = (batch, *(max(1, round(side * factor)) for side in size), channels)
            found = both(variables, jax.image.resize(images, scaled, "linear"))
            each.append(resize(found, size))
        return mean_logits(each)

    return logits


def starts(side: int, window: int) -> list[int]:
    """Where windows begin along a side: evenly spaced, from 0 to `side - window`."""
    count = 1 + max(0, math.ceil((side - window) / max(1, math.floor(window * (1 - OVERLAP)))))
    return np.linspace(0, max(0, side - window), count).round().astype(int).tolist()


def in_windows(apply: Apply, window: Sequence[int]) -> Apply:
    """The mean over windows, see the module.

    Args:
      apply: as in the module.
      window: size of a window in pixels; along a shorter side of an image, it is that side.
    """

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        size = images.shape[1:-1]
        own = tuple(map(min, window, size))
        places = itertools.product(*map(starts, size, own))
        parts = [
            (
                slice(None),
                *(slice(first, first + side) for first, side in zip(place, own, strict=True)),
            )
            for place in places
        ]
        # Windows of an image stay adjacent, so that each device keeps those of its own images.
        cut = jnp.stack([images[part] for part in parts], axis=1)
        found = jax.nn.softmax(apply(variables, cut.reshape(-1, *cut.shape[2:])))
        each = found.reshape(*cut.shape[:2], *found.shape[1:])
        total = jnp.zeros((len(images), *size, found.shape[-1]))
        times = np.zeros((1, *size, 1), np.float32)
        for n, part in enumerate(parts):
            total = total.at[part].add(each[:, n])
            times[part] += 1
        return jnp.log(jnp.maximum(total / times, jnp.finfo(jnp.float32).tiny))

    return logits
