"""Boxes against torchvision's operations: overlaps, clipping, codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxconv.tasks.detection import boxes as ours
from tests.tasks.detection.given import SEEDS, TURNED, boxes_of, on_a_grid

WEIGHTS = [(1, 1, 1, 1), (10, 10, 5, 5)]
pytestmark = pytest.mark.usefixtures("strict_dtypes")


def turned(boxes):
    """For torchvision: a tensor (x1, y1, x2, y2)."""
    import torch

    return torch.from_numpy(np.asarray(boxes)[..., TURNED])


def close(found, wanted, **tolerance):
    np.testing.assert_allclose(found, wanted, **{"rtol": 1e-5, "atol": 1e-5} | tolerance)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_overlaps_of_all_pairs(torchvision, count):
    some, others = boxes_of(0, count), boxes_of(1, 200)
    for run, theirs in (
        (ours.iou, torchvision.ops.box_iou),
        (ours.giou, torchvision.ops.generalized_box_iou),
    ):
        found = run(jnp.asarray(some)[:, None], jnp.asarray(others)[None])
        assert found.shape == (count, 200) and found.dtype == jnp.float32
        close(found, theirs(turned(some), turned(others)))


def test_overlaps_of_boxes_without_area_are_finite_where_torchvision_has_nan(torchvision):
    boxes = on_a_grid(0, 200, 4)
    for run, theirs in (
        (ours.iou, torchvision.ops.box_iou),
        (ours.giou, torchvision.ops.generalized_box_iou),
    ):
        found = run(jnp.asarray(boxes)[:, None], jnp.asarray(boxes)[None])
        wanted = theirs(turned(boxes), turned(boxes)).numpy()
        sound = np.isfinite(wanted)
        assert not sound.all() and jnp.isfinite(found).all()
        close(found[sound], wanted[sound])


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_overlaps_are_symmetric_and_move_with_the_boxes(seed):
    some, others = jnp.asarray(on_a_grid(seed, 30)), jnp.asarray(on_a_grid(seed + 1, 30))
    for run in (ours.iou, ours.giou):
        found = run(some, others)
        np.testing.assert_array_equal(found, run(others, some))
        np.testing.assert_array_equal(found, run(some + 64, others + 64))
    assert (ours.giou(some, others) <= ours.iou(some, others)).all()
    sound = ours.area(some) > 0
    np.testing.assert_array_equal(ours.iou(some, some), sound)


def test_clipping_and_small_boxes(torchvision):
    boxes = boxes_of(2, 100, smallest=2)
    wanted = torchvision.ops.clip_boxes_to_image(turned(boxes), (250, 300)).numpy()[:, TURNED]
    for size in ((250, 300), jnp.array([250.0, 300.0])):
        close(ours.clip(jnp.asarray(boxes), size), wanted)
    clipped = jax.vmap(ours.clip)(jnp.asarray(boxes)[None], jnp.array([[250.0, 300.0]]))
    close(clipped[0], wanted)
    kept = torchvision.ops.remove_small_boxes(turned(boxes), 20).tolist()
    assert np.flatnonzero(ours.at_least(jnp.asarray(boxes), 20)).tolist() == kept


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_codes_relative_to_anchors(torchvision, weights, count):
    theirs = torchvision.models.detection._utils.BoxCoder(weights)
    boxes, anchors = boxes_of(3, count), boxes_of(4, count)
    code = ours.encode(jnp.asarray(boxes), jnp.asarray(anchors), weights)
    close(code, theirs.encode_single(turned(boxes), turned(anchors)), atol=1e-4)
    back = ours.decode(code, jnp.asarray(anchors), weights, limit=10)
    close(back, boxes, atol=1e-2)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decoding_limits_the_size(torchvision, weights):
    import torch

    theirs = torchvision.models.detection._utils.BoxCoder(weights)
    anchors = boxes_of(5, 300)
    codes = np.random.default_rng(0).normal(size=(300, 7, 4), scale=8).astype(np.float32)
    wanted = theirs.decode(torch.from_numpy(codes.reshape(300, 28)), [turned(anchors)]).numpy()
    found = ours.decode(jnp.asarray(codes), jnp.asarray(anchors)[:, None], weights)
    close(found, wanted[..., TURNED], rtol=1e-4, atol=1e-2)


def test_sides_relative_to_points(torchvision):
    theirs = torchvision.models.detection._utils.BoxLinearCoder(normalize_by_size=True)
    boxes, anchors = boxes_of(6, 500), boxes_of(7, 500)
    code = ours.encode_sides(jnp.asarray(boxes), jnp.asarray(anchors))
    close(code, theirs.encode(turned(anchors), turned(boxes)))
    wanted = theirs.decode(theirs.encode(turned(anchors), turned(boxes)), turned(anchors))
    found = ours.decode_sides(code, jnp.asarray(anchors))
    close(found, wanted.numpy()[:, TURNED], atol=1e-3)
    close(found, boxes, atol=1e-2)


def test_codes_and_gradients_of_padding_are_finite():
    boxes, nothing = jnp.array([[0.0, 0, 4, 8], [3, 3, 3, 9]]), jnp.zeros((2, 4))
    for encode in (ours.encode, ours.encode_sides):
        for pair in ((boxes, nothing), (nothing, boxes), (nothing, nothing)):
            for argument in (0, 1):
                slope = jax.grad(lambda *pair: encode(*pair).sum(), argument)(*pair)  # noqa: B023
                assert jnp.isfinite(slope).all()
    assert not ours.encode(nothing, boxes).any() and not ours.encode(boxes, nothing).any()
    for run in (ours.iou, ours.giou):
        assert jnp.isfinite(jax.grad(lambda x: run(x, nothing).sum())(boxes)).all()  # noqa: B023
