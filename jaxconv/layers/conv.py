"""Convolution: filters slid over a volume, as in the lecture's summary.

    accepts   W1 x H1 x D1
    needs     K filters, their extent F, the stride S, the zero padding P
    produces  W2 x H2 x K, with W2 = (W1 - F + 2P)/S + 1
    learns    F * F * D1 weights per filter, and K biases

What networks call a convolution is a cross-correlation: the mathematical convolution with the
kernel flipped. Every network convolves through `convolve`, so there is one place to make it fast:
see `layers/forms.py`.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from jaxconv.arithmetic import atrous_pad_widths, pad_widths
from jaxconv.layers import forms, windows

Ints = int | Sequence[int]

_PLAIN = contextvars.ContextVar("plain", default=False)

he_normal = nn.initializers.he_normal()


def per_axis(value: Any, ndim: int, name: str) -> tuple[Any, ...]:
    """One value for each of `ndim` spatial axes: 3 -> (3, 3), and `same` for the padding.

    Raises:
      ValueError: `value` is a sequence of another length.
    """
    values = (value,) * ndim if isinstance(value, int | str) else tuple(value)
    if len(values) != ndim:
        raise ValueError(
            f"{name} {values} has {len(values)} numbers; the input has {ndim} spatial axes"
        )
    return values


def check_count(layer: str, name: str, value: object) -> None:
    """Raise ValueError, prefixed with `layer`, unless `value` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{layer + ': ' if layer else ''}{name} is {value!r}; it must be a whole number of at "
            "least 1"
        )


