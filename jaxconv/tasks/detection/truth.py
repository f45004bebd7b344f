"""The truth of a batch as detectors take it: which rows are objects, crowds, and learned."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.tasks.detection.boxes import at_least

# Objects of which a crop or a shift leaves less than this, in pixels, are no objects any more.
SMALLEST = 1.0
# What a head of an R-CNN is for: the name of its setting, the target, and its figures' keys.
HEADS = ("masks", "keypoints")


def present(batch: Mapping[str, Any]) -> jax.Array:
    """[B, M] which rows of the truth are objects, of which the image still shows something."""
    return batch["valid"] & at_least(batch["boxes"], SMALLEST)


def crowds(batch: Mapping[str, Any]) -> jax.Array:
    """[B, M] which of them are crowds."""
    return batch["crowd"] if "crowd" in batch else jnp.zeros_like(batch["valid"])


def learned(batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The truth that is learned: `boxes`, `classes`, `valid`, without crowds; masks and keypoints
    as they are.
    """
    valid = present(batch) & ~crowds(batch)
    names = ("boxes", "classes", *(head for head in HEADS if head in batch))
    return {"valid": valid, **{name: batch[name] for name in names}}


def seen_keypoints(keypoints: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Keypoints [..., 3], those outside of an image of a size (height, width) not labelled."""
    y, x = keypoints[..., 0], keypoints[..., 1]
    inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
    return keypoints.at[..., 2].multiply(inside)
