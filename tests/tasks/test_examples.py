"""Example predictions: the text next to each image, the worst mistakes, the confused pairs."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from jaxconv.drawing.confusions import confusions
from jaxconv.drawing.samples import captioned_grid, text_grid
from jaxconv.drawing.sheet import RIGHT, WRONG
from jaxconv.tasks.classification.examples import OTHER, mistakes, predictions
from jaxconv.tasks.classification.outcomes import Outcomes, worst
from jaxconv.tasks.confused import most_confused

NAMES = ("cat", "dog", "fox", "owl")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
LABELS = np.array([0, 2, 3])
SHARES = np.array([[0.7, 0.1, 0.15, 0.05], [0.6, 0.1, 0.29, 0.01], [0.5, 0.3, 0.19, 0.01]])


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def bars(figure):
    """(width, colour) of the filled rectangles."""
    return [
        (patch.get_width(), to_hex(patch.get_facecolor()))
        for patch in figure.axes[0].patches
        if patch.get_fill()
    ]


def test_top_three_with_right_and_wrong_marked():
    figure = predictions(IMAGES, LABELS, SHARES, NAMES, title="run")
    assert texts(figure)[:2] == ["run: example predictions", "1 of these 3 are right"]
    assert [text for text in texts(figure)[2:] if "%" not in text] == [
        "✓ cat", "fox", "dog", "✗ cat", "✓ fox", "dog", "✗ cat", "dog", "fox", "is: owl"
    ]  # fmt: skip
    widths, colours = zip(*bars(figure), strict=True)
    np.testing.assert_allclose(
        np.array(widths) / 1.5, [0.7, 0.15, 0.1, 0.6, 0.29, 0.1, 0.5, 0.3, 0.19]
    )
    assert colours == (RIGHT, OTHER, OTHER, WRONG, RIGHT, OTHER, WRONG, OTHER, OTHER)
    np.testing.assert_array_equal(figure.axes[0].images[1].get_array(), IMAGES[1])


def test_without_labels_nothing_is_marked():
    figure = predictions(["a text of $x$"], [-1], SHARES[:1], NAMES)
    assert not [
        text for text in texts(figure) if "✓" in text or "✗" in text
    ] and "a text of $x$" in texts(figure)
    assert {colour for _, colour in bars(figure)} == {OTHER}


def test_worst_mistakes():
    found = Outcomes(LABELS, np.log(SHARES), NAMES)
    places = worst(found, 5)
    written = texts(mistakes(IMAGES[places], found, places, ["#7", "#8"]))
    assert written[2:] == [
        "✗ cat, 50.0 %",
        "is: owl, 1 %",
        "loss 4.61  #7",
        "✗ cat, 60.0 %",
        "is: fox, 29 %",
        "loss 1.24  #8",
    ]
    assert "no mistakes" in texts(mistakes([], found, []))


def test_confused_pairs():
    counts = np.array([[1, 2, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    figure = confusions(
        counts, NAMES, most_confused(counts, 2), [[IMAGES[0], IMAGES[1]], [IMAGES[2]]]
    )
    written = texts(figure)
    assert "3 of 8 are right; rows are the true classes, columns the predicted ones" in written
    assert (
        "cat → dog" in written
        and "2, 67 %" in written
        and "dog → cat" in written
        and "1, 50 %" in written
    )
    assert [width for width, _ in bars(figure)] == [1.8, 0.9] and len(figure.axes[0].images) == 4
    assert sum(text in ("1", "2") for text in written) == 7  # the cells that are not 0


def test_many_classes_have_lists_instead_of_a_matrix():
    counts = np.diag(np.arange(1, 101)) + np.eye(100, k=1, dtype=int) * 3
    written = texts(
        confusions(counts, [f"class {k}" for k in range(100)], most_confused(counts, 4), most=4)
    )
    assert "least often right, of 100 classes" in written
    assert [text for text in written if " of " in text and text[0].isdigit()][1:] == [
        "1 of 4",
        "2 of 5",
        "3 of 6",
        "4 of 7",
    ]
    assert "class 0 → class 1" in written
    assert "nothing is confused" in texts(confusions(np.diag([3, 4]), NAMES[:2], []))


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5, 1), (40, 1), (4, 5, 6, 1)])
def test_samples_of_any_kind(shape):
    elements = np.random.default_rng(0).uniform(size=(3, *shape))
    figure = captioned_grid(elements, NAMES[:3])
    assert [text for text in texts(figure) if text in NAMES] == ["cat", "dog", "fox"]
    if len(shape) == 2:
        assert len(figure.axes[0].lines) == 3
    else:
        expected = (
            elements[1]
            if shape[-1] == 3
            else elements[1][..., 0]
            if len(shape) == 3
            else elements[1][2, ..., 0]
        )
        np.testing.assert_allclose(figure.axes[0].images[1].get_array(), expected)


def test_texts_one_a_line():
    assert texts(text_grid(["$5 for a dog"], ["dog"])) == [f"{'dog':18}  $5 for a dog"]
