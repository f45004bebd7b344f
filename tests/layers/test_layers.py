"""Convolution, pooling and fully connected layers against numpy, for all settings, 1-D to 3-D."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxconv.arithmetic import output_size, pad_widths
from jaxconv.layers import Conv, Dense, Pool, average_pool, convolve, max_pool

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def windows(x, window, stride, pads, dilation=1, filler=0.0):
    """Every window of x [N, *spatial, C]: (position, [N, *window, C])."""
    ndim = x.ndim - 2
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=filler)
    spans = [(f - 1) * dilation + 1 for f in window]
    counts = [(size - span) // stride + 1 for size, span in zip(x.shape[1:-1], spans, strict=True)]
    for position in itertools.product(*map(range, counts)):
        at = tuple(
            slice(p * stride, p * stride + span, dilation)
            for p, span in zip(position, spans, strict=True)
        )
        assert len(at) == ndim
        yield position, x[(slice(None), *at)]


geometry = st.fixed_dictionaries(
    {
        "size": st.integers(4, 9),
        "window": st.integers(1, 3),
        "stride": st.integers(1, 3),
        "padding": st.integers(0, 1),
        "rounding": st.sampled_from(["floor", "ceil"]),
    }
)


@settings(deadline=None, max_examples=25)
@given(geometry, st.integers(1, 2), st.sampled_from([1, 2]), st.sampled_from([1, 2, 3]))
def test_convolution_is_dot_products_at_every_position(g, dilation, groups, ndim):
    random = np.random.default_rng(0)
    shape, window = (g["size"], 7, 5)[:ndim], (g["window"], 2, 1)[:ndim]
    x = random.normal(size=(2, *shape, 4)).astype(np.float32)
    kernel = random.normal(size=(*window, 4 // groups, 6)).astype(np.float32)
    try:
        pads = [
            pad_widths(n, f, g["stride"], g["padding"], dilation, g["rounding"])
            for n, f in zip(shape, window, strict=True)
        ]
    except ValueError:
        return
    ours = np.asarray(
        convolve(
            jnp.array(x),
            jnp.array(kernel),
            g["stride"],
            g["padding"],
            dilation,
            groups,
            g["rounding"],
        )
    )
    for position, patch in windows(x, window, g["stride"], pads, dilation):
        for group in range(groups):
            seen, filters = (
                slice(group * 4 // groups, (group + 1) * 4 // groups),
                slice(group * 6 // groups, (group + 1) * 6 // groups),
            )
            expected = np.tensordot(patch[..., seen], kernel[..., filters], ndim + 1)
            np.testing.assert_allclose(
                ours[(slice(None), *position, filters)], expected, rtol=1e-4, atol=1e-5
            )
    assert ours.shape[1:-1] == tuple(
        output_size(n, f, g["stride"], g["padding"], dilation, g["rounding"])
        for n, f in zip(shape, window, strict=True)
    )


@settings(deadline=None, max_examples=25)
@given(geometry, st.sampled_from([1, 2]))
def test_pooling_is_the_maximum_and_the_mean_of_every_window(g, ndim):
    random = np.random.default_rng(0)
    shape = (g["size"], 7)[:ndim]
    if g["padding"] >= g["window"]:
        with pytest.raises(
            ValueError, match="with a padding of 1 the first 1-wide window sees no pixel"
        ):
            max_pool(jnp.zeros((1, *shape, 1)), g["window"], g["stride"], g["padding"])
        return
    x = random.normal(size=(2, *shape, 3)).astype(np.float32)
    pads = [pad_widths(n, g["window"], g["stride"], g["padding"], 1, g["rounding"]) for n in shape]
    arguments = (g["window"], g["stride"], g["padding"], g["rounding"])
    largest = np.asarray(max_pool(jnp.array(x), *arguments))
    mean = np.asarray(average_pool(jnp.array(x), *arguments, count_padding=False))
    for position, patch in windows(x, (g["window"],) * ndim, g["stride"], pads, filler=np.nan):
        axes = tuple(range(1, ndim + 1))
        np.testing.assert_array_equal(
            largest[(slice(None), *position)], np.nanmax(patch, axis=axes)
        )
        np.testing.assert_allclose(
            mean[(slice(None), *position)], np.nanmean(patch, axis=axes), rtol=1e-5, atol=1e-6
        )


def test_average_counts_its_padding_as_pytorch_does():
    """By hand: 3 pixels padded by 1, windows of 2 at stride 2, without counting `ceil`'s pixel."""
    x = jnp.array([2.0, 4.0, 6.0]).reshape(1, 3, 1)
    np.testing.assert_allclose(average_pool(x, 2, 2, 1)[0, :, 0], [(0 + 2) / 2, (4 + 6) / 2])
    np.testing.assert_allclose(average_pool(x, 2, 2, 1, count_padding=False)[0, :, 0], [2, 5])
    np.testing.assert_allclose(average_pool(x, 2, 2, 0, "ceil")[0, :, 0], [3, 6])
    np.testing.assert_allclose(average_pool(x, 3, 1)[0, :, 0], [4])  # the whole image


