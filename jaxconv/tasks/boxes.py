"""Boxes (top, left, bottom, right) in pixels, as arrays [..., 4]: areas and overlaps."""

import jax
import jax.numpy as jnp


def area(boxes: jax.Array) -> jax.Array:
    """[..., 4] -> [...]; 0 for boxes without height or width."""
    return jnp.maximum(boxes[..., 2] - boxes[..., 0], 0) * jnp.maximum(
        boxes[..., 3] - boxes[..., 1], 0
    )


def iou(some: jax.Array, others: jax.Array) -> jax.Array:
    """Intersection over union of boxes [..., 4] with others, which broadcast: [...].

    It is 0 where both have no area.
    """
    both = jnp.concatenate(
        [
            jnp.maximum(some[..., :2], others[..., :2]),
            jnp.minimum(some[..., 2:], others[..., 2:]),
        ],
        axis=-1,
    )
    common = area(both)
    union = area(some) + area(others) - common
    return jnp.where(union > 0, common / jnp.where(union > 0, union, 1), 0)
