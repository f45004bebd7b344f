"""Resizing of feature maps by linear interpolation."""

from collections.abc import Sequence

import jax


def resize(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resize [N, *spatial, C] linearly to [N, *size, C], in the same dtype.

    Pixels are areas: the corners of image and result agree, not the centres of their first pixels
    (PyTorch's `align_corners=False`). A smaller result takes the pixels around its own centres; it
    is not smoothed.

    Raises:
      ValueError: `size` does not have one number for each spatial axis.
    """
    if len(size) != x.ndim - 2:
        raise ValueError(
            f"resize: size {tuple(size)} has {len(size)} numbers; the input has {x.ndim - 2} "
            "spatial axes"
        )
    shape = (x.shape[0], *size, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=False)