def test_gradient_of_max_pooling_goes_to_the_largest_pixel():
    x = jnp.array([1.0, 3.0, 2.0, 5.0, 5.0, 0.0]).reshape(1, 6, 1)
    gradient = jax.grad(
        lambda x: jnp.sum(max_pool(x, 2, 2) * jnp.array([[[1.0], [10.0], [100.0]]]))
    )(x)[0, :, 0]
    np.testing.assert_allclose(gradient, [0, 1, 0, 10, 100, 0])


def test_whole_numbers_can_be_pooled():
    x = jnp.array([[1, 9], [3, 4]], jnp.uint8).reshape(1, 2, 2, 1)
    assert int(max_pool(x, 2, 2, padding=0)[0, 0, 0, 0]) == 9


@pytest.mark.parametrize(
    ("module", "shape", "output", "parameters"),
    [
        (Conv(10, 5, padding=2), (1, 32, 32, 3), (1, 32, 32, 10), 760),  # the lecture's example
        (Conv(96, 11, stride=4, rounding="exact"), (1, 227, 227, 3), (1, 55, 55, 96), 34_848 + 96),
        (Conv(8, 3, padding=1, use_bias=False, groups=2), (1, 9, 4), (1, 9, 8), 3 * 2 * 8),
        (Conv(8, (3, 1, 1)), (2, 5, 4, 3, 2), (2, 3, 4, 3, 8), 3 * 2 * 8 + 8),
        (Pool("max", 3, 2), (1, 55, 55, 96), (1, 27, 27, 96), 0),
        (Pool("average", 2, 2, rounding="ceil"), (1, 7, 7, 2), (1, 4, 4, 2), 0),
        (Pool("global"), (3, 7, 7, 2), (3, 2), 0),
        (Dense(4), (2, 3, 3, 2), (2, 4), 18 * 4 + 4),
    ],
)
def test_shapes_and_parameters(module, shape, output, parameters):
    variables = jax.eval_shape(
        module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters
    assert (
        jax.eval_shape(module.apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
        == output
    )


def test_compute_type_leaves_parameters_in_float32():
    for module in (Conv(4, dtype=jnp.bfloat16), Dense(4, dtype=jnp.bfloat16)):
        output, variables = module.init_with_output(jax.random.key(0), jnp.ones((1, 5, 5, 1)))
        assert output.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (
            Conv(4, 3, stride=3, rounding="exact", name="conv1"),
            (1, 7, 7, 1),
            r"\(7 - 3\)/3 \+ 1 = 2.33: a 3-wide window",
        ),
        (Conv(4, 3, groups=2), (1, 7, 7, 3), "3 channels / 2 groups is not a whole number"),
        (Conv(5, 3, groups=2), (1, 7, 7, 4), "4 channels in 2 groups do not match 5 filters"),
        (
            Conv(4, (3, 3, 3)),
            (1, 7, 7, 4),
            r"filter size \(3, 3, 3\) has 3 numbers; the input has 2 spatial axes",
        ),
        (Pool("max", 3, 3, rounding="exact"), (1, 7, 7, 1), "does not fit 7"),
        (Pool("min"), (1, 7, 7, 1), "pooling is 'min'; it must be max, average or global"),
    ],
)
def test_what_does_not_fit_is_said(module, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