def geometry_of(
    shape: Sequence[int],
    window: Sequence[int],
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    rounding: str,
    layer: str,
    atrous: int = 0,
) -> windows.Geometry:
    """Strides, (before, after) pads and dilations of the spatial axes of `shape` [N, *spatial, C].

    With `atrous` these are the layer's without its stride; see `atrous_pad_widths`.
    """
    ndim = len(shape) - 2
    axes = [
        per_axis(value, ndim, name)
        for value, name in ((stride, "stride"), (padding, "padding"), (dilation, "dilation"))
    ]
    pads = tuple(
        atrous_pad_widths(size, f, s, p, d, rounding, atrous, layer)
        if atrous
        else pad_widths(size, f, s, p, d, rounding, layer)
        for size, f, s, p, d in zip(shape[1:-1], window, *axes, strict=True)
    )
    if atrous:
        return (1,) * ndim, pads, tuple(d * atrous for d in axes[2])
    return axes[0], pads, axes[2]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    rounding: str = "floor",
    layer: str = "",
    atrous: int = 0,
) -> jax.Array:
    """Slide every filter over the volume and take dot products.

    Args:
      x: [N, *spatial, C]; one, two or three spatial axes.
      kernel: [*window, C // groups, K], with the dtype of `x`.
      stride, padding, dilation: pixels; one int for all axes, or one for each. The padding may be
        `same`, TensorFlow's, see `arithmetic.same_widths`.
      groups: the channels and filters are split into this many groups, each convolved separately.
      rounding: `floor`, `exact` or `ceil`; see `arithmetic.output_size`. `ceil` pads with more
        zeros after the image.
      layer: name that prefixes error messages.
      atrous: not 0: for an image in which only every `atrous`-th pixel is one that the filters
        were made for. They are dilated by it, and the stride is left out: every
        `stride * atrous`-th value is what the strided layer gives.

    Returns:
      [N, *output, K].

    Raises:
      ValueError: the window does not fit, or `groups` does not divide channels and filters.
    """
    window, (seen, filters) = kernel.shape[:-2], kernel.shape[-2:]
    if x.shape[-1] != seen * groups or filters % groups:
        raise ValueError(
            f"{layer + ': ' if layer else ''}{x.shape[-1]} channels in {groups} groups do not "
            f"match {filters} filters that see {seen} each"
        )
    geometry = geometry_of(x.shape, window, stride, padding, dilation, rounding, layer, atrous)
    plain_form = functools.partial(windows.plain, geometry=geometry, groups=groups)
    form = None if _PLAIN.get() else forms.choose(x.shape, kernel.shape, geometry, groups)
    if form is None:
        return plain_form(x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=functools.partial(form, geometry=geometry), default=plain_form
    )


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Trace XLA's own convolution on every platform inside this context, to count operations.

    A function that was jitted and called before keeps the form that it was traced with.
    """
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


class Conv(nn.Module):
    """A convolutional layer: `kernel` [*window, C // groups, K] and `bias` [K], both float32.

    Attributes:
      filters: K.
      filter_size: F, one int for all spatial axes or one for each; the input determines the
        number of axes.
      stride, padding, dilation, groups, rounding, atrous: see `convolve`.
      use_bias: whether each filter has a bias.
      dtype: the compute type.
    """

    filters: int
    filter_size: Ints = 3
    stride: Ints = 1
    padding: Ints | str = 0
    dilation: Ints = 1
    groups: int = 1
    rounding: str = "floor"
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Callable = he_normal
    bias_init: Callable = nn.initializers.zeros_init()
    atrous: int = 0

    def weights(self, shape: tuple[int, ...]) -> jax.Array:
        """The kernel of that shape, float32; a subclass may make another of it."""
        return self.param("kernel", self.kernel_init, shape, jnp.float32)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> [N, *output, K]."""
        window = per_axis(self.filter_size, x.ndim - 2, "filter size")
        layer = "/".join(self.path)
        check_count(layer, "filters", self.filters)
        check_count(layer, "groups", self.groups)
        if x.shape[-1] % self.groups:
            raise ValueError(
                f"{layer + ': ' if layer else ''}{x.shape[-1]} channels / {self.groups} groups is "
                "not a whole number"
            )
        shape = (*window, x.shape[-1] // self.groups, self.filters)
        kernel, bias = self.weights(shape), None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.filters,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        sizes = (self.stride, self.padding, self.dilation, self.groups)
        x = convolve(x, kernel, *sizes, self.rounding, layer, self.atrous)
        return x if bias is None else x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class ConvTranspose(nn.Module):
    """A transposed convolution, which makes maps larger: `kernel` [*window, C, K], `bias` [K].

    It is the gradient of a convolution with this stride and padding by its input: W2 = (W1 - 1)S +
    F - 2P. The kernel is that of the convolution of the input with zeros between its values, so it
    lies the other way round than that of the convolution whose gradient it is. Where the window is
    the stride, windows do not overlap: it is a 1x1 whose filters are laid beside one another.

    Attributes:
      filters, filter_size, stride, padding, use_bias, dtype: see `Conv`.
      kernel_init: by default He's, for as many inputs as reach one value of the output.
    """

    filters: int
    filter_size: Ints = 2
    stride: Ints = 2
    padding: Ints = 0
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Callable | None = None
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> [N, *output, K]."""
        axes = x.ndim - 2
        window, strides, pads = (
            per_axis(value, axes, name)
            for value, name in (
                (self.filter_size, "filter size"),
                (self.stride, "stride"),
                (self.padding, "padding"),
            )
        )
        check_count("/".join(self.path), "filters", self.filters)
        shape = (*window, x.shape[-1], self.filters)
        # Of the window's values, one in as many as the strides' product reaches a position.
        init = self.kernel_init or nn.initializers.variance_scaling(
            2.0 * math.prod(strides), "fan_in", "truncated_normal"
        )
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.filters,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        if window == strides and not any(pads):
            x = _beside(x, kernel)
        else:
            x = lax.conv_general_dilated(
                x,
                kernel,
                (1,) * axes,
                [(f - 1 - p, f - 1 - p) for f, p in zip(window, pads, strict=True)],
                lhs_dilation=strides,
                dimension_numbers=windows.axes_of(axes),
            )
        return x if bias is None else x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _beside(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`ConvTranspose` with a window of its stride: [N, *spatial, C] -> [N, *output, K]."""
    axes, window = x.ndim - 2, kernel.shape[:-2]
    kernel = jnp.flip(kernel, range(axes))
    flat = jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1)
    parts = (x.reshape(-1, x.shape[-1]) @ flat).reshape(*x.shape[:-1], *window, kernel.shape[-1])
    # [N, h, w, 2, 2, K] -> [N, h, 2, w, 2, K]
    pairs = itertools.chain(*((1 + n, 1 + axes + n) for n in range(axes)))
    parts = parts.transpose(0, *pairs, parts.ndim - 1)
    sides = [side * f for side, f in zip(x.shape[1:-1], window, strict=True)]
    return parts.reshape(x.shape[0], *sides, kernel.shape[-1])
