"""Losses and pasted masks against torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.tasks.detection.losses import focal_loss, giou_loss, smooth_l1
from jaxconv.tasks.detection.masks import paste_mask, paste_masks
from tests.tasks.detection.given import TURNED, boxes_of, on_a_grid


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0)])
def test_focal_loss_and_its_gradient(torchvision, alpha, gamma):
    import torch

    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 7), scale=4).astype(np.float32)
    classes = random.integers(-1, 7, 50)
    x = torch.from_numpy(logits).requires_grad_()
    wanted = torchvision.ops.sigmoid_focal_loss(
        x, torch.from_numpy(np.eye(8, dtype=np.float32)[classes][:, :7]), alpha, gamma
    )
    wanted.sum().backward()
    found, slope = (
        run(jnp.asarray(logits))
        for run in (
            lambda x: focal_loss(x, jnp.asarray(classes), alpha, gamma),
            jax.grad(lambda x: focal_loss(x, jnp.asarray(classes), alpha, gamma).sum()),
        )
    )
    np.testing.assert_allclose(found, wanted.detach().sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slope, x.grad, rtol=1e-4, atol=1e-5)
    assert focal_loss(jnp.asarray(logits[:0]), jnp.zeros(0, int)).shape == (0,)


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1(beta):
    torch = pytest.importorskip("torch")
    some, others = np.random.default_rng(0).normal(size=(2, 100, 4)).astype(np.float32)
    wanted = torch.nn.functional.smooth_l1_loss(
        torch.from_numpy(some), torch.from_numpy(others), reduction="none", beta=beta
    )
    found = smooth_l1(jnp.asarray(some), jnp.asarray(others), beta)
    np.testing.assert_allclose(found, wanted.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("strict_dtypes")
def test_giou_loss_and_its_gradient(torchvision):
    import torch

    for some, others in (
        (boxes_of(0, 300), boxes_of(1, 300)),
        (on_a_grid(0, 300), on_a_grid(1, 300)),
    ):
        x = torch.from_numpy(some[:, TURNED]).requires_grad_()
        wanted = torchvision.ops.generalized_box_iou_loss(x, torch.from_numpy(others[:, TURNED]))
        wanted.sum().backward()
        found = giou_loss(jnp.asarray(some), jnp.asarray(others))
        np.testing.assert_allclose(found, wanted.detach(), rtol=1e-5, atol=1e-5)
        slope = jax.grad(lambda x: giou_loss(x, jnp.asarray(others)).sum())(jnp.asarray(some))  # noqa: B023
        assert jnp.isfinite(slope).all()
        if some.max() > 100:  # on the grid sides touch, where there are several
            np.testing.assert_allclose(slope, x.grad[:, TURNED], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [1, 7, 28])
def test_pasted_masks_are_torchvision_s(torchvision, side):
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    size = (90, 120)
    boxes = np.concatenate(
        [
            np.clip(boxes_of(side, 20, size, smallest=0.2), 0, [*size, *size]),
            boxes_of(side, 10, (60, 80), smallest=30),  # beyond the image on one or two sides
            [[5, 5, 5, 5], [0, 0, 90, 120], [10.5, 20.5, 30.5, 40.5]],
        ]
    ).astype(np.float32)
    masks = np.random.default_rng(0).uniform(size=(len(boxes), side, side)).astype(np.float32)
    wanted = paste_masks_in_image(
        torch.from_numpy(masks[:, None]), torch.from_numpy(boxes[:, TURNED]), size
    ).numpy()[:, 0]
    found = np.stack([paste_mask(mask, box, size) for mask, box in zip(masks, boxes, strict=True)])
    assert found.shape == wanted.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    unclear = np.abs(wanted - 0.5) < 1e-4
    np.testing.assert_array_equal(
        paste_masks(masks, boxes, size) | unclear, (wanted > 0.5) | unclear
    )


def test_masks_that_are_nowhere():
    mask = np.ones((28, 28), np.float32)
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (9, 11)).shape == (0, 9, 11)
    for box in ([200, 0, 300, 50], [-300, 0, -200, 50], [np.nan, 0, 5, 5], [0, 0, np.inf, 5]):
        assert not paste_mask(mask, np.array(box), (90, 120)).any()
    whole = paste_mask(mask, np.array([-1000, -1000, 2000, 2000]), (90, 120))
    np.testing.assert_allclose(whole, 1, rtol=1e-6)
