"""Equivalent forms of the convolution for the CPU, where XLA's own is slow.

Each computes the result of `convolve` with ordinary operations:

    1x1, any stride     a strided slice and a matrix product
    depthwise           the sum of F * F shifted images, each times its weights
    other groups        groups joined until a block sees 32 channels; each block is a dense
                        convolution with zeros off its diagonal
    narrow maps         (output narrower than the window) every window as a row of a matrix
                        (im2col), and a matrix product; XLA takes 10 to 20 times as long for 3x3
                        windows on 2x2 maps
    few copies          the same for 3x3 at stride 2, 2x2 at stride 2, 4x4 at stride 4, and 3x3 of
                        three colours: with ResNet-50's strided 3x3 XLA takes 1.1 to 2.4 times as
                        long
    far taps            (dilated so far that much of the window lies in the padding, as in DeepLab's
                        pyramid) a matrix product for each position, of the pixels that it sees
    3x3 at stride 1     Winograd's minimal filtering, see layers/winograd.py
    wide padding        (more than keeps the size) the excess is padded first; XLA takes 10 to 25
                        times as long for the gradient
    thin 3-D            the sum over a window's depth of 2-D convolutions of slices; with 8 or 16
                        filters XLA takes 5 to 20 times as long, with 24 and more it is as fast

All other dense convolutions use XLA's. Of 3x3 windows that are dilated less, Winograd's form of the
interleaved grids took 0.9 to 1.4 times XLA's time, and of strided ones, as four parts at stride 1,
1.1 to 1.8 times: they are not used. `tests/benchmarks/convolution.py` measures every form
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

from jaxconv.layers import winograd
from jaxconv.layers.windows import Geometry, output, plain, views, wide

# Joined groups see at least this many channels. 16 and 64 were slower on the first three widths of
# ResNeXt-50.
BLOCK = 32
# `patches` holds each pixel at most this many times, as of 3x3 at stride 2; with fewer channels
# than `SEEN` its rows are too short for that. It holds each pixel of an image of at most `COLOURS`
# channels at stride 1 as often as a 3x3 window sees it, where the work is that of `winograd.LEAST`.
COPIES, SEEN = 2.25, 16
COPIES_OF_COLOURS, COLOURS = 9, 4
# The share of a window's positions, over all outputs, that lie in the image, below which a dilated
# convolution is done position by position.
INSIDE = 0.8
# 3-D convolutions that see, or have, fewer channels than this are 2-D ones of slices.
THIN = 24
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
    produced = output(padded, window, strides, dilations)
    if any(size < f for size, f in zip(produced, window, strict=True)):
        return patches
    seen, filters = kernel_shape[-2:]
    copies = math.prod(window) / math.prod(strides)  # of each pixel, in the rows of `patches`
    few = seen <= COLOURS and max(strides) == 1 and copies <= COPIES_OF_COLOURS
    few = few and isinstance(shape[0], int)  # not a variable, as in a program that is exported
    few = few and shape[0] * math.prod(produced) * math.prod(kernel_shape) >= winograd.LEAST
    if copies <= 1 or (copies <= COPIES and seen >= SEEN) or few:
        return patches
    if max(strides) == 1 < max(dilations) and _inside(shape[1:-1], window, geometry) < INSIDE:
        return taps
    if len(window) == 3 and min(seen, filters) < THIN:
        return slices
    if {*strides, *dilations} == {1} and len({*window}) == 1:
        sizes = winograd.sizes(shape[0], produced, window[0], seen, filters)
        if any(sizes):
            return functools.partial(winograd.convolve, sizes=sizes)
    spans = [(f - 1) * dilation for f, dilation in zip(window, dilations, strict=True)]
    if any(low + high > span for (low, high), span in zip(pads, spans, strict=True)):
        return padded_first
    return None


def padded_first(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A dense convolution whose padding beyond that which keeps the size is laid on first; see
    `plain`.
    """
    strides, pads, dilations = geometry
    excess, rest = [], []
    for f, (low, high), dilation in zip(kernel.shape[:-2], pads, dilations, strict=True):
        more = max(0, low + high - (f - 1) * dilation)
        first = min(low, max(more - high, more // 2))
        excess.append((first, more - first, 0))
        rest.append((low - first, high - (more - first)))
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *excess, (0, 0, 0)])
    return plain(x, kernel, geometry=(strides, tuple(rest), dilations))


