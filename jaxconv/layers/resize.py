"""Resizing of feature maps: by linear interpolation, and by repeating."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def resize(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resize [N, *spatial, C] linearly to [N, *size, C], in the same dtype.

    Pixels are areas: the corners of image and result agree, not the centres of their first pixels
    (PyTorch's `align_corners=False`). A smaller result takes the pixels around its own centres; it
    is not smoothed.

    Raises:
      ValueError: `size` does not have one number for each spatial axis.
    """
    _check(x, size, "resize")
    shape = (x.shape[0], *size, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=False)


def repeat(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resize [N, *spatial, C] to [N, *size, C]: each value is that of the pixel that it lies in.

    The pixel is the last one that starts at or before it, as in PyTorch's `nearest`.

    Raises:
      ValueError: `size` does not have one number for each spatial axis.
    """
    _check(x, size, "repeat")
    for axis, new in enumerate(size, 1):
        old = x.shape[axis]
        if new % old == 0:
            x = jnp.repeat(x, new // old, axis)
        else:
            x = jnp.take(x, jnp.arange(new) * old // new, axis)
    return x


def _check(x: jax.Array, size: Sequence[int], what: str) -> None:
    if len(size) != x.ndim - 2:
        raise ValueError(
            f"{what}: size {tuple(size)} has {len(size)} numbers; the input has {x.ndim - 2} "
            "spatial axes"
        )
