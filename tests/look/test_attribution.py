"""Attribution on networks whose answer is known by construction."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.layers import Conv, Dense, max_pool
from jaxconv.look.attribution import attribution_figure, grad_cam, gradient, guided_backpropagation, integrated_gradients, occlusion

KEY = jax.random.key(0)


class Linear(nn.Module):
    """Votes are a linear function of the pixels."""

    @nn.compact
    def __call__(self, x):
        return Dense(3, name="votes")(x)


class Corner(nn.Module):
    """Class 1's vote is what a patch of 4x4 pixels in one corner holds of bright pixels; class 0's is 0."""

    @nn.compact
    def __call__(self, x, train=False):
        bright = Conv(1, 1, name="bright")(x)
        counted = jnp.mean(nn.relu(bright)[:, :4, 12:], axis=(1, 2))
        return jnp.concatenate([0 * counted, counted], axis=-1)


def corner():
    variables = {"params": {"bright": {"kernel": jnp.ones((1, 1, 1, 1)), "bias": -0.5 * jnp.ones(1)}}}
    return Corner(), variables, jnp.ones((2, 16, 16, 1)), jnp.array([1, 1])


def test_of_a_linear_network():
    images, classes = jax.random.normal(KEY, (2, 4, 5, 2)), jnp.array([2, 0])
    variables = Linear().init(KEY, images)
    weights = variables["params"]["votes"]["kernel"].T[classes].reshape(images.shape)
    np.testing.assert_allclose(gradient(Linear(), variables, images, classes), weights, rtol=1e-6)
    shares = integrated_gradients(Linear(), variables, images, classes, baseline=0.25, steps=3)
    np.testing.assert_allclose(shares, weights * (images - 0.25), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [[5, 0], [0, -1]])
def test_a_class_that_does_not_exist(classes):
    images = jax.random.normal(KEY, (2, 4, 5, 2))
    variables = Linear().init(KEY, images)
    maps = gradient(Linear(), variables, images, jnp.array(classes))
    assert [bool(jnp.isnan(m).all()) for m in maps] == [c != 0 for c in classes]


def test_patch_in_a_corner():
    module, variables, images, classes = corner()
    inside = np.zeros((16, 16), bool)
    inside[:4, 12:] = True
    cam = np.asarray(grad_cam(module, variables, images, classes))
    assert cam.shape == (2, 16, 16) and cam.min() >= 0
    # One feature map, bright everywhere: Grad-CAM weighs it by 1/256 (the mean over all positions) and finds it everywhere.
    np.testing.assert_allclose(cam, 0.5 / 256, rtol=1e-5)
    spot = images * jnp.asarray(inside[None, ..., None])
    cam = np.asarray(grad_cam(module, variables, spot, classes, "bright"))
    assert (cam[0][inside] > 0).all() and (cam[0][~inside] == 0).all()
    lost = np.asarray(occlusion(module, variables, images, classes, window=4, stride=4))
    probability = np.exp(0.5) / (1 + np.exp(0.5))
    np.testing.assert_allclose(lost[0], np.where(inside, probability - 0.5, 0), atol=1e-6)
    # Finer steps: squares that hide less of the patch lose less, those that hide none lose nothing.
    lost = np.asarray(occlusion(module, variables, images, classes, window=4, stride=1, batch=5))
    assert np.unravel_index(lost[1].argmax(), lost[1].shape) == (0, 15) and (lost[1][8:] == 0).all() and (lost[1][:, :8] == 0).all()
