"""Scenes of X's and O's: exact masks and boxes, a function of (seed, split, i) alone."""

import numpy as np
import pytest

from jaxconv.data.objects import of_bits
from jaxconv.data.scenes import draw_scene, draw_scenes
from jaxconv.errors import UserError


@pytest.mark.parametrize("index", range(12))
def test_masks_and_boxes_are_exact(index):
    """Without noise a pixel is of a letter where it has more ink than paper; boxes enclose it."""
    scene = draw_scene(0, "train", index, noise=0)
    np.testing.assert_array_equal(scene.mask > 0, scene.image[..., 0] > 127)
    assert 1 <= len(scene.boxes) <= 5 and set(scene.classes) <= {1, 2}
    inside = np.zeros_like(scene.mask, bool)
    for box in scene.boxes:
        top, left, bottom, right = box.astype(int)
        inside[top:bottom, left:right] = True
        edges = (scene.mask[top, left:right], scene.mask[bottom - 1, left:right])
        assert all(edge.any() for edge in edges)
    assert not scene.mask[~inside].any()


def test_masks_of_letters_are_their_ink():
    """Also that below another letter; the later letter is what the class of a pixel says."""
    split = draw_scenes("test", test_examples=30, unmasked=True, instances=True)
    assert split.targets["masks"].moves == "mask"
    overlapping = 0
    for n in range(30):
        scene, inks = draw_scene(0, "test", n), of_bits(split.arrays["masks"][n], 5)
        np.testing.assert_array_equal(inks[: len(scene.inks)], scene.inks)
        assert not inks[len(scene.inks) :].any()
        np.testing.assert_array_equal(inks.any(axis=0), scene.mask > 0)
        overlapping += (inks.sum(axis=0) > 1).any()
        for ink, box, label in zip(scene.inks, scene.boxes, scene.classes, strict=True):
            rows, columns = np.nonzero(ink)
            assert [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1] == box.tolist()
            own = ink & (scene.inks.sum(axis=0) == 1)
            assert set(scene.mask[own]) == {label}
    assert overlapping
    assert "masks" not in draw_scenes("test", test_examples=1, unmasked=True).arrays


def test_a_scene_is_a_function_of_its_number():
    split = draw_scenes("test", test_examples=5, seed=3)
    again = draw_scene(3, "test", 4)
    np.testing.assert_array_equal(split.images[4], again.image)
    np.testing.assert_array_equal(split.arrays["segmentation"][4], again.mask)
    assert not np.array_equal(again.image, draw_scene(3, "train", 4).image)
    valid = split.arrays["valid"][4]
    np.testing.assert_array_equal(split.arrays["boxes"][4][valid], again.boxes)


def test_single_letters_have_a_label_and_a_box():
    split = draw_scenes("train", train_examples=40, single=True)
    assert split.arrays["boxes"].shape == (40, 1, 4) and set(split.labels) == {0, 1}
    heights = split.arrays["boxes"][:, 0, 2] - split.arrays["boxes"][:, 0, 0]
    assert (heights >= 8).all() and (heights <= 40).all()


def test_what_is_out_of_range_is_said():
    with pytest.raises(UserError, match="xo_boxes has no split 'val'"):
        draw_scenes("val", single=True)
    with pytest.raises(UserError, match="config.data.scenes.letters is 6; it must be between 1"):
        draw_scenes("train", letters=(6, 5))
