"""At which strides a network has feature maps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.errors import short
from jaxconv.models.requested import EVERY, LOGITS

# Sides in pixels of the image that maps are looked for in; every stride of a network divides it.
_SIDE = 256


@functools.lru_cache(maxsize=64)
def maps_by_stride(backbone: Any, axes: int = 2) -> dict[int, str]:
    """The name of the last feature map at each stride in pixels, from the smallest stride on.

    Args:
      backbone: one of jaxconv's networks, or a module that takes `features` as they do.
      axes: spatial axes of its input.

    Raises:
      ValueError: it has no maps whose size divides that of the image, as without padding.
    """
    image = jax.ShapeDtypeStruct((1, *(_SIDE,) * axes, 3), jnp.float32)
    maps = {}

    def run(key: jax.Array, image: jax.Array) -> None:
        # Kept here, since a dictionary that is returned comes back sorted by name.
        maps.update(backbone.init_with_output(key, image, train=False, features=EVERY)[0])

    jax.eval_shape(run, jax.random.key(0), image)
    levels = {
        _SIDE // x.shape[1]: name
        for name, x in maps.items()
        if name != LOGITS and x.ndim == axes + 2 and x.shape[1] > 1 and _SIDE % x.shape[1] == 0
    }
    if not levels:
        sizes = ", ".join(f"{name} {x.shape[1:]}" for name, x in maps.items())
        raise ValueError(
            f"{type(backbone).__name__} has no feature map whose size divides that of an image of "
            f"{_SIDE} pixels: {short(sizes, 300)}"
        )
    return dict(sorted(levels.items()))
