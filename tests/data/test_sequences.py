"""Sources of Python sequences: items as data sets of PyTorch and Hugging Face have them."""

import re

import numpy as np
import pytest
from PIL import Image

from jaxconv.data import DamagedError, Source, from_sequence
from jaxconv.errors import UserError
from tests.data.test_arrays import IMAGES, LABELS

COLOUR = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


class Damaged(list):
    """Items whose first `count` cannot be read."""

    def __init__(self, items, count):
        super().__init__(items)
        self.count = count

    def __getitem__(self, i):
        if i < self.count:
            raise DamagedError("it is")
        return super().__getitem__(i)


def test_sequences():
    items = [(image[..., None], label) for image, label in zip(IMAGES, LABELS, strict=True)]
    source = from_sequence(items, ("a", "b", "c"))
    assert (
        isinstance(source, Source)
        and len(source) == 7
        and source.image_shape == (5, 6, 1)
        and source.element.kind == "image"
    )
    np.testing.assert_array_equal(source[-1]["image"], IMAGES[6][..., None])
    assert source.labels_of_all().tolist() == LABELS.tolist() and source.name(3) == "item 3"
    assert source.checksum() != from_sequence(items[:6], "abc").checksum()
    with pytest.raises(IndexError, match="there are 7 examples; example 7 is out of range"):
        source[7]
    assert from_sequence(Damaged(items, 1), "abc").image_shape == (5, 6, 1)
    with pytest.raises(UserError, match="none of the sequence's 7 items can be read"):
        from_sequence(Damaged(items, 7), "abc")
    with pytest.raises(UserError, match="item 1: is 3x2 pixels, but item 0 is 6x5 pixels"):
        from_sequence([items[0], (np.zeros((2, 3, 1), np.uint8), 0)], "ab")[1]
    with pytest.raises(UserError, match="item 1: has the label 2, but the classes are 0 to 1"):
        from_sequence([items[0], (items[1][0], 2)], "ab")[1]
    assert from_sequence([(np.zeros((4, 2), np.float32), 0)], "ab").element.kind == "signal"
    with pytest.raises(UserError, match="the sequence is empty"):
        from_sequence([], "ab")
    with pytest.raises(UserError, match="item 0: the examples are int64"):
        from_sequence([(np.zeros((4, 2), np.int64), 0)], "ab")


@pytest.mark.parametrize(
    ("element", "settings", "shape", "kind", "dtype"),
    [
        (IMAGES[0], {}, (5, 6, 1), "image", "uint8"),
        (Image.fromarray(IMAGES[0]), {}, (5, 6, 1), "image", "uint8"),
        (Image.fromarray(COLOUR), {}, (4, 6, 3), "image", "uint8"),
        (Image.fromarray(COLOUR).convert("P"), {}, (4, 6, 3), "image", "uint8"),
        (Image.fromarray(IMAGES[0]).convert("1"), {}, (5, 6, 1), "image", "uint8"),
        (COLOUR / 255, {}, (4, 6, 3), "image", "float32"),
        (COLOUR.astype(np.float64), {"scale": 255.0}, (4, 6, 3), "image", "float32"),
        (COLOUR.transpose(2, 0, 1) / 255, {"layout": "NCHW"}, (4, 6, 3), "image", "float32"),
        (COLOUR / 255 - 0.5, {}, (4, 6, 3), "signal", "float32"),
        (COLOUR.tolist(), {"scale": 255.0}, (4, 6, 3), "image", "float32"),
    ],
)
def test_elements(element, settings, shape, kind, dtype):
    source = from_sequence([(element, 0), (element, 1)], "ab", **settings)
    assert source.image_shape == shape and source.element.kind == kind
    assert source[1]["image"].dtype == dtype and source.element.dtype == dtype
    if kind == "image" and shape[-1] == 3:
        wanted = COLOUR / 255 if dtype == "float32" else COLOUR
        atol = 60 if isinstance(element, Image.Image) else 1e-6  # a palette has few colours
        np.testing.assert_allclose(source[1]["image"].astype(float), wanted, atol=atol)


