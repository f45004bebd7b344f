"""Pooling: shrinking the image stack.

    accepts   W1 x H1 x D1
    needs     the extent F of the window (usually 2 or 3), the stride S (usually 2)
    produces  W2 x H2 x D1, with W2 = (W1 - F)/S + 1
    learns    nothing

The maximum (or sum) is taken over the F * F shifted, strided views of the image. XLA's own window
reduction gives the same values, but its gradient is 7 to 25 times slower on a CPU (32x32x32, batch
64: 34 ms against 1.6 for 2x2 windows, 40 against 5.6 for 3x3). Where several pixels of a window tie
for the maximum, each has the same share of the gradient.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.layers import windows
from jaxconv.layers.conv import Ints, geometry_of, per_axis


def max_pool(
    x: jax.Array,
    window: Ints = 2,
    stride: Ints = 2,
    padding: Ints = 0,
    rounding: str = "floor",
    layer: str = "",
    atrous: int = 0,
) -> jax.Array:
    """The maximum of each window: [N, *spatial, C] -> [N, *output, C].

    Padding never wins: it counts as minus infinity. `rounding` is `floor`, `exact` or `ceil`, see
    `arithmetic.output_size`; for `atrous` see `convolve`.

    Raises:
      ValueError: the window does not fit; `layer` prefixes the message.
    """
    lowest = jnp.array(
        -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min, x.dtype
    )
    return _maximum(*_views(x, lowest, window, stride, padding, rounding, layer, atrous))


@jax.custom_jvp
def _maximum(*views: jax.Array) -> jax.Array:
    """The largest value at each position.

    The derivative compares each view with the result: on a CPU this takes half the time of the
    derivative of a chain of maxima.
    """
    return functools.reduce(jnp.maximum, views)


@_maximum.defjvp
def _maximum_jvp(views: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    largest = _maximum(*views)
    hits = [(view == largest).astype(largest.dtype) for view in views]
    total = functools.reduce(jnp.add, (hit * t for hit, t in zip(hits, tangents, strict=True)))
    return largest, total / functools.reduce(jnp.add, hits)


def average_pool(
    x: jax.Array,
    window: Ints = 2,
    stride: Ints = 2,
    padding: Ints = 0,
    rounding: str = "floor",
    layer: str = "",
    count_padding: bool = True,
    atrous: int = 0,
) -> jax.Array:
    """The mean of each window: [N, *spatial, C] -> [N, *output, C].

    Args:
      count_padding: whether `padding`'s zeros count in the mean, as in PyTorch and Caffe. The
        pixels that `ceil` adds never count.
      atrous: see `convolve`.

    Raises:
      ValueError: the window does not fit; `layer` prefixes the message.
    """
    ndim, zero = x.ndim - 2, jnp.zeros((), x.dtype)
    whole = per_axis(window, ndim, "window") == x.shape[1:-1]
    if whole and not any(per_axis(padding, ndim, "padding")) and not atrous:
        return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), keepdims=True)
    total = functools.reduce(
        jnp.add, _views(x, zero, window, stride, padding, rounding, layer, atrous)
    )
    # How many pixels each window holds: the same sum over an image of ones.
    counted = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
    if count_padding:
        sides = [(p * (atrous or 1),) * 2 for p in per_axis(padding, ndim, "padding")]
        counted = jnp.pad(counted, [(0, 0), *sides, (0, 0)], constant_values=1)
        padding = 0
    held = functools.reduce(
        jnp.add, _views(counted, zero, window, stride, padding, rounding, layer, atrous)
    )
    # `ceil` can drop a window that starts in the right padding; the padded image of ones keeps it.
    return total / lax.slice(held, (0,) * x.ndim, (1, *total.shape[1:-1], 1))


def adaptive_average_pool(x: jax.Array, size: Ints) -> jax.Array:
    """Means of `size` parts of each axis, as even as possible: [N, *spatial, C] -> [N, *size, C].

    Part i of n spans floor(i * W / n) to ceil((i + 1) * W / n), as in PyTorch; if W < n, pixels are
    repeated.
    """
    for axis, parts in enumerate(per_axis(size, x.ndim - 2, "size"), 1):
        width = x.shape[axis]
        if width != parts:
            edges = [(i * width // parts, -(-(i + 1) * width // parts)) for i in range(parts)]
            x = jnp.concatenate(
                [
                    jnp.mean(lax.slice_in_dim(x, start, end, axis=axis), axis=axis, keepdims=True)
                    for start, end in edges
                ],
                axis=axis,
            )
    return x


def _views(
    x: jax.Array,
    filler: jax.Array,
    window: Ints,
    stride: Ints,
    padding: Ints,
    rounding: str,
    layer: str,
    atrous: int,
) -> Sequence[jax.Array]:
    """One view of the padded image for each position inside the window, [N, *output, C] each."""
    ndim = x.ndim - 2
    window = per_axis(window, ndim, "window")
    for f, p in zip(window, per_axis(padding, ndim, "padding"), strict=True):
        if p >= f:
            raise ValueError(
                f"{layer + ': ' if layer else ''}with a padding of {p} the first {f}-wide window "
                "sees no pixel"
            )
    geometry = geometry_of(x.shape, window, stride, padding, 1, rounding, layer, atrous)
    return windows.views(x, filler, window, geometry)


class Pool(nn.Module):
    """A pooling layer.

    Attributes:
      kind: `max`, `average` or `global` (the mean over all positions, [N, C]).
      window, stride, padding, rounding, atrous: see `max_pool`; `global` uses none of them.
    """

    kind: str = "max"
    window: Ints = 2
    stride: Ints = 2
    padding: Ints = 0
    rounding: str = "floor"
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> [N, *output, C], or [N, C] for `global`."""
        if self.kind == "global":
            return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        pool = {"max": max_pool, "average": average_pool}.get(self.kind)
        if pool is None:
            raise ValueError(
                f"{'/'.join(self.path)}: pooling is {self.kind!r}; it must be max, average or "
                "global"
            )
        sizes, layer = (self.window, self.stride, self.padding), "/".join(self.path)
        return pool(x, *sizes, self.rounding, layer, atrous=self.atrous)
