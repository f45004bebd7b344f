"""The patches that excite a feature map most, on networks that detect a known pattern."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.inspect.zeiler import patches_figure, strongest_patches
from jaxconv.layers import Conv, max_pool

pytestmark = pytest.mark.slow

CROSS = np.array([[1, -1, 1], [-1, 1, -1], [1, -1, 1]], np.float32)
PLUS = -CROSS


class Looks(nn.Module):
    """Detects an X and a +; the second layer detects an X 4 pixels below a +."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Conv(2, 3, padding=1, name="conv1")(x))
        x = Relu(name="relu1")(x)
        x = max_pool(x, 2, 2)
        return Conv(1, (3, 1), use_bias=False, name="conv2")(x)


class Relu(nn.Module):
    def __call__(self, x):
        return nn.relu(x)


VARIABLES = {
    "params": {
        "conv1": {
            "kernel": jnp.stack([CROSS, PLUS], -1)[:, :, None],
            "bias": jnp.array([-8.0, -8.0]),
        },
        "conv2": {"kernel": jnp.array([[[[0.0], [1.0]]], [[[0.0], [0.0]]], [[[1.0], [0.0]]]])},
    }
}


def planted(count=15):
    """Images with one X each, at random positions and of increasing strength; and the positions."""
    random = np.random.default_rng(0)
    images, places = (
        np.zeros((count, 12, 13, 1), np.float32),
        random.integers(0, (12, 13), (count, 2)),
    )
    for n, (row, column) in enumerate(places):
        padded = np.zeros((14, 15), np.float32)
        padded[row : row + 3, column : column + 3] = CROSS * (1 + n / 100)
        images[n, ..., 0] = padded[1:-1, 1:-1]
    return images, places


def test_the_nine_strongest_are_those_that_were_planted():
    images, places = planted()
    # Only an X completely inside the image matches the whole filter.
    whole = ((places > 0) & (places < (11, 12))).all(axis=1)
    expected = [n for n in range(14, -1, -1) if whole[n]][:9]
    assert len(expected) == 9
    batches = (images[start : start + 4] for start in range(0, 15, 4))
    found = strongest_patches(Looks(), VARIABLES, batches, "conv1", maps=(0,))
    assert found.examples[0].tolist() == expected
    np.testing.assert_array_equal(found.positions[0], places[expected])
    np.testing.assert_array_equal(found.corners[0], places[expected] - 1)
    strength = 1 + np.array(expected, np.float32) / 100
    np.testing.assert_allclose(found.values[0], 9 * strength - 8, rtol=1e-5)
    np.testing.assert_allclose(found.patches[0, ..., 0], CROSS * strength[:, None, None])
    np.testing.assert_allclose(
        found.projections[0, ..., 0], CROSS * found.values[0][:, None, None], rtol=1e-5
    )


def test_through_rectifier_and_switch():
    """An X 4 pixels below a +: the projection shows both in place, and nothing else."""
    image = np.zeros((1, 12, 12, 1), np.float32)
    image[0, 2:5, 4:7, 0], image[0, 6:9, 3:6, 0] = PLUS, CROSS
    found = strongest_patches(Looks(), VARIABLES, [image], "conv2")
    assert found.values.tolist() == [[2.0]] and found.positions.tolist() == [[[1, 2]]]
    # 3 rows of the pooled map are 6 rows before pooling, whose windows extend one pixel further on
    # both sides.
    assert found.corners.tolist() == [[[1, 3]]] and found.patches.shape == (1, 1, 8, 4, 1)
    np.testing.assert_allclose(found.patches[0], image[:, 1:9, 3:7])
    np.testing.assert_allclose(found.projections[0], 2 * image[:, 1:9, 3:7])


