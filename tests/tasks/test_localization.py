"""Localization: boxes in and out of the network's numbers, and ILSVRC's error."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxconv.config import load_config
from jaxconv.data.interface import describe
from jaxconv.data.sources import open_source
from jaxconv.tasks import open_task
from jaxconv.tasks.detection.boxes import area, iou
from jaxconv.tasks.localization.task import decode, encode
from tests.conftest import ROOT

SIZE = (40, 60)
SIDES = st.tuples(st.floats(0, 38), st.floats(0, 58), st.floats(1, 40), st.floats(1, 60))


@settings(deadline=None)
@given(SIDES)
def test_a_box_comes_back_from_its_numbers(sides):
    top, left, height, width = sides
    box = jnp.array([top, left, min(40, top + height), min(60, left + width)], jnp.float32)
    np.testing.assert_allclose(decode(encode(box, SIZE), SIZE), box, atol=1e-3)


@settings(deadline=None)
@given(SIDES, SIDES)
def test_overlaps_are_those_of_pixels(some, others):
    boxes = np.array([some, others], int)
    boxes[:, 2:] += boxes[:, :2]
    masks = np.zeros((2, 90, 130), bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    wanted = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    found = iou(*jnp.asarray(boxes, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_array_equal(area(jnp.asarray(boxes, jnp.float32)), masks.sum((1, 2)))


def test_boxes_without_area_overlap_with_nothing():
    nothing, box = jnp.zeros(4), jnp.array([0.0, 0.0, 5.0, 5.0])
    assert float(iou(nothing, nothing)) == 0 and float(iou(nothing, box)) == 0


def task_of(classes=7, shared=False):
    config = load_config(f"{ROOT}/experiments/xo_localization.py:small")
    config.task.kwargs.shared = shared
    description = describe(open_source(config.data, "test"))
    description["class_names"] = [str(k) for k in range(classes)]
    return open_task(config, description)


def test_the_error_is_ilsvrc_s():
    """Right class first, third, sixth; boxes right, right for another class's, and wrong."""
    task = task_of()
    truth = np.array([[4, 6, 20, 24], [0, 0, 0, 0]], np.float32)
    right, wrong = (
        encode(jnp.array(box), task.size) for box in ([5.0, 6, 20, 24], [20.0, 20, 30, 30])
    )

    def outputs(place, good):
        logits = np.arange(7, 0, -1).astype(np.float32)
        numbers = np.tile(np.asarray(wrong), (7, 1))
        numbers[good] = right
        return np.concatenate([logits, numbers.ravel()]), place

    cases = [outputs(0, 0), outputs(2, 2), outputs(5, 5), outputs(0, 3)]
    batch = {
        "label": jnp.array([place for _, place in cases]),
        "boxes": jnp.asarray(np.stack([truth] * len(cases))),
    }
    values = task.values(jnp.asarray(np.stack([values for values, _ in cases])), batch)
    assert values["loc1"].tolist() == [1, 0, 0, 0]
    assert values["loc5"].tolist() == [1, 1, 0, 0]
    assert values["given"].tolist() == [1, 1, 1, 0]
    assert values["top1"].tolist() == [1, 0, 0, 1]


def test_any_of_an_image_s_boxes_counts_and_one_box_can_be_shared():
    task = task_of(3, shared=True)
    assert task.outputs == 7
    boxes = np.array([[[0, 0, 4, 4], [10, 10, 30, 28]]], np.float32)
    said = np.concatenate([[3.0, 1, 0], encode(jnp.array(boxes[0, 1]), task.size)])
    batch = {"label": jnp.array([0]), "boxes": jnp.asarray(boxes)}
    outputs = jnp.asarray(said, jnp.float32)[None]
    assert task.values(outputs, batch)["loc1"].tolist() == [1]
    assert float(task.loss(outputs, batch)[0]) < 0.2
    # Without any box the class alone is learned.
    none = {"label": jnp.array([0]), "boxes": jnp.zeros((1, 2, 4))}
    assert np.isfinite(float(task.loss(outputs, none)[0]))