def test_tensors():
    torch = pytest.importorskip("torch")
    items = [(torch.full((3, 8, 8), 0.5, requires_grad=True), torch.tensor(i)) for i in range(2)]
    with pytest.raises(UserError, match="3 channels before the others.*layout='NCHW'"):
        from_sequence(items, "ab")
    source = from_sequence(items, "ab", layout="NCHW")
    assert source[1]["label"] == 1 and source[1]["image"].shape == (8, 8, 3)


def test_the_first_says_what_all_are():
    light, dark = COLOUR / 255, COLOUR / 255 - 0.5
    with pytest.raises(UserError, match="item 1: the examples go from -0.496"):
        from_sequence([(light, 0), (dark, 1)], "ab")[1]
    assert from_sequence([(dark, 0), (light, 1)], "ab")[1]["image"].min() >= 0
    grey = Image.fromarray(IMAGES[0]).resize((6, 4))
    source = from_sequence([(Image.fromarray(COLOUR), 0), (grey, 1)], "ab")
    assert source[1]["image"].shape == (4, 6, 3)
    with pytest.raises(UserError, match="item 1: the layout is NHW, and the examples are uint8"):
        from_sequence([(grey, 0), (Image.fromarray(COLOUR), 1)], "ab")[1]
    more = np.concatenate([COLOUR, COLOUR[..., :1]], axis=-1)
    with pytest.raises(UserError, match="item 1: is of 4 channels, but item 0 is of 3 channels"):
        from_sequence([(COLOUR, 0), (more, 1)], "ab")[1]


def test_what_is_not_finite_is_damaged():
    nan = np.full((4, 6, 3), np.nan, np.float32)
    source = from_sequence([(nan, 0), (COLOUR / 255, 1)], "ab")
    assert source.image_shape == (4, 6, 3)
    with pytest.raises(DamagedError, match="infinite or NaN"):
        source[0]


@pytest.mark.parametrize(
    ("keys", "settings", "words"),
    [
        (("image", "label"), {}, ""),
        (("img", "label"), {}, ""),
        (("img", "label", "fine_label"), {}, ""),
        (("pixel_values", "labels"), {}, ""),
        (("img", "fine_label", "coarse_label"), {"label_key": "coarse_label"}, ""),
        (("x", "y"), {"image_key": "x", "label_key": "y"}, ""),
        (
            ("img", "fine_label", "coarse_label"),
            {},
            "item 0: has the keys img, fine_label, coarse_label; choose with "
            "label_key='fine_label' or label_key='coarse_label'",
        ),
        (("x", "label"), {}, "has the keys x, label; choose with image_key='x'"),
        (("img", "label"), {"image_key": "image"}, "and not image_key='image'"),
    ],
)
def test_keys(keys, settings, words):
    items = [dict.fromkeys(keys, i % 2) | {keys[0]: COLOUR} for i in range(4)]
    if words:
        with pytest.raises(UserError, match=re.escape(words)):
            from_sequence(items, "ab", **settings)
    else:
        assert from_sequence(items, "ab", **settings)[3]["label"] == 1


@pytest.mark.parametrize(
    ("label", "read"),
    [
        (1, 1),
        (np.int64(1), 1),
        (np.array([1]), 1),
        (1.0, 1),
        (True, 1),
        ([0, 1], 1),
        (np.array([0.0, 1.0]), 1),
        (0.7, "has the label '0.7'"),
        (None, "the label are NoneType"),
        ([0.5, 0.5], "or a one-hot row"),
        ("cat", "has the label 'cat'"),
    ],
)
def test_labels(label, read):
    items = [(COLOUR, label)] * 2
    if isinstance(read, str):
        with pytest.raises(UserError, match=f"item 0: .*{re.escape(read)}"):
            from_sequence(items, "ab")[0]
    else:
        assert from_sequence(items, "ab")[0]["label"] == read
        assert from_sequence(items, "ab").labels_of_all().tolist() == [read, read]


@pytest.mark.parametrize("item", [COLOUR, (COLOUR, 0, 1), (COLOUR,), "x"])
def test_items_of_other_forms(item):
    with pytest.raises(UserError, match=r"item 0: is a \w+.*; it must be \(element, label\)"):
        from_sequence([item], "ab")


@pytest.mark.parametrize("element", [{"bytes": b"x", "path": ""}, None, "a.jpg", object()])
def test_elements_that_are_none(element):
    with pytest.raises(UserError, match="item 0: "):
        from_sequence([(element, 0)], "ab")