def pointwise(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A 1x1 convolution: every stride-th pixel, and a matrix product; see `plain`."""
    strides, pads, _ = geometry
    x = lax.pad(
        x, jnp.zeros((), x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    )
    return _product(lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1)), kernel)


def patches(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A dense convolution: rows [prod(window) * C], and a matrix product; see `plain`."""
    rows = jnp.concatenate(views(x, jnp.zeros((), x.dtype), kernel.shape[:-2], geometry), axis=-1)
    return _product(rows, kernel)


def _seen(size: int, window: int, low: int, high: int, dilation: int) -> list[tuple[int, int, int]]:
    """For each position of a window along an axis, at stride 1: the first output for which it lies
    in the image, how many there are, and the first pixel.
    """
    outputs = size + low + high - (window - 1) * dilation
    found = []
    for n in range(window):
        first = max(0, low - n * dilation)
        last = min(outputs, size + low - n * dilation)
        found.append((first, max(0, last - first), first + n * dilation - low))
    return found


def _inside(sizes: Sequence[int], window: Sequence[int], geometry: Geometry) -> float:
    """The share of the window's positions, over all outputs, that lie in the image."""
    _, pads, dilations = geometry
    share = 1.0
    for size, f, (low, high), dilation in zip(sizes, window, pads, dilations, strict=True):
        seen = _seen(size, f, low, high, dilation)
        share *= sum(count for _, count, _ in seen) / (
            f * output((size + low + high,), (f,), (1,), (dilation,))[0]
        )
    return share


def taps(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A dense convolution at stride 1: a product for each position of the window; see `plain`."""
    _, pads, dilations = geometry
    window, zero = kernel.shape[:-2], jnp.zeros((), wide(x).dtype)
    axes = [
        _seen(size, f, low, high, dilation)
        for size, f, (low, high), dilation in zip(
            x.shape[1:-1], window, pads, dilations, strict=True
        )
    ]
    padded = [size + low + high for size, (low, high) in zip(x.shape[1:-1], pads, strict=True)]
    produced = output(padded, window, (1,) * len(window), dilations)
    total = jnp.zeros((x.shape[0], *produced, kernel.shape[-1]), zero.dtype)
    for place in itertools.product(*(range(f) for f in window)):
        seen = [axis[n] for axis, n in zip(axes, place, strict=True)]
        if not all(count for _, count, _ in seen):
            continue
        part = x[:, *(slice(start, start + count) for _, count, start in seen)]
        pads_of = [
            (first, size - first - count, 0)
            for (first, count, _), size in zip(seen, produced, strict=True)
        ]
        product = wide(_product(part, kernel[place]))
        total = total + lax.pad(product, zero, [(0, 0, 0), *pads_of, (0, 0, 0)])
    return total.astype(x.dtype)


def slices(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A dense 3-D convolution: 2-D ones of the slices [N * D, H, W, C]; see `plain`."""
    (stride, *strides), ((low, high), *pads), (dilation, *dilations) = geometry
    flat = (tuple(strides), tuple(pads), tuple(dilations))
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (low, high, 0), *((0, 0, 0),) * 3])
    (depth,) = output(x.shape[1:2], kernel.shape[:1], (stride,), (dilation,))

    def of_slices(start: int, kernel: jax.Array) -> jax.Array:
        seen = lax.slice_in_dim(x, start, start + (depth - 1) * stride + 1, stride, axis=1)
        seen = seen.reshape(-1, *seen.shape[2:])
        form = choose(seen.shape, kernel.shape, flat, 1) or plain
        return form(seen, kernel, geometry=flat)

    parts = (wide(of_slices(n * dilation, k)) for n, k in enumerate(kernel))
    y = functools.reduce(jnp.add, parts).astype(x.dtype)
    return y.reshape(-1, depth, *y.shape[1:])


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N, *spatial, C] times the kernel's last axis, all others of which are C -> [N, *spatial, K].

    The product of two matrices: in the gradient of one with more axes XLA copies the cotangent to
    the order [K, N, *spatial], which took a third of ResNet-50's step.
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(*x.shape[:-1], -1)


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
    block = (*kernel.shape[:-2], joined * seen, joined * filters)
    form = choose((*x.shape[:-1], joined * seen), block, geometry, 1) or plain
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
    weights = wide(kernel).reshape(-1, *(1,) * (x.ndim - 1), x.shape[-1])
    shifted = views(x, jnp.zeros((), x.dtype), window, geometry)
    return functools.reduce(
        jnp.add, (wide(view) * w for view, w in zip(shifted, weights, strict=True))
    ).astype(x.dtype)


# A jitted function has `__wrapped__`, which jax's types leave out.
@_shifted.__wrapped__.defjvp  # pyright: ignore[reportAttributeAccessIssue]
def _shifted_jvp(
    geometry: Geometry, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    strides, pads, dilations = geometry
    window, (low, high) = kernel.shape[:-1], pads[-1]
    (width,) = output((x.shape[-2] + low + high,), window[-1:], strides[-1:], dilations[-1:])
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
    image, zero = wide(x), jnp.zeros((), wide(x).dtype)
    weights = wide(kernel).reshape(-1, *(1,) * (x.ndim - 1), x.shape[-1])
    starts = itertools.product(
        *(range(span, -1, -d) for span, d in zip(spans, dilations, strict=True))
    )
    frames = (
        lax.pad(
            image * w,
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
    *rows, width = output(padded, window, strides, dilations)
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
    total = jnp.zeros((), wide(x).dtype)
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
