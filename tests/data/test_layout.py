"""Which axis is what, and on which scale: clear, or refused with the setting that says it."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxconv.data import from_arrays
from jaxconv.data.layout import LAYOUTS, Reading, find_layout, read_elements
from jaxconv.errors import UserError

READING = Reading("them")


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        ((9, 28, 28), np.uint8, "NHW"),
        ((9, 28, 28, 1), np.uint8, "NHWC"),
        ((9, 32, 32, 3), np.float32, "NHWC"),
        ((9, 8, 8, 4), np.uint8, "NHWC"),
        ((9, 3, 3, 3), np.uint8, "NHWC"),
        ((9, 1, 28, 3), np.uint8, "NHWC"),
        ((9, 64, 64, 13), np.uint8, "NHWC"),
        ((9, 100, 2), np.float32, "NLC"),
        ((9, 8, 8, 8, 1), np.float32, "NDHWC"),
    ],
)
def test_clear_layouts(shape, dtype, layout):
    assert find_layout(zeros(*shape, dtype=dtype), READING) == layout


@pytest.mark.parametrize(
    ("shape", "dtype", "settings"),
    [
        ((9, 28, 28), np.float32, ("NHW", "NLC", "NTF")),
        ((9, 1000, 64), np.float32, ("NHW", "NLC", "NTF")),
        ((9, 2, 100), np.float32, ("NCL", "NLC")),
        ((9, 3, 32, 32), np.uint8, ("NCHW", "NHWC")),
        ((9, 3, 32, 32), np.float32, ("NCHW", "NHWC")),
        ((9, 3, 32, 40), np.uint8, ("NCHW", "NHWC")),
        ((9, 1, 28, 28), np.uint8, ("NCHW", "NHWC")),
        ((9, 1, 3, 3), np.uint8, ("NCHW", "NHWC")),
        ((9, 28, 28, 28), np.uint8, ("NHWC", "NCHW", "NDHW")),
        ((9, 13, 64, 64), np.uint8, ("NHWC", "NCHW", "NDHW")),
        ((9, 1, 8, 8, 8), np.float32, ("NCDHW", "NDHWC")),
        ((9, 784), np.float32, ("NL",)),
    ],
)
def test_layouts_that_are_not_clear(shape, dtype, settings):
    """Each of the settings in the message is accepted."""
    array = zeros(*shape, dtype=dtype)
    with pytest.raises(UserError) as raised:
        find_layout(array, READING)
    assert set(re.findall(r"layout='(\w+)'", str(raised.value))) == set(settings)
    for layout in settings:
        elements = read_elements(array, Reading("them", layout))
        assert elements.kind == LAYOUTS[layout] and elements.values.ndim == len(layout) + (
            "C" not in layout
        )


@given(st.sampled_from([*LAYOUTS]), st.data())
def test_every_layout_turns_the_channels_last(layout, data):
    sizes = {axis: data.draw(st.integers(1, 5)) for axis in layout}
    array = np.arange(np.prod([*sizes.values()])).reshape([*sizes.values()]) % 251
    found = read_elements(array.astype(np.uint8), Reading("them", layout, 255.0)).values
    rest = [axis for axis in layout if axis != "C"]
    assert found.shape == (*(sizes[axis] for axis in rest), sizes.get("C", 1))
    for place in np.ndindex(*found.shape):
        index = dict(zip([*rest, "C"], place, strict=True))
        assert found[place] == array[tuple(index[axis] for axis in layout)]


IMAGES = np.linspace(0, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)


@pytest.mark.parametrize(
    ("array", "settings", "kind", "low", "high"),
    [
        (IMAGES, {}, "image", 0, 1),
        (IMAGES.astype(np.float16), {}, "image", 0, 1),
        (1.1 * IMAGES - 0.05, {}, "image", -0.05, 1.05),
        (255 * IMAGES, {"scale": 255.0}, "image", 0, 1),
        ((255 * IMAGES).astype(np.int64), {"scale": 255.0}, "image", 0, 1),
        ((65535 * IMAGES).astype(np.uint16), {"scale": 65535.0}, "image", 0, 1),
        (IMAGES > 0.5, {"scale": 1.0}, "image", 0, 1),
        ((IMAGES > 0.5).astype(np.uint8), {"scale": 1.0}, "image", 0, 1),
        (2 * IMAGES - 1, {}, "signal", -1, 1),
        (255 * IMAGES, {"layout": "NTFC"}, "signal", 0, 255),
    ],
)
def test_scales(array, settings, kind, low, high):
    source = from_arrays(array, [0, 1], **settings)
    assert source.element.kind == kind and source.images.dtype == np.float32
    assert source.images.min() == pytest.approx(low, abs=1e-3)
    assert source.images.max() == pytest.approx(high, abs=1e-3)
    assert bool(source.notes) == (low == -1)


@pytest.mark.parametrize(
    ("array", "settings", "words"),
    [
        (
            255 * IMAGES,
            {},
            "go from 0 to 255, and images .* if 255 is white, set scale=255",
        ),
        (4000 * IMAGES, {}, "if 4095 is white, set scale=4095.0"),
        (9e4 * IMAGES, {}, "if 90000 is white, set scale=90000.0"),
        (2 * IMAGES - 1, {"layout": "NHWC"}, "go from -1 to 1.*not images, set layout='NTFC'"),
        (255 * IMAGES, {"scale": 2.0}, "go from 0 to 127.5"),
        (IMAGES, {"scale": 255.0}, "the largest value is 1, which is black by scale=255.0"),
        ((IMAGES > 0.5).astype(np.uint8), {}, "the largest value is 1, and uint8 goes to 255"),
        ((255 * IMAGES).astype(np.int32), {}, "int32 .*make them uint8"),
        ((5000 * IMAGES).astype(np.int32), {}, "set the value of white, scale=65535.0"),
        (IMAGES.astype(complex), {}, "of complex128; give arrays of numbers"),
        (IMAGES, {"layout": "NHCW"}, "layout is 'NHCW', did you mean 'NHW'"),
        (
            IMAGES,
            {"layout": "NHW"},
            r"the layout is NHW, and the examples are float64 \(2, 8, 8, 3",
        ),
    ],
)
def test_scales_that_are_not_clear(array, settings, words):
    with pytest.raises(UserError, match=words):
        from_arrays(array, [0, 1], **settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("layout", ["", "NTFC"])
def test_numbers_that_are_not_finite_are_named(value, layout):
    array = np.concatenate([IMAGES] * 3)
    array[3, 4, 5, 0] = array[5, 0, 0, 1] = value
    with pytest.raises(UserError, match=r"example 3 of 6 is \S+ at \[4, 5, 0\], and 1 more"):
        from_arrays(array, [0, 1] * 3, layout=layout)


def test_what_the_network_was_trained_with_settles_what_is_open():
    """A workdir of a version that asked nothing is opened as it was."""
    for kind, shape in (("signal", (28, 28)), ("image", (28, 28, 1))):
        like = {"kind": kind, "image_shape": [*shape]}
        found = read_elements(zeros(2, 28, 28, dtype=np.float32), Reading("them", like=like))
        assert found.kind == kind and found.values.shape == (2, *shape)
    like = {"kind": "signal", "image_shape": [8, 8, 3]}
    assert read_elements(255 * IMAGES, Reading("them", like=like)).kind == "signal"


def test_lists():
    from PIL import Image

    picture = (255 * IMAGES[0]).astype(np.uint8)
    for images in ([picture] * 2, [Image.fromarray(picture)] * 2, (picture, picture)):
        source = from_arrays(images, (0, 1))
        np.testing.assert_array_equal(source.images, np.stack([picture] * 2))
    with pytest.raises(UserError, match=r"number 1 is \(4, 8, 3\) and number 0 \(8, 8, 3\)"):
        from_arrays([picture, picture[:4]], [0, 1])
    with pytest.raises(UserError, match="holds no examples"):
        from_arrays([], [])


def test_tensors():
    torch = pytest.importorskip("torch")
    images = torch.tensor(IMAGES.transpose(0, 3, 1, 2), requires_grad=True)
    source = from_arrays(images, torch.tensor([0, 1]), layout="NCHW")
    np.testing.assert_allclose(source.images, IMAGES, atol=1e-6)
    np.testing.assert_allclose(from_arrays([*images], [0, 1], layout="NCHW").images, source.images)
    with pytest.raises(UserError, match="cannot be made an array"):
        from_arrays(images.to(torch.bfloat16), [0, 1])


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1],
        np.array([[0], [1]]),
        np.eye(2),
        np.eye(2, dtype=int).tolist(),
        np.array([False, True]),
        np.array([0, 1], np.uint8),
    ],
)
def test_labels(labels):
    source = from_arrays(IMAGES, labels)
    assert source.labels.tolist() == [0, 1] and source.labels.dtype == np.int32
    assert source.class_names == ("0", "1")


def test_one_hot_rows_say_how_many_classes_there_are():
    assert len(from_arrays(IMAGES, np.eye(10)[[3, 4]]).class_names) == 10
    assert from_arrays(IMAGES, [1, 2], first_label=1).labels.tolist() == [0, 1]
    assert from_arrays(IMAGES, [1, 2], "abc").labels.tolist() == [1, 2]
