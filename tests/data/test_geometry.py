"""Boxes: inside the image, as torchvision draws them, and what the papers' resizing and cropping
keeps.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxconv.config import default_config
from jaxconv.data.geometry import crop_box, eval_box, jitter_box, train_box
from jaxconv.data.interface import generator

SIDES = st.integers(1, 900)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(0, 100), st.floats(0.01, 1), st.floats(0.2, 1))
def test_boxes_lie_inside_the_image(height, width, seed, least, ratio):
    random = generator(seed, "boxes")
    boxes = [
        crop_box(random, height, width, (least, 1.0), (ratio, 1 / ratio)),
        jitter_box(random, height, width, 224, (256, 512)),
        eval_box(height, width, 224, 0.875),
    ]
    for top, left, h, w in boxes:
        assert top >= 0 and left >= 0 and 1 <= h <= height - top and 1 <= w <= width - left


def test_crop_box_covers_shares_and_ratios_evenly():
    random = generator(0, "boxes")
    boxes = np.array([crop_box(random, 1000, 1000, (0.25, 0.5), (0.5, 2.0)) for _ in range(4000)])
    share, ratio = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    np.testing.assert_allclose(
        np.quantile(share, [0.001, 0.5, 0.999]), [0.25, 0.375, 0.5], atol=0.012
    )
    np.testing.assert_allclose(
        np.quantile(np.log2(ratio), [0.001, 0.5, 0.999]), [-1, 0, 1], atol=0.06
    )
    free = 1000 - boxes[:, 2:]
    assert np.all(boxes[:, :2] <= free) and abs(np.mean(boxes[:, :2] / free) - 0.5) < 0.02


def test_crop_box_falls_back_to_the_middle():
    """An image that no box of these ratios fits at this share, by torchvision's arithmetic."""
    assert crop_box(generator(0, 0), 100, 1000, (1.0, 1.0)) == (0, 433, 100, 133)
    assert crop_box(generator(0, 0), 1000, 100, (1.0, 1.0)) == (433, 0, 133, 100)
    assert crop_box(generator(0, 0), 100, 100, (1.0, 1.0), (1.0, 1.0)) == (0, 0, 100, 100)


def test_scale_jitter_covers_its_scales():
    random = generator(0, "jitter")
    sides = {jitter_box(random, 512, 800, 224, (256, 512))[2] for _ in range(3000)}
    assert (min(sides), max(sides)) == (224, 448)
    tops = {jitter_box(random, 256, 256, 224, (256, 256))[:2] for _ in range(5000)}
    assert {top for top, _ in tops} == {left for _, left in tops} == set(range(33))
    with pytest.raises(
        ValueError, match="scale_jitter begins at 200 pixels, less than the 224 of the crop"
    ):
        jitter_box(random, 500, 500, 224, (200, 512))


def test_eval_box_is_the_middle_after_resizing():
    assert eval_box(256, 341, 224, 0.875) == (16, 58, 224, 224)
    assert eval_box(512, 512, 224, 0.875) == (32, 32, 448, 448)
    assert eval_box(235, 235, 224, 0.95) == (5, 5, 224, 224)
    assert eval_box(10, 20, 224) == (0, 5, 10, 10)


def test_train_box_is_what_the_config_asks_for():
    augment = default_config().augment
    assert train_box(generator(0, 0), 300, 400, 224, augment) == (0, 50, 300, 300)
    augment.scale_jitter = (256, 512)
    assert train_box(generator(0, 0), 300, 400, 224, augment) == jitter_box(
        generator(0, 0), 300, 400, 224, (256, 512)
    )
    augment.scale_jitter, augment.random_resized_crop.scale = (), (0.08, 1.0)
    assert train_box(generator(0, 0), 300, 400, 224, augment) == crop_box(generator(0, 0), 300, 400)
