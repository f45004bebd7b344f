"""Matching against torchvision's, with padded truths; the law of the samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxconv.models import model_arguments
from jaxconv.tasks.detection import matching as ours
from jaxconv.tasks.detection.anchors import level_anchors
from jaxconv.tasks.detection.boxes import iou
from tests.tasks.detection.given import SEEDS, TURNED, boxes_of, on_a_grid

pytestmark = pytest.mark.usefixtures("strict_dtypes")
PADDING = 7


def padded(truths):
    """Truths and `valid`, with nonsense among them."""
    rows = np.full((len(truths) + PADDING, 4), np.nan, np.float32)
    valid = np.zeros(len(rows), bool)
    valid[: len(truths)] = True
    rows[: len(truths)] = truths
    rows[len(truths) :] = np.arange(4 * PADDING).reshape(-1, 4)
    return jnp.asarray(rows), jnp.asarray(valid)


def overlaps_of(truths, anchors):
    return iou(jnp.asarray(truths)[:, None], jnp.asarray(anchors)[None])


RULES = [(0.3, 0.7, True), (0.5, 0.5, False), (0.4, 0.5, True)]  # RPN, heads, RetinaNet


@pytest.mark.parametrize(("low", "high", "best_too"), RULES)
@pytest.mark.parametrize("truths", [1, 2, 40])
def test_matches_are_torchvision_s(torchvision, low, high, best_too, truths):
    import torch

    matcher = torchvision.models.detection._utils.Matcher(high, low, best_too)
    run = jax.jit(functools.partial(ours.match, low=low, high=high, best_too=best_too))
    for make in (boxes_of, on_a_grid):
        boxes, anchors = make(truths, truths), make(1, 1000)
        rows, valid = padded(boxes)
        overlaps = np.asarray(overlaps_of(boxes, anchors))
        sound = overlaps.max(axis=1) > 0  # torchvision matches all anchors to the others
        if not sound.any():
            continue
        boxes, overlaps = boxes[sound], overlaps[sound]
        rows, valid = padded(boxes)
        wanted = matcher(torch.from_numpy(overlaps)).numpy()
        np.testing.assert_array_equal(run(overlaps_of(rows, anchors), valid), wanted)
        assert make is on_a_grid or truths < 40 or {-1} < set(wanted)


@pytest.mark.parametrize("truths", [1, 2, 40])
def test_matches_of_ssd_are_torchvision_s(torchvision, truths):
    import torch

    matcher = torchvision.models.detection._utils.SSDMatcher(0.5)
    for make in (boxes_of, on_a_grid):
        boxes, anchors = make(truths, truths), make(1, 1000)
        rows, valid = padded(boxes)
        wanted = matcher(torch.from_numpy(np.array(overlaps_of(boxes, anchors)))).numpy()
        found = ours.match_best(overlaps_of(rows, anchors), valid, 0.5)
        np.testing.assert_array_equal(found, wanted)


def torchvision_points(torchvision, anchors, boxes):
    """FCOS's matching, which is a part of its loss: asked for with a head that keeps it."""
    import torch

    kept = {}

    class Head:
        def compute_loss(self, targets, outputs, anchors, matched):
            kept["matched"] = matched[0].numpy()

    class Model:
        head, center_sampling_radius = Head(), 1.5

    rows = torch.from_numpy(np.concatenate(anchors)[:, TURNED])
    torchvision.models.detection.FCOS.compute_loss(
        Model(), [{"boxes": torch.from_numpy(boxes[:, TURNED])}], None, [rows], [*map(len, anchors)]
    )
    return kept["matched"]