def test_a_field_larger_than_the_image_and_a_patch_beyond_its_edge():
    images, _ = planted(3)
    model = jaxconv.create_model("chain", 2, filters=(4, 4, 4), filter_size=5)
    variables = model.init(jax.random.key(0), images, train=False)
    found = strongest_patches(model, variables, [images], "conv3_1", maps=(2, 0), most=2)
    assert (
        found.patches.shape == found.projections.shape == (2, 2, 12, 13, 1)
        and (found.corners == 0).all()
    )
    np.testing.assert_array_equal(found.patches, images[found.examples])
    corner = np.zeros((1, 12, 13, 1), np.float32)
    corner[0, 0, 0] = 20
    found = strongest_patches(Looks(), VARIABLES, [corner], "relu1", maps=(0,))
    # Of the 4 windows that contain the pixel, the first whose weight for it is 1 wins: the one
    # centred on the pixel.
    assert found.positions.tolist() == [[[0, 0]]] and found.corners.tolist() == [[[-1, -1]]]
    assert found.patches[0, 0, :, :, 0].tolist() == [[0, 0, 0], [0, 20, 0], [0, 0, 0]]
    assert found.projections[0, 0, :, :, 0].tolist() == [[0, 0, 0], [0, 12, -12], [0, -12, 12]]


def test_order_and_batches_do_not_matter():
    images, _ = planted()
    one = strongest_patches(Looks(), VARIABLES, [images], "conv1", most=4)
    many = strongest_patches(
        Looks(), VARIABLES, (images[n : n + 1] for n in range(15)), "conv1", most=4
    )
    for name in ("values", "examples", "positions", "patches", "projections"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-6, err_msg=name)
    assert (np.diff(one.values, axis=1) <= 0).all()
    # Equal images: the earliest ones are chosen.
    same = strongest_patches(Looks(), VARIABLES, [images[:1]] * 5, "conv1", most=3)
    assert same.examples.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    ("layer", "arguments", "shape", "message"),
    [
        ("cnv1", {}, (2, 8, 8, 1), "no layer is called 'cnv1', did you mean 'conv1'"),
        (
            "conv1",
            {"maps": (2,)},
            (2, 8, 8, 1),
            "conv1 has no feature map 2; its feature maps are 0 to 1",
        ),
        ("conv1", {"most": 0}, (2, 8, 8, 1), "most is 0"),
        (
            "conv1",
            {},
            (2, 8, 1),
            r"floating-point images \[N, H, W, C\]; these are float32 \(2, 8, 1\)",
        ),
    ],
)
def test_what_cannot_be(layer, arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        strongest_patches(Looks(), VARIABLES, [np.zeros(shape, np.float32)], layer, **arguments)
    with pytest.raises(ValueError, match="there are no images"):
        strongest_patches(Looks(), VARIABLES, [], "conv1")


def test_figure():
    images, _ = planted()
    found = strongest_patches(Looks(), VARIABLES, [images], "conv1")
    figure = patches_figure(found, (0.5,), (0.5,))
    pictures = [drawn.get_array() for drawn in figure.axes[0].images]
    # Nine projections of each of two feature maps, each with its patch.
    assert len(pictures) == 36 and {picture.shape for picture in pictures} == {(3, 3)}
    np.testing.assert_allclose(pictures[0], (CROSS + 1) / 2, atol=1e-6)
    strength = 1 + found.examples[0] / 100
    np.testing.assert_allclose(
        pictures[17], np.clip((CROSS * strength[8] + 1) / 2, 0, 1), atol=1e-6
    )
    assert [
        text.get_text()
        for text in figure.axes[0].texts
        if text.get_text()[-1].isdigit() and "feature" in text.get_text()
    ] == [
        "feature map 0",
        "feature map 1",
    ]


def test_the_usual_layer_sees_half_of_the_image():
    images = np.ones((2, 16, 16, 1), np.float32)
    model = jaxconv.create_model("chain", 2, filters=(4, 4, 4))
    # Receptive fields of 3, 4, 8 and 10 pixels.
    assert (
        strongest_patches(model, model.init(jax.random.key(0), images, train=False), [images]).layer
        == "conv2_1"
    )
    with pytest.raises(ValueError, match="no layer of this module has spatial axes"):
        strongest_patches(nn.Sequential([jnp.ravel]), {}, [images])
