"""X's and O's: example i is a function of (seed, split, i), and the settings are the lecture's
trickier cases.
"""

import numpy as np
import pytest

from jaxconv.data import xo
from jaxconv.errors import UserError

ALL = {"translation": 0.15, "scaling": 0.4, "rotation": 45.0, "weight": 0.5, "noise": 0.5}


def test_example_is_a_function_of_seed_split_and_index():
    split = xo.draw_split("train", 16, **ALL, train_examples=20)
    longer = xo.draw_split("train", 16, **ALL, train_examples=30)
    np.testing.assert_array_equal(split.images, longer.images[:20])
    for i in (0, 7, 19):
        image, label = xo.draw(0, "train", i, 16, xo.Variation(**ALL))
        np.testing.assert_array_equal(split[i]["image"], image)
        assert split[i]["label"] == label
    other = xo.draw_split("train", 16, **ALL, train_examples=20, seed=1)
    assert not np.array_equal(split.images, other.images)


def test_train_and_test_never_share_an_image():
    train = xo.draw_split("train", **ALL, train_examples=3000)
    test = xo.draw_split("test", **ALL, test_examples=1000)
    images = {image.tobytes() for image in train.images}
    assert len(images) == 3000
    assert not images & {image.tobytes() for image in test.images}


def test_shapes_and_classes():
    split = xo.draw_split("test", 20, test_examples=100)
    assert split.images.shape == (100, 20, 20, 1) and split.images.dtype == np.uint8
    assert split.class_names == ("o", "x") and set(split.labels.tolist()) == {0, 1}
    assert 30 < split.labels.sum() < 70


def figures(label, size=33, **variation):
    return [
        image[..., 0].astype(float)
        for image, drawn in (
            xo.draw(0, "train", i, size, xo.Variation(**variation)) for i in range(40)
        )
        if drawn == label
    ]


@pytest.mark.parametrize("label", [0, 1])
def test_each_setting_does_what_it_says(label):
    """Measured on the images: the centre of mass, the extent, the ink and single pixels vary."""
    rows = np.arange(33.0)

    def centre(image):
        return (image.sum(1) @ rows) / image.sum()

    def extent(image):
        return np.ptp(np.flatnonzero(image.max(1) > 127))

    plain = figures(label)
    assert all(np.array_equal(image, plain[0]) for image in plain)
    assert np.ptp([centre(image) for image in figures(label, translation=0.1)]) > 3
    assert np.ptp([extent(image) for image in figures(label, scaling=0.3)]) > 5
    assert np.ptp([image.sum() for image in figures(label, weight=0.5)]) > 0.3 * plain[0].sum()
    assert np.std(figures(label, noise=0.3)[0] - plain[0]) > 10
    turned = figures(label, rotation=45.0)
    assert np.std([centre(image) for image in turned]) < 0.2  # rotated about the centre
    if label == 1:
        assert np.ptp([extent(image) for image in turned]) > 3  # and a circle stays one


def test_o_is_a_ring():
    ring = figures(0, size=9)[0]
    assert ring[4, 4] == 0 and ring[4, 1] == ring[1, 4] == ring[7, 4] == 255
    np.testing.assert_array_equal(ring, ring[::-1])
    np.testing.assert_array_equal(ring, ring.T)


CROSS = [[(0.1, 0.3), (0.5, 0.7)], [(0.1, 0.7), (0.5, 0.3)]]
RING = [[(0.6 + 0.2 * np.cos(t), 0.4 + 0.2 * np.sin(t)) for t in np.linspace(0, 2 * np.pi, 100)]]


@pytest.mark.parametrize(("label", "strokes"), [(1, CROSS), (0, RING)])
@pytest.mark.parametrize("size", [9, 32])
def test_a_drawing_that_is_fitted_is_the_example(label, strokes, size):
    """Two lines at any position and size give the source's X, pixel by pixel; a polygon with 100
    corners gives almost its O.
    """
    example = next(
        image
        for image, drawn in (xo.draw(0, "train", i, size) for i in range(40))
        if drawn == label
    )
    np.testing.assert_allclose(
        xo.draw_strokes(strokes, size, fit=True).astype(int), example, atol=1 if label else 3
    )


def test_a_drawing_stays_where_it_is_and_its_pen_has_a_weight():
    dot = [[(0.25, 0.75)]]
    image = xo.draw_strokes(dot, 33)[..., 0]
    # A quarter of 33 pixels ends at 8.25, and a pixel's center is half a pixel from its edge.
    rows, columns = (np.average(place, weights=image) for place in np.indices(image.shape))
    assert image.max() == 255 and abs(rows - 24.25) < 0.1 and abs(columns - 7.75) < 0.1
    thin, thick = (
        int(xo.draw_strokes(CROSS, 33, weight).astype(int).sum()) for weight in (-0.5, 0.5)
    )
    assert thin < xo.draw_strokes(CROSS, 33).sum() < thick
    assert xo.draw_strokes(dot, 33, fit=True)[16, 16] == 255
    assert not xo.draw_strokes([], 33).any() and not xo.draw_strokes([[]], 33, fit=True).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "val"}, "xo has no split 'val'; it has train and test"),
        ({"size": 3}, "xo.size is 3"),
        ({"noise": -1.0}, "xo.noise is -1.0; it must lie between 0 and 10"),
        ({"scaling": 1.5}, "xo.scaling is 1.5"),
        ({"train_examples": 0}, "xo.train_examples is 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        xo.draw_split(**{"split": "train", "train_examples": 2, **settings})


@pytest.mark.parametrize("weight", [-0.9, 0.0, 0.9])
def test_a_long_drawing_is_all_of_its_pieces(weight):
    """Ink is where any segment has ink, whatever the number that is drawn at a time, and where they
    leave the canvas.
    """
    line = np.random.default_rng(0).normal(0, 0.15, (90, 2)).cumsum(0) * 0.3 + 0.4
    assert line.min() < 0 or line.max() > 1
    alone = np.max(
        [xo.draw_strokes([pair], 40, weight) for pair in zip(line, line[1:], strict=False)], axis=0
    )
    np.testing.assert_array_equal(xo.draw_strokes([line], 40, weight), alone)
