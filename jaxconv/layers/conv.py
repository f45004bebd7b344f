"""Convolution: filters slid over a volume, as the lecture's summary has it.

    accepts   W1 x H1 x D1
    needs     K filters, their extent F, the stride S, the zero padding P
    produces  W2 x H2 x K, with W2 = (W1 - F + 2P)/S + 1
    learns    F * F * D1 weights a filter, and K biases

What networks call a convolution is a correlation: it is the mathematical convolution with the
kernel flipped. Every network convolves through `convolve`, and nothing else does, so that there is
one place to make it fast: see `layers/forms.py`.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.linen.dtypes import promote_dtype
from jax import lax

from jaxconv.arithmetic import pad_widths
from jaxconv.layers import forms

Ints = int | Sequence[int]

_PLAIN = contextvars.ContextVar("plain", default=False)

he_normal = nn.initializers.he_normal()


def per_axis(value: Ints, ndim: int, name: str) -> tuple[int, ...]:
    """One int for each of `ndim` spatial axes: 3 -> (3, 3).

    Raises:
      ValueError: a sequence of another length.
    """
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) != ndim:
        raise ValueError(
            f"{name} {values} has {len(values)} numbers; the input has {ndim} spatial axes"
        )
    return values


def check_count(layer: str, name: str, value: object) -> None:
    """Raise ValueError unless there is a whole number, at least one, of something; `layer` goes
    before the message.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{layer + ': ' if layer else ''}{name} is {value!r}; it must be a whole number of at "
            "least 1"
        )


def pads_of(
    shape: Sequence[int],
    window: Sequence[int],
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    rounding: str,
    layer: str,
) -> tuple[tuple[int, int], ...]:
    """Explicit (before, after) pads for the spatial axes of `shape` [N, *spatial, C]; see
    `arithmetic.pad_widths`.
    """
    ndim = len(shape) - 2
    return tuple(
        pad_widths(size, f, s, p, d, rounding, layer)
        for size, f, s, p, d in zip(
            shape[1:-1],
            window,
            per_axis(stride, ndim, "stride"),
            per_axis(padding, ndim, "padding"),
            per_axis(dilation, ndim, "dilation"),
            strict=True,
        )
    )


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    rounding: str = "floor",
    layer: str = "",
) -> jax.Array:
    """Slide every filter over the volume and take dot products.

    Args:
      x: [N, *spatial, C]; one, two or three spatial axes.
      kernel: [*window, C // groups, K], of the dtype of `x`.
      stride, padding, dilation: pixels; one int for all axes, or one for each.
      groups: the channels and the filters are split into this many groups, each convolved apart.
      rounding: `floor`, `exact` or `ceil`; see `arithmetic.output_size`. `ceil` pads with more
        zeros after the image.
      layer: name to put before an error message.

    Returns:
      [N, *output, K].

    Raises:
      ValueError: the window does not fit, or channels and groups do not divide.
    """
    ndim = x.ndim - 2
    window, (seen, filters) = kernel.shape[:-2], kernel.shape[-2:]
    if x.shape[-1] != seen * groups or filters % groups:
        raise ValueError(
            f"{layer + ': ' if layer else ''}{x.shape[-1]} channels in {groups} groups do not "
            f"match {filters} filters that see {seen} each"
        )
    geometry = (
        per_axis(stride, ndim, "stride"),
        pads_of(x.shape, window, stride, padding, dilation, rounding, layer),
        per_axis(dilation, ndim, "dilation"),
    )
    plain_form = functools.partial(forms.plain, geometry=geometry, groups=groups)
    form = None if _PLAIN.get() else forms.choose(x.shape, kernel.shape, geometry, groups)
    if form is None:
        return plain_form(x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=functools.partial(form, geometry=geometry), default=plain_form
    )


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Inside this context, what is traced has XLA's one convolution on every platform, as who
    counts operations wants it.

    A function that was jitted and called before keeps the form it was traced with.
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
      filter_size: F, one int for all spatial axes or one for each. How many axes there are, the
        input tells.
      stride, padding, dilation, groups, rounding: see `convolve`.
      use_bias: whether each filter has a bias.
      dtype: the compute type.
    """

    filters: int
    filter_size: Ints = 3
    stride: Ints = 1
    padding: Ints = 0
    dilation: Ints = 1
    groups: int = 1
    rounding: str = "floor"
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Callable = he_normal
    bias_init: Callable = nn.initializers.zeros_init()

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
                "not whole"
            )
        kernel = self.param(
            "kernel", self.kernel_init, (*window, x.shape[-1] // self.groups, self.filters)
        )
        bias = self.param("bias", self.bias_init, (self.filters,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = convolve(
            x, kernel, self.stride, self.padding, self.dilation, self.groups, self.rounding, layer
        )
        return x if bias is None else x + bias.reshape((1,) * (x.ndim - 1) + (-1,))
