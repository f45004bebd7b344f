"""RoIAlign against torchvision's: values and gradients, on one map and on a pyramid."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxconv.layers import multilevel_roi_align, pyramid_level, roi_align
from tests.tasks.detection.given import SEEDS, TURNED, boxes_of

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def map_of(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def reference(features, boxes, size, scale, samples, aligned, slopes):
    """The result and the gradient of torchvision: its operator where it loads, or its Python."""
    import torch
    from torchvision.extension import _has_ops

    x = torch.from_numpy(features).permute(2, 0, 1)[None].requires_grad_()
    rois = np.concatenate([np.zeros((len(boxes), 1), np.float32), boxes[:, TURNED]], axis=1)
    if _has_ops():
        run = torch.ops.torchvision.roi_align
    else:
        run = importlib.import_module("torchvision.ops.roi_align")._roi_align.__wrapped__
    y = run(x, torch.from_numpy(rois), scale, size, size, samples, aligned)
    (y * torch.from_numpy(slopes).permute(0, 3, 1, 2)).sum().backward()
    return y.detach().permute(0, 2, 3, 1).numpy(), x.grad[0].permute(1, 2, 0).numpy()


def pooled(run, features, slopes):
    """The values of run(features), and the gradient by `slopes`."""

    def both(features, slopes):
        values, back = jax.vjp(run, features)
        return values, back(slopes)[0]

    return jax.jit(both)(jax.tree.map(jnp.asarray, features), jnp.asarray(slopes))


def inside(seed, count, size):
    """Boxes whose points lie on the map, also where they are made one cell of 16 pixels large.

    Other boxes are apart: torchvision's Python has no rule for points outside of the map.
    """
    boxes = np.clip(boxes_of(seed, count, size, smallest=0.1), 0, [*size, *size])
    corner = np.minimum(boxes[:, :2], np.array(size) - 16)
    return np.concatenate([corner, np.maximum(boxes[:, 2:], corner)], axis=1).astype(np.float32)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "samples"), [(7, 2), (14, 2), (3, 1), (2, 3)])
def test_values_and_gradients_are_torchvision_s(torchvision, size, samples, aligned):
    features, boxes = map_of(20, 30, 5), inside(0, 40, (320, 480))
    slopes = map_of(40, size, size, 5)
    wanted, wanted_slope = reference(features, boxes, size, 1 / 16, samples, aligned, slopes)

    def run(features):
        return roi_align(features, jnp.asarray(boxes), size, 1 / 16, samples, aligned)

    found, slope = pooled(run, features, slopes)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(slope, wanted_slope, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_points_outside_of_the_map_are_torchvision_s(torchvision, aligned):
    if not torchvision.extension._has_ops():
        pytest.skip("this build of torchvision has no operators, and its Python has another rule")
    features, slopes = map_of(6, 9, 2), map_of(60, 5, 5, 2)
    boxes = np.random.default_rng(0).uniform(-8, 16, (60, 4)).astype(np.float32)  # upside down too
    wanted, wanted_slope = reference(features, boxes, 5, 0.5, 2, aligned, slopes)

    def run(features):
        return roi_align(features, jnp.asarray(boxes), 5, 0.5, 2, aligned)

    found, slope = pooled(run, features, slopes)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(slope, wanted_slope, atol=1e-4)


def test_rules_of_points_by_hand():
    """On the map f(y, x) = y a bin is the mean height of its points."""
    rows = jnp.broadcast_to(jnp.arange(8.0).reshape(8, 1, 1), (8, 8, 1))
    boxes = jnp.array([[2.0, 2, 6, 6], [3, 3, 3, 3], [-9, 0, -5, 4], [6.5, 0, 8.5, 4]])
    found = roi_align(rows, boxes, 2, 1.0)[..., 0, 0]
    np.testing.assert_allclose(found[0], [3, 5])
    np.testing.assert_allclose(found[1], [3.25, 3.75])  # at least one cell high
    np.testing.assert_allclose(found[2], [0, 0])
    np.testing.assert_allclose(found[3], [6.875, 3.5])  # 6.75, 7.25 -> 7 at the border; 8.25 out
    np.testing.assert_allclose(roi_align(rows, boxes, 2, 1.0, aligned=True)[0, :, 0, 0], [2.5, 4.5])


def test_a_pyramid_is_torchvision_s(torchvision):
    import torch

    maps = [map_of(256 // s, 320 // s, 3) for s in (4, 8, 16, 32)]
    boxes = np.concatenate([inside(1, 60, (256, 320)), inside(2, 20, (40, 40))])
    boxes = np.concatenate([boxes, [[0, 0, 224, 224], [0, 0, 112, 112], [7, 7, 7, 7]]]).astype("f4")
    levels = pyramid_level(jnp.asarray(boxes), (4, 8, 16, 32))
    mapper = torchvision.ops.poolers.LevelMapper(2, 5)
    assert levels.tolist() == mapper([torch.from_numpy(boxes[:, TURNED])]).tolist()
    assert set(levels.tolist()) == {0, 1, 2} and levels[-3:].tolist() == [2, 1, 0]
    slopes, wanted = map_of(len(boxes), 7, 7, 3), np.zeros((len(boxes), 7, 7, 3), np.float32)
    wanted_slopes = []
    for number, (features, stride) in enumerate(zip(maps, (4, 8, 16, 32), strict=True)):
        own = np.asarray(levels) == number
        wanted[own], slope = reference(features, boxes[own], 7, 1 / stride, 2, False, slopes[own])
        wanted_slopes.append(slope)

    def run(maps):
        return multilevel_roi_align(maps, jnp.asarray(boxes), 7, (4, 8, 16, 32))

    found, found_slopes = pooled(run, maps, slopes)
    # Positions near cell 80 are rounded to 8e-6 of a cell, where neighbours differ by up to 5.
    np.testing.assert_allclose(found, wanted, atol=4e-5)
    for slope, theirs in zip(found_slopes, wanted_slopes, strict=True):
        np.testing.assert_allclose(slope, theirs, atol=1e-4)


def test_a_batch_under_vmap_and_jit_on_several_devices_is_its_images():
    features = jnp.asarray(map_of(4, 12, 12, 3))
    boxes = jnp.asarray(np.stack([inside(n, 20, (96, 96)) for n in range(4)]))

    def loss(features, boxes):
        return (jax.vmap(lambda f, b: roi_align(f, b, 3, 1 / 8))(features, boxes) ** 2).sum()

    @jax.jit
    def alone(features, boxes):
        return jax.value_and_grad(lambda f: (roi_align(f, boxes, 3, 1 / 8) ** 2).sum())(features)

    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    placed = jax.device_put(
        (features, boxes), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    value, slope = jax.jit(jax.value_and_grad(loss))(*placed)
    values, slopes = zip(*map(alone, features, boxes), strict=True)
    np.testing.assert_allclose(value, sum(values), rtol=1e-5)
    np.testing.assert_allclose(slope, jnp.stack(slopes), atol=1e-4)


@settings(deadline=None, max_examples=6)
@given(SEEDS)
def test_boxes_are_independent_of_their_order_and_of_padding(seed):
    maps = [jnp.asarray(map_of(64 // s, 64 // s, 2)) for s in (4, 8)]
    boxes = inside(seed, 12, (64, 64))
    odd = np.array([[0, 0, 0, 0], [5, 5, -5, -5], [np.nan] * 4, [1e9] * 4], np.float32)
    order = np.random.default_rng(seed).permutation(16)
    mixed = np.concatenate([boxes, odd])[order]
    slopes = np.where((order < 12)[:, None, None, None], map_of(16, 3, 3, 2)[order], 0)

    @jax.jit
    def run(boxes, slopes):
        values, back = jax.vjp(
            lambda maps: multilevel_roi_align(maps, boxes, 3, (4, 8), canonical=(32, 3)), maps
        )
        return values, back(slopes)[0]

    values, slope = run(jnp.asarray(boxes), map_of(16, 3, 3, 2)[:12])
    others, other_slope = run(jnp.asarray(mixed), slopes)
    np.testing.assert_array_equal(others[np.argsort(order)[:12]], values)
    for found, wanted in zip(other_slope, slope, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_dtypes_sizes_and_odd_boxes():
    features, boxes = jnp.asarray(map_of(9, 9, 4)), jnp.asarray(inside(0, 5, (72, 72)))
    assert roi_align(features, boxes[:0], 7, 1 / 8).shape == (0, 7, 7, 4)
    slope = jax.grad(lambda f: roi_align(f, boxes[:0], 7, 1 / 8).sum())(features)
    assert slope.shape == features.shape and not slope.any()
    wide = roi_align(features, boxes, (2, 5), 1 / 8)
    assert wide.shape == (5, 2, 5, 4)
    half = roi_align(features.astype(jnp.bfloat16), boxes, (2, 5), 1 / 8)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), wide, atol=0.05)
    odd = jnp.array([[jnp.nan] * 4, [0, 0, jnp.inf, jnp.inf], [-1e30, -1e30, 1e30, 1e30]])
    assert not jnp.isinf(roi_align(features, odd, 2, 1 / 8)).any()
    assert not roi_align(features, odd[:1], 2, 1 / 8).any()


def test_what_it_cannot_do_is_said():
    features, boxes = jnp.zeros((8, 8, 1)), jnp.zeros((2, 4))
    with pytest.raises(ValueError, match="samples is 0"):
        roi_align(features, boxes, 7, 1.0, samples=0)
    with pytest.raises(ValueError, match=r"maps \[H, W, C\] and boxes \[R, 4\].*jax.vmap"):
        roi_align(features[None], boxes, 7, 1.0)
    with pytest.raises(ValueError, match="1 maps and 2 strides"):
        multilevel_roi_align([features], boxes, 7, [4, 8])
    with pytest.raises(ValueError, match="each must be twice the one before"):
        multilevel_roi_align([features, features], boxes, 7, [4, 16])
