"""The arithmetic of convolutional layers, in plain integers.

The lecture's summary of a convolutional layer, for an input volume W1 x H1 x D1:

    K  number of filters        W2 = (W1 - F + 2P)/S + 1
    F  their spatial extent     H2 = (H1 - F + 2P)/S + 1
    S  the stride               D2 = K
    P  the zero padding         weights = (F * F * D1) * K, biases = K

Pooling is the same without weights. Every function takes and returns plain Python numbers, and only
the standard library is imported, so sizes can be computed without JAX.
"""

import itertools
import math
import operator
from collections.abc import Sequence

ROUNDINGS = ("floor", "exact", "ceil")


def output_size(
    size: int,
    window: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    rounding: str = "floor",
    layer: str = "",
) -> int:
    """The number of window positions along one axis: (W - F + 2P)/S + 1.

    Args:
      size: W, pixels along the axis.
      window: F, the extent of the filter or pooling window, in pixels.
      stride: S, pixels between neighbouring positions.
      padding: P, pixels added on each side.
      dilation: distance between neighbouring taps of the window, which then spans
        (F - 1) * dilation + 1 pixels.
      rounding: what to do if the division leaves a remainder. `floor` ignores the last pixels,
        `exact` raises, `ceil` lets the last window extend past the edge if it starts inside the
        image or its left padding.
      layer: name that prefixes error messages.

    Raises:
      ValueError: an argument is out of range, the window is larger than the padded image, or
        with `exact` the division leaves a remainder.

    >>> output_size(227, 11, stride=4)
    55
    >>> output_size(7, 3, stride=3, rounding="exact")
    Traceback (most recent call last):
    ValueError: (7 - 3)/3 + 1 = 2.33: a 3-wide window at stride 3 does not fit 7
    """
    check_window(window, stride, padding, dilation, rounding, layer)
    span = (window - 1) * dilation + 1
    room = size - span + 2 * padding
    if room < 0 and not (rounding == "ceil" and room > -stride):
        raise ValueError(
            f"{_prefix(layer)}{_quotient(size, span, stride, padding)} = {room / stride + 1:.2f}: "
            f"a {span}-wide window is larger than {_what(size, padding)}"
        )
    if room % stride == 0 or rounding == "floor":
        return room // stride + 1
    if rounding == "exact":
        raise ValueError(
            f"{_prefix(layer)}{_quotient(size, span, stride, padding)} = {room / stride + 1:.2f}: "
            f"a {span}-wide window at stride {stride} does not fit {_what(size, padding)}"
        )
    positions = -(-room // stride) + 1
    # A window that starts in the right padding would see no pixel; Caffe and PyTorch drop it too.
    return positions - 1 if (positions - 1) * stride >= size + padding else positions


def pad_widths(
    size: int,
    window: int,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    rounding: str = "floor",
    layer: str = "",
) -> tuple[int, int]:
    """Pixels to add before and after one axis so that exactly `output_size` windows fit.

    The first number is always `padding`. The second is `padding`, or more if with `ceil` the last
    window needs it. Arguments and errors are those of `output_size`. With the padding `same`, see
    `same_widths`.
    """
    if isinstance(padding, str):
        return same_widths(size, window, stride, padding, dilation, layer)
    positions = output_size(size, window, stride, padding, dilation, rounding, layer)
    needed = (positions - 1) * stride + (window - 1) * dilation + 1
    return padding, max(padding, needed - size - padding)


def same_widths(
    size: int, window: int, stride: int, padding: str, dilation: int = 1, layer: str = ""
) -> tuple[int, int]:
    """Pixels to add before and after one axis for TensorFlow's padding `same`.

    There are ceil(size / stride) windows. An odd number of pixels has one more after than before:
    at an even size and stride 2 a 3-wide window gets 0 and 1, where (F - 1)/2 gives 1 and 1.

    Raises:
      ValueError: a number of another kind than a padding, stride or window can have.
    """
    if padding != "same":
        raise ValueError(
            f"{_prefix(layer)}padding is {padding!r}; it must be a whole number of pixels, or "
            "'same'"
        )
    check_window(window, stride, 0, dilation, "floor", layer)
    positions = -(-size // stride)
    added = max(0, (positions - 1) * stride + (window - 1) * dilation + 1 - size)
    return added // 2, added - added // 2


def atrous_pad_widths(
    size: int,
    window: int,
    stride: int,
    padding: int | str,
    dilation: int,
    rounding: str,
    spacing: int,
    layer: str = "",
) -> tuple[int, int]:
    """Pixels to add before and after one axis for a layer whose stride was removed.

    The layer was made for every `spacing`-th pixel. Moved by one pixel instead, its window dilated
    by `dilation * spacing`, it gives at every `stride * spacing`-th position what it gave, and the
    map keeps its size as far as those positions go. The other arguments and the errors are those
    of `output_size`.
    """
    seen = -(-size // spacing)
    if isinstance(padding, str):
        positions = -(-seen // stride)
        padding = same_widths(seen, window, stride, padding, dilation, layer)[0]
    else:
        positions = output_size(seen, window, stride, padding, dilation, rounding, layer)
    apart = stride * spacing
    wanted = min(positions * apart, max(size, (positions - 1) * apart + 1))
    before = padding * spacing
    return before, wanted + (window - 1) * dilation * spacing - size - before


def atrous_spacings(
    strides: Sequence[int], output_stride: int, fixed: int = 0, network: str = "the network"
) -> tuple[int, ...]:
    """For each layer, the distance of the pixels that it was made for, or 0 to leave it as it is.

    The layers after the one at which the product of the strides reaches `output_stride` lose their
    strides; they and all after them are dilated instead (Chen et al. 2017, arXiv:1706.05587,
    section 3.1).

    Args:
      strides: of the layers in order.
      output_stride: the product of the strides that remain; 0 keeps all.
      fixed: number of leading layers that keep their stride.
      network: for error messages.

    Raises:
      ValueError: the product never is `output_stride`; the message lists what it can be.
    """
    products = (1, *itertools.accumulate(strides, operator.mul))
    if not output_stride:
        return (0,) * len(strides)
    possible = sorted(set(products[fixed:]))
    if output_stride not in possible:
        raise ValueError(
            f"output_stride is {output_stride}; that of {network} can be "
            f"{', '.join(map(str, possible))}, or 0 for its own, {products[-1]}"
        )
    return tuple(
        before // output_stride if after > output_stride else 0
        for before, after in itertools.pairwise(products)
    )


def padding_that_fits(size: int, filter_size: int, stride: int = 1) -> tuple[int, ...]:
    """Every padding P < F with which the filter fits the image exactly, smallest first.

    The lecture's "F = 5, S = 2, P = ? (whatever fits)". A padding of F or more does not count:
    the first window would lie entirely in the padding.

    Raises:
      ValueError: no padding fits; the message says why.

    >>> padding_that_fits(7, 5, stride=2)
    (0, 1, 2, 3, 4)
    """
    check_window(filter_size, stride, 0, 1, "exact", "")
    rest = size - filter_size

    def fits(padding: int) -> bool:
        return rest + 2 * padding >= 0 and (rest + 2 * padding) % stride == 0

    fitting = tuple(filter(fits, range(filter_size)))
    if fitting:
        return fitting
    if rest % math.gcd(2, stride):
        why = f"{rest} + 2P is odd for every P, and the stride is even"
    else:
        smallest = next(filter(fits, itertools.count(filter_size)))
        why = (
            f"the smallest P that divides is {smallest}, and with {filter_size} or more the first "
            "window sees no pixel"
        )
    raise ValueError(
        f"no padding fits a {filter_size}-wide filter at stride {stride} on {size}: in ({size} - "
        f"{filter_size} + 2P)/{stride} + 1, {why}"
    )


def same_padding(filter_size: int) -> int:
    """The lecture's (F - 1)/2, which keeps the size at stride 1.

    Raises:
      ValueError: F is even, so no whole number of pixels keeps the size.
    """
    if filter_size < 1 or filter_size % 2 == 0:
        raise ValueError(
            f"padding (F - 1)/2 = ({filter_size} - 1)/2 = {(filter_size - 1) / 2}: no whole "
            "number of pixels keeps the size; set the padding explicitly"
        )
    return (filter_size - 1) // 2


def conv_weights(window: Sequence[int], in_channels: int, filters: int, groups: int = 1) -> int:
    """Weights of a convolution without its biases: (F * F * D1 / groups) * K."""
    return math.prod(window) * (in_channels // groups) * filters


def conv_connections(
    output: Sequence[int], window: Sequence[int], in_channels: int, filters: int, groups: int = 1
) -> int:
    """Multiply-adds for one image, the lecture's "connections": 6x6x1 x 3x3x1 in its example."""
    return math.prod(output) * conv_weights(window, in_channels, filters, groups)


def receptive_field(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Receptive field and distance between neighbours, in pixels, after (window, stride) layers."""
    field, jump = 1, 1
    for window, stride in layers:
        field += (window - 1) * jump
        jump *= stride
    return field, jump


def check_window(
    window: int, stride: int, padding: int, dilation: int, rounding: str, layer: str
) -> None:
    """Raise ValueError unless window, stride, dilation >= 1, padding >= 0 and rounding is known."""
    for name, value, least in (
        ("window", window, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if value != int(value) or value < least:
            raise ValueError(
                f"{_prefix(layer)}{name} is {value}; it must be a whole number of at least {least}"
            )
    if rounding not in ROUNDINGS:
        raise ValueError(
            f"{_prefix(layer)}rounding is {rounding!r}; it must be one of {', '.join(ROUNDINGS)}"
        )


def _prefix(layer: str) -> str:
    return f"{layer}: " if layer else ""


def _quotient(size: int, span: int, stride: int, padding: int) -> str:
    pad = f" + 2*{padding}" if padding else ""
    return f"({size} - {span}{pad})/{stride} + 1"


def _what(size: int, padding: int) -> str:
    return f"{size} padded by {padding}" if padding else str(size)
