"""Filters and feature maps: the default layer, and the numbers in the tiles."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.inspect.inside import activations
from jaxconv.look.filters import activation_maps, filters, find_kernel


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def arrays(figure):
    return [np.asarray(image.get_array()) for image in figure.axes[0].images]


class Own(nn.Module):
    """Creates its layers in another order than it calls them."""

    @nn.compact
    def __call__(self, x):
        second = nn.Conv(4, (3, 3), name="a_second")
        first = nn.Conv(2, (5, 5), name="b_first")
        return nn.Dense(3)(second(first(x)).mean((1, 2)))


def test_the_first_convolution_is_the_one_that_is_called_first():
    variables = Own().init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    layer, kernel = find_kernel(Own(), variables, (8, 8, 3))
    assert layer == "b_first" and kernel.shape == (5, 5, 3, 2)
    np.testing.assert_array_equal(
        find_kernel(Own(), variables, (8, 8, 3), "a_second")[1],
        variables["params"]["a_second"]["kernel"],
    )
    with pytest.raises(
        ValueError,
        match="no convolution is called 'a_secund', did you mean 'a_second'\\?; the convolutions "
        "are b_first, a_second",
    ):
        find_kernel(Own(), variables, (8, 8, 3), "a_secund")
    dense = nn.Dense(3)
    with pytest.raises(ValueError, match="Dense has no convolution"):
        find_kernel(dense, dense.init(jax.random.key(0), jnp.ones((1, 4, 4, 1))), (4, 4, 1))


def test_a_layer_inside_a_block():
    model = jaxconv.create_model("resnet20_cifar", 10)
    variables = jax.eval_shape(
        lambda key: model.init(key, jnp.ones((1, 32, 32, 3)), train=False), jax.random.key(0)
    )
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    assert find_kernel(model, variables, (32, 32, 3))[0] == "conv1/conv"
    assert find_kernel(model, variables, (32, 32, 3), "conv3_1/conv2/conv")[1].shape == (
        3,
        3,
        32,
        32,
    )


def test_colour_filters_are_tiles_around_grey():
    kernel = np.random.default_rng(0).normal(size=(5, 5, 3, 4))
    figure = filters(kernel, title="first")
    drawn = arrays(figure)
    assert len(drawn) == 4 and texts(figure) == ["first: 4 of 5x5x3", "0", "1", "2", "3"]
    np.testing.assert_allclose(
        (2 * drawn[2] - 1) * np.abs(kernel[..., 2]).max(), kernel[..., 2], atol=1e-6
    )


def test_signed_tiles_of_channels_are_scaled_by_filter():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 5))
    drawn = arrays(filters(kernel))
    assert len(drawn) == 10
    np.testing.assert_allclose(drawn[7], kernel[:, :, 1, 3] / np.abs(kernel[..., 3]).max())
    image = filters(kernel).axes[0].images[0]
    assert image.get_clim() == (-1, 1)
    many = filters(np.ones((3, 3, 20, 40)))
    assert (
        len(arrays(many)) == 96
        and "the first 12 of them and the first 8 of 20 channels" in texts(many)[0]
    )


@pytest.mark.parametrize(
    ("shape", "images", "curves"),
    [
        ((9, 2, 4), 0, 8),
        ((9, 16, 4), 4, 0),
        ((3, 4, 5, 1, 6), 18, 0),
        ((1, 1, 7, 9), 1, 0),
        ((1, 64, 5), 1, 0),
    ],
)
def test_other_dimensions(shape, images, curves):
    kernel = np.random.default_rng(0).normal(size=shape)
    figure = filters(kernel)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert len(arrays(figure)) == images and len(lines) == curves
    if shape == (1, 64, 5):  # drawn transposed, wider than high
        np.testing.assert_array_equal(arrays(figure)[0], kernel[0].T)
    if shape == (3, 4, 5, 1, 6):
        np.testing.assert_allclose(
            arrays(figure)[4], kernel[1, :, :, 0, 1] / np.abs(kernel[..., 1]).max()
        )
    with pytest.raises(ValueError, match="1-D, 2-D and 3-D"):
        filters(np.ones((1, 1, 1, 1, 1, 1)))


def test_feature_maps_come_strongest_first():
    value = np.zeros((4, 4, 3), np.float32)
    value[1, 2, 0], value[0, 0, 1], value[3, 3, 2] = 1, -5, 2
    figure = activation_maps(value, np.zeros((8, 8, 3), np.uint8), "conv9")
    shown = arrays(figure)
    assert texts(figure) == ["conv9, 3 maps of 4x4", "1", "2", "0"] and shown[-1].shape == (8, 8, 3)
    for image, place in zip(shown, (1, 2, 0), strict=False):
        np.testing.assert_array_equal(image, value[..., place])
    assert figure.axes[0].images[0].get_clim() == (-5, 5)
    assert (
        texts(activation_maps(value, np.zeros((8, 8, 1)), "conv9", most=2))[0]
        == "conv9, 3 maps of 4x4, the 2 strongest"
    )


def test_vectors_are_bars_and_waves_are_curves():
    logits = np.array([2.0, -1.0, 0.5])
    figure = activation_maps(logits, "a text", "votes", ("cat", "dog", "fox"))
    heights = [
        bar.get_height()
        for bar in figure.axes[0].patches
        if bar.get_width() > 1.5 and bar.get_fill() is not False
    ]
    assert -2 * heights[1] == pytest.approx(heights[0]) and [
        t for t in texts(figure) if "cat" in t
    ] == ["cat\n2"]
    waves = activation_maps(
        np.random.default_rng(0).normal(size=(50, 6)), np.zeros((50, 1)), "conv1"
    )
    assert len([line for line in waves.axes[0].lines if len(line.get_xdata()) == 50]) == 7


def test_maps_of_a_network_are_its_activations():
    model = jaxconv.create_model("chain", 2, filters=(3,))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    value = np.asarray(activations(model, variables, x)["pool1"][0])
    drawn = arrays(activation_maps(value, x[0], "pool1"))
    assert sorted(image.sum() for image in drawn[:3]) == pytest.approx(
        sorted(value.sum(axis=(0, 1)))
    )
