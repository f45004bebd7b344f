"""Equivalent forms of the convolution for the CPU, where XLA's own is slow.

Each computes the result of `convolve` with ordinary operations:

    1x1, any stride     a strided slice and a matrix product
    depthwise           the sum of F * F shifted images, each times its weights
    other groups        groups joined until a block sees 32 channels; each block is a dense
                        convolution with zeros off its diagonal
    narrow maps         (output narrower than the window) every window as a row of a matrix
                        (im2col), and a matrix product; XLA takes 10 to 20 times as long for 3x3
                        windows on 2x2 maps

All other dense convolutions use XLA's. `tests/benchmarks/convolution.py` measures every form
against XLA's and PyTorch's.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], ...]
Geometry = tuple[
    tuple[int, ...], Pads, tuple[int, ...]
]  # strides, (before, after) pads and dilations of the spatial axes

# Joined groups see at least this many channels. 16 and 64 were slower on the first three widths of
# ResNeXt-50.
BLOCK = 32
# Depthwise windows wider than 3 use band matrices if the output is at most this many windows wide:
# in a wider matrix the band is too small a part.
BAND = 4


def choose(
    shape: Sequence[int], kernel_shape: Sequence[int], geometry: Geometry, groups: int
) -> Callable[..., jax.Array] | None:
    """The fastest form for images [N, *spatial, C] and a kernel [*window, C // groups, K].

    Returns None if XLA's own is best.
    """
    strides, pads, dilations = geometry
    window = kernel_shape[:-2]
    if groups > 1 and groups == shape[-1]:
        return depthwise
    if groups > 1:
        return functools.partial(blocks, groups=groups)
    if math.prod(window) == 1:
        return pointwise
    padded = [size + low + high for size, (low, high) in zip(shape[1:-1], pads, strict=True)]
    narrow = any(
        size < f
        for size, f in zip(_output(padded, window, strides, dilations), window, strict=True)
    )
    return patches if narrow else None


def plain(x: jax.Array, kernel: jax.Array, geometry: Geometry, groups: int = 1) -> jax.Array:
    """XLA's convolution: [N, *spatial, C] and [*window, C // groups, K] -> [N, *output, K]."""
    spatial = "DHW"[-(x.ndim - 2) :]
    strides, pads, dilations = geometry
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        rhs_dilation=dilations,
        dimension_numbers=numbers,
        feature_group_count=groups,
    )


