"""Maps over images and over the letters of texts."""

import jax
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxconv.config import default_config
from jaxconv.data.signals import encode_text, letters_of
from jaxconv.inspect.attribution import integrated_gradients, occlusion
from jaxconv.look.opened import OpenedNetwork
from jaxconv.look.overlays import attribution_figure, text_attribution_figure
from jaxconv.models import from_text
from jaxconv.tasks import open_task
from jaxconv.train.transforms import make_transforms


def test_figure():
    image = np.full((6, 6, 3), 128, np.uint8)
    signed, spread = np.zeros((6, 6, 3)), np.linspace(0, 1, 36).reshape(6, 6)
    signed[0, 0], signed[5, 5] = 1, -2
    figure = attribution_figure(
        image, {"a_$1$\nsays": signed, "b": spread, "nothing": np.zeros((6, 6))}, "cat $x$"
    )
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in texts if text[:1].isalpha()] == [
        "cat $x$",
        "example",
        "a_$1$",
        "says",
        "b",
        "nothing",
    ]
    pictures = [drawn.get_array() for drawn in figure.axes[0].images]
    # Sums over the channels: 3 for the class in red, 6 against it in blue. Where the map is 0, the
    # example shows through in faint grey.
    assert (pictures[0] == 128).all() and [p.shape for p in pictures[1::2]] == [(6, 6, 3)] * 3
    overlay = pictures[1]
    assert overlay[0, 0, 0] > overlay[0, 0, 2] + 0.2 and overlay[5, 5, 2] > overlay[5, 5, 0] + 0.2
    np.testing.assert_allclose(overlay[2, 2], 0.45 + 0.5 * 128 / 255)
    assert np.allclose(pictures[5], 0.45 + 0.5 * 128 / 255)
    # Scales of signed maps are symmetric around 0; others start at 0.
    assert [p.min() == -p.max() for p in pictures[2::2]] == [True, False, False]
    assert [round(float(p.max()), 2) for p in pictures[2::2]] == [5.47, 1.0, 1.0]
    with pytest.raises(
        ValueError, match=r"the map 'c' has shape \(5, 6\); the example has \(6, 6\)"
    ):
        attribution_figure(image, {"c": np.zeros((5, 6))})


def colours(figure):
    """The colours of the letters of a figure, in order."""
    return [to_rgb(patch.get_facecolor()) for patch in figure.axes[0].patches if patch.get_fill()]


def test_letters_are_coloured():
    letters, values = list("a dog") * 20, np.zeros((120, 3))
    values[2, 0], values[3, 1], values[3, 2], values[84] = 4, -3, -1, (1, 1, 2)
    figure = text_attribution_figure(
        letters, {"one\nsays": values, "none": np.zeros(100)}, "it is $x$"
    )
    shown = colours(figure)
    assert len(shown) == 200 and shown[100:] == [shown[0]] * 100
    red, blue, white = shown[2], shown[3], shown[0]
    assert (
        red[0] > red[2] + 0.2
        and blue[2] > blue[0] + 0.2
        and min(white) > 0.9
        and shown[84] == red
        and shown[4] == white
    )
    words = [text.get_text() for text in figure.axes[0].texts]
    assert (
        words[:3] == ["it is $x$", "one", "says; the deepest red is 4"]
        and words.count("d") == 40
        and " " not in words
    )
    places = {text.get_position() for text in figure.axes[0].texts if text.get_text() == "g"}
    assert len(places) == 40 and len({y for _, y in places}) == 4  # two lines for each map
    with pytest.raises(ValueError, match="the map 'short' has 3 positions; the text has 100"):
        text_attribution_figure(letters, {"short": np.zeros(3)})
    text_attribution_figure([], {"one": np.zeros(4)}).draw_without_rendering()


@pytest.mark.parametrize("alphabet", ["", "abc "])
def test_letters_stand_at_their_positions(alphabet):
    assert letters_of(encode_text("ab c", 9, alphabet), alphabet) == ["a", "b", " ", "c"]
    assert letters_of(encode_text("", 4, alphabet), alphabet) == []


def test_letters_of_several_bytes():
    assert letters_of(encode_text("añ€!", 12, ""), "") == ["a", "ñ", "", "€", "", "", "!"]
    assert letters_of(np.array([97, 255, 98], np.uint8), "") == ["a", "\ufffd", "b"]
    assert letters_of(encode_text("€", 2, ""), "") == ["\ufffd", "\ufffd"]


def test_what_speaks_for_a_class_of_texts_by_construction():
    """A network that counts the letter b: gradients find each b, and a gap removes those in it."""
    config = default_config()
    config.data.text.alphabet, config.data.text.length = "ab", 12
    data = {
        "image_shape": [12, 3],
        "kind": "text",
        "cropped": False,
        "class_names": ["none", "many"],
        "stored": [12],
    }
    model = from_text("globalpool fc", 2)
    variables = jax.jit(lambda key: model.init(key, np.zeros((1, 12, 3), np.float32), train=False))(
        jax.random.key(0)
    )
    kernel = np.zeros((3, 2), np.float32)
    kernel[2, 1] = 12
    (layer,) = variables["params"]
    variables = {"params": {layer: {"kernel": kernel, "bias": np.zeros(2, np.float32)}}}
    looked = OpenedNetwork(
        "counts",
        model,
        variables,
        make_transforms(config, data)[1],
        open_task(config, data),
        ("none", "many"),
        config,
        data,
    )
    element = encode_text("aababaa", 12, "ab")
    x, said = looked.inputs(element[None]), np.array([1])
    shares = integrated_gradients(model, variables, x, said, looked.nothing, steps=4)[0].sum(-1)
    np.testing.assert_allclose(shares, [0, 0, 1, 0, 1, *[0] * 7], atol=1e-5)
    assert looked.hiding["window"] == 5
    lost = np.asarray(occlusion(model, variables, x, said, stride=1, **looked.hiding)[0])
    sure = [1 / (1 + np.exp(-b)) for b in range(3)]
    gaps = [sure[2] - sure[sum(not start <= b < start + 5 for b in (2, 4))] for start in range(8)]
    wanted = [
        np.mean([gap for start, gap in enumerate(gaps) if start <= place < start + 5])
        for place in range(12)
    ]
    np.testing.assert_allclose(lost, wanted, atol=1e-5)
    assert "b" in [
        text.get_text()
        for text in looked.explained(element, {"shares": shares}, "counts").axes[0].texts
    ]