@pytest.mark.parametrize("truths", [0, 1, 30])
def test_matches_of_points_are_torchvision_s(torchvision, truths):
    image, maps = (256, 320), [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
    sizes = model_arguments("fcos_resnet50_fpn")["anchor_sizes"]
    anchors = level_anchors(image, maps, sizes, (1.0,))
    boxes = boxes_of(truths, truths, image, smallest=8, largest=300)
    rows, valid = padded(boxes)
    found = ours.match_points(anchors, rows, valid)
    np.testing.assert_array_equal(found, torchvision_points(torchvision, anchors, boxes))
    assert truths < 30 or len(set(found.tolist())) > 10


def test_without_truths_all_is_background():
    anchors = boxes_of(0, 50)
    for rows in (jnp.zeros((0, 4)), jnp.ones((5, 4)) * jnp.array([[0.0, 0, 40, 40]])):
        nothing = jnp.zeros(len(rows), bool)
        overlaps = overlaps_of(rows, anchors)
        assert (ours.match(overlaps, nothing, 0.3, 0.7, best_too=True) == -1).all()
        assert (ours.match_best(overlaps, nothing, 0.5) == -1).all()
        assert (ours.match_points([anchors], rows, nothing) == -1).all()


def test_a_truth_without_area_or_far_away_has_no_anchor():
    truths = jnp.array([[5.0, 5, 5, 9], [900, 900, 950, 950], [0, 0, 3, 3]])
    anchors = jnp.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    overlaps, valid = overlaps_of(truths, anchors), jnp.ones(3, bool)
    assert ours.match(overlaps, valid, 0.3, 0.7, best_too=True).tolist() == [2, -1]
    with pytest.raises(ValueError, match="low is 0.7 and high 0.3"):
        ours.match(overlaps, valid, 0.7, 0.3)


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_the_order_of_truths_does_not_matter(seed):
    truths, anchors = boxes_of(seed, 12), boxes_of(seed + 1, 300)
    order = np.random.default_rng(seed).permutation(12)
    overlaps, valid = overlaps_of(truths, anchors), jnp.ones(12, bool)
    inside = jnp.asarray(np.argsort(order))
    for run in (
        lambda overlaps: ours.match(overlaps, valid, 0.2, 0.5, best_too=True),
        lambda overlaps: ours.match_best(overlaps, valid, 0.3),
    ):
        found, other = run(overlaps), run(overlaps[order])
        shared = np.bincount(np.argmax(overlaps, axis=1), minlength=300) > 1
        renamed = jnp.where(found >= 0, inside[found], found)
        np.testing.assert_array_equal(other[~shared], renamed[~shared])


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_a_sample_has_torchvision_s_counts(seed, positives, negatives, share):
    count = 32
    kinds = np.random.default_rng(seed).permutation(
        np.repeat([1, 0, -1], [positives, negatives, 120 - positives - negatives])
    )
    positive, negative = jnp.asarray(kinds == 1), jnp.asarray(kinds == 0)
    draw = jax.jit(ours.sample, static_argnums=(3, 4))
    index, taken = draw(jax.random.key(seed), positive, negative, count, share)
    assert index.shape == taken.shape == (count,) and index.dtype == jnp.int32
    some = min(positives, int(count * share))
    others = min(negatives, count - some)
    wanted = [1] * some + [0] * others
    assert taken.tolist() == [True] * len(wanted) + [False] * (count - len(wanted))
    chosen = index[: len(wanted)].tolist()
    assert kinds[chosen].tolist() == wanted and len(set(chosen)) == len(chosen)
    more = [jnp.pad(x, (0, 50)) for x in (positive, negative)]
    np.testing.assert_array_equal(draw(jax.random.key(seed), *more, count, share)[0], index)


def test_a_sample_is_uniform_and_belongs_to_its_key():
    positive = jnp.arange(20) < 10
    draw = functools.partial(ours.sample, positive=positive, negative=~positive, count=8, share=0.5)
    keys = jax.random.split(jax.random.key(0), 4000)
    index, taken = jax.vmap(draw)(keys)
    assert taken.all()
    counts = np.bincount(np.asarray(index).ravel(), minlength=20)
    np.testing.assert_allclose(counts, 1600, atol=5 * np.sqrt(1600 * 0.6))
    np.testing.assert_array_equal(draw(keys[0])[0], index[0])
    few = ours.sample(keys[0], positive[:3], ~positive[:3], 8, 0.5)
    assert few[1].tolist() == [True] * 3 + [False] * 5


def test_hard_negatives_are_ssd_s():
    losses = np.random.default_rng(0).uniform(size=100).astype(np.float32)
    positive = np.arange(100) % 20 == 3
    found = ours.hard_negatives(jnp.asarray(losses), jnp.asarray(positive))
    order = np.argsort(-np.where(positive, -np.inf, losses))[:15]
    assert sorted(order.tolist()) == np.flatnonzero(found).tolist()
    assert not ours.hard_negatives(jnp.asarray(losses), jnp.zeros(100, bool)).any()
    few = ours.hard_negatives(jnp.asarray(losses), jnp.asarray(positive), 3, jnp.arange(100) < 8)
    assert np.flatnonzero(few).tolist() == [n for n in range(8) if not positive[n]][:15]