def pointwise(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A 1x1 convolution: every stride-th pixel, and a matrix product; see `plain`."""
    strides, pads, _ = geometry
    x = lax.pad(
        x, jnp.zeros((), x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    )
    x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1))
    return lax.dot_general(x, kernel.reshape(kernel.shape[-2:]), (((x.ndim - 1,), (0,)), ((), ())))


def patches(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A dense convolution: rows [prod(window) * C], and a matrix product; see `plain`."""
    rows = jnp.concatenate(views(x, jnp.zeros((), x.dtype), kernel.shape[:-2], geometry), axis=-1)
    return lax.dot_general(
        rows, kernel.reshape(-1, kernel.shape[-1]), (((x.ndim - 1,), (0,)), ((), ()))
    )


def blocks(x: jax.Array, kernel: jax.Array, geometry: Geometry, groups: int) -> jax.Array:
    """A grouped convolution as dense convolutions of joined groups; see `plain`."""
    seen, filters = kernel.shape[-2], kernel.shape[-1] // groups
    joined = next(
        n for n in range(1, groups + 1) if groups % n == 0 and (n * seen >= BLOCK or n == groups)
    )
    # Zero where a filter would see another group. Each block's kernel is built separately: slicing
    # it from one array of all blocks made its gradient crash jaxlib 0.10.2 (images (4, 3, 3, 24) in
    # two groups, 24 filters).
    own = np.kron(np.eye(joined), np.ones((seen, filters))).astype(kernel.dtype)
    own = own.reshape((1,) * (kernel.ndim - 2) + own.shape)
    form = choose((*x.shape[:-1], joined * seen), kernel.shape, geometry, 1) or plain
    parts = zip(
        jnp.split(x, groups // joined, axis=-1),
        jnp.split(kernel, groups // joined, axis=-1),
        strict=True,
    )
    return jnp.concatenate(
        [form(part, jnp.concatenate([k] * joined, axis=-2) * own, geometry) for part, k in parts],
        axis=-1,
    )


def depthwise(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A separate convolution of each channel, kernel [*window, 1, K]; see `plain`."""
    filters = kernel.shape[-1]
    # The filters of a channel are adjacent in the kernel.
    x = x if filters == x.shape[-1] else jnp.repeat(x, filters // x.shape[-1], axis=-1)
    return _shifted(x, kernel.reshape(*kernel.shape[:-2], filters), geometry)


def views(
    x: jax.Array, filler: jax.Array, window: Sequence[int], geometry: Geometry
) -> list[jax.Array]:
    """The padded image as seen from each position inside the window: [N, *output, C] each."""
    strides, pads, dilations = geometry
    x = lax.pad(x, filler, [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])
    sizes = _output(x.shape[1:-1], window, strides, dilations)
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


def _output(
    padded: Sequence[int], window: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    return [
        (size - (f - 1) * d - 1) // s + 1
        for size, f, s, d in zip(padded, window, strides, dilations, strict=True)
    ]


def _wide(x: jax.Array) -> jax.Array:
    """Cast to at least float32, for sums."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


# Jitted separately: networks repeat their blocks, and each shape is then traced only once
# (ConvNeXt-T's step: 1.9 s instead of 4.5).
@functools.partial(jax.jit, static_argnums=(2,))
@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _shifted(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The sum of shifted images [N, *spatial, C] times their weights of the kernel [*window, C].

    Reverse mode transposes the derivative, so its form decides how fast the gradient is: with
    `_scattered` the gradient of the image is again a sum of shifted images, and with `_banded` that
    of the weights is a matrix product.
    """
    window = kernel.shape[:-1]
    weights = _wide(kernel).reshape(-1, *(1,) * (x.ndim - 1), x.shape[-1])
    shifted = views(x, jnp.zeros((), x.dtype), window, geometry)
    return functools.reduce(
        jnp.add, (_wide(view) * w for view, w in zip(shifted, weights, strict=True))
    ).astype(x.dtype)


# A jitted function has `__wrapped__`, which jax's types leave out.
@_shifted.__wrapped__.defjvp  # pyright: ignore[reportAttributeAccessIssue]
def _shifted_jvp(
    geometry: Geometry, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    strides, pads, dilations = geometry
    window, (low, high) = kernel.shape[:-1], pads[-1]
    (width,) = _output((x.shape[-2] + low + high,), window[-1:], strides[-1:], dilations[-1:])
    of_image = _scattered if all(s == 1 for s in strides) else _shifted
    of_weights = _banded if window[-1] > 3 and width <= BAND * window[-1] else _shifted
    return _shifted(x, kernel, geometry), of_image(x_tangent, kernel, geometry) + of_weights(
        x, kernel_tangent, geometry
    )


def _scattered(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`_shifted` at stride 1, with each pixel scattered to all windows that see it."""
    _, pads, dilations = geometry
    window = kernel.shape[:-1]
    spans = [(f - 1) * d for f, d in zip(window, dilations, strict=True)]
    wide, zero = _wide(x), jnp.zeros((), _wide(x).dtype)
    weights = _wide(kernel).reshape(-1, *(1,) * (x.ndim - 1), x.shape[-1])
    starts = itertools.product(
        *(range(span, -1, -d) for span, d in zip(spans, dilations, strict=True))
    )
    frames = (
        lax.pad(
            wide * w,
            zero,
            [
                (0, 0, 0),
                *((b, span - b, 0) for b, span in zip(start, spans, strict=True)),
                (0, 0, 0),
            ],
        )
        for start, w in zip(starts, weights, strict=True)
    )
    crop = [(low - span, high - span, 0) for span, (low, high) in zip(spans, pads, strict=True)]
    return lax.pad(functools.reduce(jnp.add, frames), zero, [(0, 0, 0), *crop, (0, 0, 0)]).astype(
        x.dtype
    )


def _banded(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`_shifted` as matrix products of the image's rows and band matrices.

    Each row of the window gives a band matrix [channel, padded width, output width].
    """
    strides, pads, dilations = geometry
    window = kernel.shape[:-1]
    x = lax.pad(
        jnp.moveaxis(x, -1, 0),
        jnp.zeros((), x.dtype),
        [(0, 0, 0), (0, 0, 0), *((low, high, 0) for low, high in pads)],
    )
    channels, images, *padded = x.shape
    *rows, width = _output(padded, window, strides, dilations)
    place = jnp.arange(padded[-1]).reshape(1, -1, 1)
    seen = (
        jnp.arange(window[-1]).reshape(-1, 1, 1) * dilations[-1]
        + jnp.arange(width).reshape(1, 1, -1) * strides[-1]
    )
    bands = jnp.einsum(
        "rjc,jqw->rcqw",
        kernel.reshape(-1, window[-1], channels),
        (place == seen).astype(kernel.dtype),
    )
    total = jnp.zeros((), _wide(x).dtype)
    starts = itertools.product(
        *(range(0, f * d, d) for f, d in zip(window[:-1], dilations[:-1], strict=True))
    )
    for start, band in zip(starts, bands, strict=True):
        ends = (b + (n - 1) * s + 1 for b, n, s in zip(start, rows, strides[:-1], strict=True))
        view = lax.slice(
            x, (0, 0, *start, 0), (channels, images, *ends, padded[-1]), (1, 1, *strides[:-1], 1)
        )
        view = view.reshape(channels, -1, padded[-1])
        total = total + lax.dot_general(
            view, band, (((2,), (1,)), ((0,), (0,))), preferred_element_type=total.dtype
        )
    return jnp.moveaxis(total.reshape(channels, images, *rows, width), 0, -1).astype(x.dtype)
