"""Windows that slide over an image: what the forms of the convolution and pooling share."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], ...]
Geometry = tuple[
    tuple[int, ...], Pads, tuple[int, ...]
]  # strides, (before, after) pads and dilations of the spatial axes


def axes_of(spatial: int) -> tuple[str, str, str]:
    """How the axes of image, kernel and output are laid out, as XLA takes it."""
    names = "DHW"[-spatial:]
    return f"N{names}C", f"{names}IO", f"N{names}C"


def plain(x: jax.Array, kernel: jax.Array, geometry: Geometry, groups: int = 1) -> jax.Array:
    """XLA's convolution: [N, *spatial, C] and [*window, C // groups, K] -> [N, *output, K]."""
    strides, pads, dilations = geometry
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        rhs_dilation=dilations,
        dimension_numbers=axes_of(x.ndim - 2),
        feature_group_count=groups,
    )


def views(
    x: jax.Array, filler: jax.Array, window: Sequence[int], geometry: Geometry
) -> list[jax.Array]:
    """The padded image as seen from each position inside the window: [N, *output, C] each."""
    strides, pads, dilations = geometry
    x = lax.pad(x, filler, [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])
    sizes = output(x.shape[1:-1], window, strides, dilations)
    return [
        lax.slice(
            x,
            (0, *start, 0),
            (
                x.shape[0],
                *(b + (n - 1) * s + 1 for b, n, s in zip(start, sizes, strides, strict=True)),
                x.shape[-1],
            ),
            (1, *strides, 1),
        )
        for start in itertools.product(
            *(range(0, f * d, d) for f, d in zip(window, dilations, strict=True))
        )
    ]


def output(
    padded: Sequence[int], window: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """The output's size along each axis of a padded image."""
    return [
        (size - (f - 1) * d - 1) // s + 1
        for size, f, s, d in zip(padded, window, strides, dilations, strict=True)
    ]


def wide(x: jax.Array) -> jax.Array:
    """Cast to at least float32, for sums."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
