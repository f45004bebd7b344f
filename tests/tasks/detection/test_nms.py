"""Non-maximum suppression: the greedy rule written out, and torchvision's operator if it loads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxconv.tasks.detection.nms import batched_nms, best, nms
from tests.tasks.detection.given import SEEDS, TURNED, boxes_of, on_a_grid

pytestmark = pytest.mark.usefixtures("strict_dtypes")
# One compiled program for each threshold and shape.
compiled = jax.jit(nms, static_argnums=(2, 4))
by_class = jax.jit(batched_nms, static_argnums=(3, 5))


def greedy(boxes, scores, threshold):
    """Which boxes stay, by the rule, in float32 as torchvision's operator computes it."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    keep = np.zeros(len(boxes), bool)
    for n in np.argsort(-scores, kind="stable"):
        others = boxes[keep]
        sides = np.minimum(boxes[n, 2:], others[:, 2:]) - np.maximum(boxes[n, :2], others[:, :2])
        common = np.maximum(sides, 0).prod(axis=1)
        with np.errstate(invalid="ignore"):
            overlap = common / (area[n] + area[keep] - common)
        keep[n] = not (overlap.astype(np.float64) > threshold).any()
    return keep


def found(boxes, scores, threshold, valid=None, limit=0):
    valid = None if valid is None else jnp.asarray(valid)
    result = compiled(jnp.asarray(boxes), jnp.asarray(scores), threshold, valid, limit)
    assert result.shape == scores.shape and result.dtype == bool
    return np.asarray(result)


def scores_of(seed, count, different=True):
    random = np.random.default_rng(seed)
    if different:
        return (random.permutation(count) / max(count, 1)).astype(np.float32)
    return random.integers(0, 4, count).astype(np.float32)


@pytest.mark.parametrize(
    ("count", "threshold"),
    [*((n, 0.5) for n in (0, 1, 2, 63, 64, 65, 257, 1000)), *((257, t) for t in (0.0, 0.3, 1.0))],
)
def test_the_greedy_result(count, threshold):
    boxes, scores = boxes_of(count, count, (120, 160)), scores_of(0, count)
    np.testing.assert_array_equal(found(boxes, scores, threshold), greedy(boxes, scores, threshold))


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.sampled_from([0.0, 0.3, 0.5]))
def test_ties_of_scores_and_of_overlaps_and_boxes_without_area(seed, threshold):
    """On a small grid overlaps are often just the threshold, such as 3 / 10 pixels."""
    boxes, scores = on_a_grid(seed, 300, 7), scores_of(seed, 300, different=False)
    np.testing.assert_array_equal(found(boxes, scores, threshold), greedy(boxes, scores, threshold))


def test_torchvision_s_operator(torchvision):
    if not torchvision.extension._has_ops():
        pytest.skip("this build of torchvision has no operators")
    import torch

    for boxes, scores in (
        (boxes_of(0, 1000, (150, 200)), scores_of(0, 1000)),
        (boxes_of(1, 10_000, (800, 1300)), scores_of(1, 10_000)),
        (on_a_grid(0, 2000, 10), scores_of(2, 2000, different=False)),
    ):
        for threshold in (0.3, 0.5):
            kept = torchvision.ops.nms(
                torch.from_numpy(boxes[:, TURNED]), torch.from_numpy(scores), threshold
            )
            result = found(boxes, scores, threshold)
            np.testing.assert_array_equal(np.flatnonzero(result), sorted(kept.tolist()))
            order, kept_ones = best(jnp.asarray(scores), jnp.asarray(result), 100)
            assert kept_ones.all() and (scores[order] == scores[kept.numpy()[:100]]).all()


def test_a_chain_in_which_each_box_suppresses_the_next():
    """Every second box stays, after as many rounds as a tile has boxes."""
    left = np.arange(700, dtype=np.float32)
    boxes = np.stack([0 * left, left, 0 * left + 10, left + 1.5], axis=1)
    keep = found(boxes, -left, 0.1)
    np.testing.assert_array_equal(keep, np.arange(700) % 2 == 0)


