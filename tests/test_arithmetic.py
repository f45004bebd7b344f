"""The sizes, paddings and counts of the lecture, and general properties of them."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxconv import arithmetic


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "expected"),
    [
        (7, 3, 1, 0, 5),  # "7x7 input, 3x3 filter => 5x5 output"
        (7, 3, 2, 0, 3),  # "applied with stride 2 => 3x3 output!"
        (7, 3, 1, 1, 7),  # "pad with 1 pixel border => 7x7 output!"
        (32, 5, 1, 2, 32),  # "(32 + 2 * 2 - 5) / 1 + 1 = 32"
        (32, 5, 1, 0, 28),  # "32 -> 28 -> 24"
        (28, 5, 1, 0, 24),
        (8, 3, 1, 0, 6),  # "8x8 image, 3x3 filter, stride 1"
        (227, 11, 4, 0, 55),  # AlexNet's CONV1
        (55, 3, 2, 0, 27),  # its POOL1
        (27, 3, 2, 0, 13),
        (13, 3, 2, 0, 6),
        (224, 2, 2, 0, 112),  # VGG's pooling
    ],
)
def test_sizes_of_the_lecture(size, window, stride, padding, expected):
    for rounding in arithmetic.ROUNDINGS:
        assert arithmetic.output_size(size, window, stride, padding, rounding=rounding) == expected


def test_what_does_not_fit_shows_the_arithmetic():
    with pytest.raises(
        ValueError,
        match=r"^conv1: \(7 - 3\)/3 \+ 1 = 2\.33: a 3-wide window at stride 3 does not fit 7$",
    ):
        arithmetic.output_size(7, 3, 3, rounding="exact", layer="conv1")
    assert arithmetic.output_size(7, 3, 3) == 2
    assert arithmetic.output_size(7, 3, 3, rounding="ceil") == 3
    with pytest.raises(
        ValueError,
        match=r"\(8 - 3 \+ 2\*1\)/2 \+ 1 = 4\.50: a 3-wide window at stride 2 does not fit 8 "
        r"padded "
        r"by 1",
    ):
        arithmetic.output_size(8, 3, 2, 1, rounding="exact")
    with pytest.raises(ValueError, match="a 5-wide window is larger than 4"):
        arithmetic.output_size(4, 5)
    with pytest.raises(ValueError, match="a 5-wide window is larger than 4"):  # 3 pixels, dilated
        arithmetic.output_size(4, 3, dilation=2)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("stride", 0, "stride is 0; it must be a whole number of at least 1"),
        ("padding", -1, "padding is -1"),
        ("window", 2.5, "window is 2.5"),
        ("rounding", "round", "rounding is 'round'; it must be one of floor, exact, ceil"),
    ],
)
def test_bad_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        arithmetic.output_size(**{"size": 8, "window": 3, argument: value})


sizes = st.integers(1, 40)


@given(
    sizes,
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(1, 3),
    st.sampled_from(arithmetic.ROUNDINGS),
)
def test_padded_image_holds_exactly_the_windows(size, window, stride, padding, dilation, rounding):
    span = (window - 1) * dilation + 1
    try:
        positions = arithmetic.output_size(size, window, stride, padding, dilation, rounding)
    except ValueError:
        assert size + 2 * padding < span or (
            rounding == "exact" and (size + 2 * padding - span) % stride
        )
        return
    low, high = arithmetic.pad_widths(size, window, stride, padding, dilation, rounding)
    assert low == padding and high >= padding
    assert (size + low + high - span) // stride + 1 == positions
    # The last window sees at least one pixel or left padding, as PyTorch has it.
    assert (positions - 1) * stride < size + padding or rounding != "ceil" or high == padding
    if rounding == "ceil":
        assert (
            positions >= arithmetic.output_size(size, window, stride, padding, dilation)
            if size + 2 * padding >= span
            else positions == 1
        )


@given(sizes, st.integers(1, 12), st.integers(1, 6))
def test_padding_that_fits_is_every_one_that_fits(size, filter_size, stride):
    def fits(padding):
        try:
            arithmetic.output_size(size, filter_size, stride, padding, rounding="exact")
        except ValueError:
            return False
        return True

    expected = tuple(p for p in range(filter_size) if fits(p))
    if expected:
        assert arithmetic.padding_that_fits(size, filter_size, stride) == expected
    else:
        with pytest.raises(ValueError, match="no padding fits"):
            arithmetic.padding_that_fits(size, filter_size, stride)


def test_whatever_fits():
    """The lecture's "F = 5, S = 2, P = ? (whatever fits)"."""
    assert arithmetic.padding_that_fits(7, 5, 2) == (0, 1, 2, 3, 4)
    with pytest.raises(
        ValueError,
        match=r"on 32: in \(32 - 5 \+ 2P\)/2 \+ 1, 27 \+ 2P is odd for every P, and the stride is "
        r"even",
    ):
        arithmetic.padding_that_fits(32, 5, 2)
    with pytest.raises(
        ValueError,
        match="the smallest P that divides is 2, and with 2 or more the first window sees no pixel",
    ):
        arithmetic.padding_that_fits(7, 2, 9)


@pytest.mark.parametrize(("filter_size", "padding"), [(1, 0), (3, 1), (5, 2), (7, 3)])
def test_padding_that_keeps_the_size(filter_size, padding):
    assert arithmetic.same_padding(filter_size) == padding
    assert arithmetic.output_size(32, filter_size, 1, padding) == 32


def test_even_filters_have_no_such_padding():
    with pytest.raises(ValueError, match=r"\(4 - 1\)/2 = 1.5"):
        arithmetic.same_padding(4)


def test_counts_of_the_lecture():
    assert arithmetic.conv_weights((5, 5), 3, 10) + 10 == 760  # "76 * 10 = 760"
    assert arithmetic.conv_weights((11, 11), 3, 96) == 34_848  # "35K"
    assert arithmetic.conv_weights((3, 3), 512, 512) == 2_359_296  # VGG
    assert arithmetic.conv_weights((5, 5), 96, 256, groups=2) == 5 * 5 * 48 * 256
    assert arithmetic.conv_connections((6, 6), (3, 3), 1, 1) == 6 * 6 * 1 * 3 * 3 * 1


def test_receptive_field():
    assert arithmetic.receptive_field([(3, 1), (3, 1), (3, 1)]) == (
        7,
        1,
    )  # three 3x3 see as much as one 7x7
    assert arithmetic.receptive_field([(11, 4), (3, 2), (5, 1), (3, 2)]) == (99 - 32, 16)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_same_is_tensorflow_s_padding(size, window, stride, dilation):
    span = (window - 1) * dilation + 1
    expected = jax.lax.padtype_to_pads((size,), (span,), (stride,), "SAME")[0]
    assert arithmetic.pad_widths(size, window, stride, "same", dilation) == expected


def test_other_words_for_a_padding_are_refused():
    with pytest.raises(ValueError, match=r"^conv1: padding is 'valid'; it must be .* or 'same'"):
        arithmetic.pad_widths(8, 3, 1, "valid", layer="conv1")