def test_overlap_of_exactly_the_threshold_stays():
    """1/3, 0.3 and 0.7 as float32 are above, above and below the numbers they stand for."""
    box = np.array([0, 0, 1, 10], np.float32)
    for part in (3, 7):
        boxes = np.stack([box, box * [1, 1, 1, part / 10]]).astype(np.float32)
        keep = found(boxes, np.array([1, 0], np.float32), part / 10)
        assert keep.tolist() == [True, not np.float64(np.float32(part / 10)) > part / 10]
    assert found(np.stack([box, box]), np.array([1, 0], np.float32), 1.0).all()


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(0, 400))
def test_invalid_boxes_change_nothing(seed, valid):
    """Whatever stands in them, NaN included, and wherever they stand."""
    boxes, scores = boxes_of(seed, 400, (120, 160)), scores_of(seed, 400)
    sound = np.random.default_rng(seed).permutation(400) < valid
    wanted = np.zeros(400, bool)
    wanted[sound] = greedy(boxes[sound], scores[sound], 0.5)
    np.testing.assert_array_equal(found(boxes, scores, 0.5, sound), wanted)
    boxes[~sound], scores[~sound] = np.nan, 2
    np.testing.assert_array_equal(found(boxes, scores, 0.5, sound), wanted)
    scores[~sound] = np.nan
    np.testing.assert_array_equal(found(boxes, scores, 0.5), wanted)


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_the_order_of_boxes_does_not_matter(seed):
    boxes, scores = boxes_of(seed, 400, (120, 160)), scores_of(seed, 400)
    order = np.random.default_rng(seed).permutation(400)
    keep = found(boxes, scores, 0.4)
    np.testing.assert_array_equal(found(boxes[order], scores[order], 0.4), keep[order])


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_classes_do_not_meet(seed):
    boxes, scores = boxes_of(seed, 400, (100, 100)), scores_of(seed, 400, different=False)
    classes = np.random.default_rng(seed).integers(-1, 5, 400)
    wanted = np.zeros(400, bool)
    for number in range(-1, 5):
        own = classes == number
        wanted[own] = greedy(boxes[own], scores[own], 0.3)
    keep = by_class(*map(jnp.asarray, (boxes, scores, classes)), 0.3)
    np.testing.assert_array_equal(keep, wanted)


@pytest.mark.parametrize("limit", [1, 5, 300, 2000])
def test_a_limit_keeps_the_best(limit):
    boxes, scores = boxes_of(0, 1000, (400, 600)), scores_of(1, 1000)
    everything = greedy(boxes, scores, 0.5)
    lowest = np.sort(scores[everything])[-min(limit, everything.sum())]
    wanted = everything & (scores >= lowest)
    np.testing.assert_array_equal(found(boxes, scores, 0.5, None, limit), wanted)


def test_a_batch_under_vmap_and_on_several_devices_is_its_images():
    images = [boxes_of(n, 600, (80 * (n + 1), 160)) for n in range(4)]
    scores = [scores_of(n, 600) for n in range(4)]
    wanted = [greedy(b, s, 0.5) for b, s in zip(images, scores, strict=True)]
    batch = (jnp.asarray(np.stack(images)), jnp.asarray(np.stack(scores)))
    run = jax.jit(jax.vmap(functools.partial(nms, threshold=0.5)))
    np.testing.assert_array_equal(run(*batch), wanted)
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    parts = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    np.testing.assert_array_equal(run(*jax.device_put(batch, parts)), wanted)
    assert len({keep.sum() for keep in wanted}) == 4


def test_the_best_of_those_that_stay():
    scores = jnp.array([0.3, 0.9, 0.5, 0.9, 0.1])
    keep = jnp.array([True, True, False, True, False])
    order, kept = best(scores, keep, 4)
    assert order[:3].tolist() == [1, 3, 0] and kept.tolist() == [True, True, True, False]
    order, kept = best(scores, keep, 7)
    assert order.shape == kept.shape == (7,) and kept.sum() == 3
    assert not best(scores[:0], keep[:0], 3)[1].any()
