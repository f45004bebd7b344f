"""Attribution on networks whose answer is known by construction."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.inspect.attribution import (
    grad_cam,
    gradient,
    guided_backpropagation,
    integrated_gradients,
    occlusion,
)
from jaxconv.inspect.zeiler import strongest_patches
from jaxconv.layers import Conv, Dense, max_pool
from jaxconv.look.overlays import attribution_figure
from jaxconv.models import abstract_variables
from tests.inspect.test_backward import ONE_OF_EACH

KEY = jax.random.key(0)


class Linear(nn.Module):
    """Logits are a linear function of the pixels."""

    @nn.compact
    def __call__(self, x):
        return Dense(3, name="votes")(x)


class Corner(nn.Module):
    """The logit of class 1 is the brightness of a 4x4 patch in one corner; that of class 0 is 0."""

    @nn.compact
    def __call__(self, x, train=False):
        bright = Conv(1, 1, name="bright")(x)
        counted = jnp.mean(nn.relu(bright)[:, :4, 12:], axis=(1, 2))
        return jnp.concatenate([0 * counted, counted], axis=-1)


def corner():
    variables = {
        "params": {"bright": {"kernel": jnp.ones((1, 1, 1, 1)), "bias": -0.5 * jnp.ones(1)}}
    }
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
    # One feature map, bright everywhere: Grad-CAM weights it by 1/256, the mean over all positions,
    # and the result is uniform.
    np.testing.assert_allclose(cam, 0.5 / 256, rtol=1e-5)
    spot = images * jnp.asarray(inside[None, ..., None])
    cam = np.asarray(grad_cam(module, variables, spot, classes, "bright"))
    assert (cam[0][inside] > 0).all() and (cam[0][~inside] == 0).all()
    lost = np.asarray(occlusion(module, variables, images, classes, window=4, stride=4))
    probability = np.exp(0.5) / (1 + np.exp(0.5))
    np.testing.assert_allclose(lost[0], np.where(inside, probability - 0.5, 0), atol=1e-6)
    # A smaller stride: squares that hide less of the patch lose less, and others lose nothing.
    lost = np.asarray(occlusion(module, variables, images, classes, window=4, stride=1, batch=5))
    assert (
        np.unravel_index(lost[1].argmax(), lost[1].shape) == (0, 15)
        and (lost[1][8:] == 0).all()
        and (lost[1][:, :8] == 0).all()
    )


def chain():
    model = jaxconv.create_model("chain", 3, filters=(4, 5), neurons=(6,))
    images = jax.random.normal(KEY, (2, 8, 8, 1))
    return model, model.init(jax.random.key(1), images, train=False), images


def test_integrated_gradients_are_complete():
    """The shares add up to the difference of the logits, more closely with more steps."""
    model, variables, images = chain()
    classes, baseline = jnp.array([2, 0]), -jnp.ones((8, 8, 1))
    logits, blank = (
        model.apply(variables, x, train=False) for x in (images, -jnp.ones((1, 8, 8, 1)))
    )
    difference = (logits - blank)[jnp.arange(2), classes]
    left = []
    for steps in (2, 20, 200):
        shares = integrated_gradients(model, variables, images, classes, baseline, steps)
        left.append(float(jnp.abs(shares.sum((1, 2, 3)) - difference).max()))
    assert left[2] < 0.01 * float(jnp.abs(difference).max()) and left[2] < left[1] < left[0]


def test_grad_cam_by_hand():
    """Of two feature maps, the one that supports the class shows where it is active.

    It is weighted by its mean gradient.
    """

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            maps = Conv(2, 1, use_bias=False, name="maps")(max_pool(x, 2, 2))
            return Dense(2, name="votes")(jnp.mean(maps, axis=(1, 2)))

    kernel = {
        "maps": {"kernel": jnp.eye(2)[None, None]},
        "votes": {"kernel": jnp.array([[3.0, -1.0], [-2.0, 5.0]]), "bias": jnp.zeros(2)},
    }
    images = np.zeros((2, 8, 8, 2), np.float32)
    images[:, 0:2, 0:2, 0], images[:, 6:8, 6:8, 1] = 1, 1
    maps = np.asarray(grad_cam(Two(), {"params": kernel}, images, jnp.array([0, 1])))
    # A pixel in a corner of the image affects only that corner of the map: 1 times the mean
    # gradient, 3/16 and 5/16.
    assert maps[0, 0, 0] == maps[0].max() == pytest.approx(3 / 16) and maps[1, 7, 7] == maps[
        1
    ].max() == pytest.approx(5 / 16)
    assert (maps[0, 4:] == 0).all() and (maps[1, :4] == 0).all()


def test_grad_cam_takes_the_last_layer_with_positions():
    model, variables, images = chain()
    classes = jnp.array([1, 2])
    last = grad_cam(model, variables, images, classes)
    np.testing.assert_array_equal(last, grad_cam(model, variables, images, classes, "pool2"))
    assert not np.allclose(last, grad_cam(model, variables, images, classes, "conv1_1"))


def test_bad_inputs():
    model, variables, images = chain()
    classes = jnp.array([1, 2])
    for call, message in (
        (
            lambda: gradient(model, variables, images.astype(int), classes),
            r"floating-point images \[N, \*spatial, C\]; these are int",
        ),
        (
            lambda: gradient(model, variables, images, classes[:1]),
            r"classes \[N\]; it returns \[\(2, 3\)\], and the classes are \(1,\)",
        ),
        (
            lambda: gradient(model, variables, images, jnp.array([1.0, 2.0])),
            r"classes must be integers \[N\]; these are float32 \(2,\)",
        ),
        (lambda: gradient(model, variables, images, classes, "guided "), "did you mean 'guided'"),
        (lambda: grad_cam(model, variables, images, classes, "pol2"), "did you mean 'pool2'"),
        (
            lambda: grad_cam(model, variables, images, classes, "fc1"),
            r"fc1 is \(6,\). The last layer with spatial axes is dropout1",
        ),
        (
            lambda: grad_cam(Linear(), Linear().init(KEY, images), images, classes),
            "this module has none",
        ),
        (
            lambda: occlusion(model, variables, images, classes, window=9),
            "a window of 9 pixels at stride 2 does not fit into 8 pixels",
        ),
        (lambda: occlusion(model, variables, images, classes, window=(2, 2, 2)), "2 spatial axes"),
        (lambda: integrated_gradients(model, variables, images, classes, steps=0), "steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


METHODS = (gradient, guided_backpropagation, integrated_gradients, grad_cam, occlusion)


@pytest.mark.parametrize("method", METHODS)
def test_classes_may_be_a_list(method):
    model, variables, images = chain()
    np.testing.assert_array_equal(
        *(method(model, variables, images, classes) for classes in ([1, 2], jnp.array([1, 2])))
    )


@pytest.mark.parametrize("ndim", [1, 3])
def test_waveforms_and_volumes(ndim):
    model = jaxconv.create_model("chain", 3, filters=(2, 3))
    x = jax.random.normal(KEY, (2, *(8,) * ndim, 2))
    variables, classes = model.init(KEY, x, train=False), jnp.array([1, 2])
    maps = {method.__name__: np.asarray(method(model, variables, x, classes)) for method in METHODS}
    assert {m.shape for name, m in maps.items() if name in ("grad_cam", "occlusion")} == {
        x.shape[:-1]
    }
    assert {m.shape for name, m in maps.items() if name not in ("grad_cam", "occlusion")} == {
        x.shape
    }
    figure = attribution_figure(np.asarray(x[0]), {name: m[0] for name, m in maps.items()})
    assert set(maps) <= {text.get_text() for text in figure.axes[0].texts}
    figure.draw_without_rendering()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_family(name):
    """Guided gradients have the shape of the images; Grad-CAM has their spatial shape."""
    size, arguments = ONE_OF_EACH[name]
    model = jaxconv.create_model(name, 10, **arguments)
    shape = (2, size, size, 1 if name == "lenet5" else 3)
    variables, x = abstract_variables(model, shape), jax.ShapeDtypeStruct(shape, jnp.float32)
    guided, cam = jax.eval_shape(
        lambda v, x: (
            guided_backpropagation(model, v, x, jnp.array([0, 1])),
            grad_cam(model, v, x, jnp.array([0, 1])),
        ),
        variables,
        x,
    )
    assert guided.shape == shape and cam.shape == shape[:-1]


class Own(nn.Module):
    """A custom module: Linen layers, an unhashable field, integers clipped at 0."""

    sizes: list

    @nn.compact
    def __call__(self, x, train):
        brightest = jnp.maximum(jnp.argmax(x.mean((1, 2)), axis=-1) - 1, 0)
        for filters in self.sizes:
            x = nn.relu(nn.GroupNorm(2)(nn.Conv(filters, (3, 3))(x)))
        x = nn.BatchNorm(use_running_average=not train)(nn.max_pool(x, (2, 2), (2, 2)))
        return nn.Dense(3)(x.mean((1, 2))) + nn.Embed(3, 3)(brightest)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_s_own_module(dtype):
    module, images, classes = (
        Own([4, 6]),
        jax.random.normal(KEY, (2, 8, 8, 3), dtype),
        jnp.array([1, 2]),
    )
    variables = module.init(KEY, images, train=False)
    for method in METHODS if dtype == jnp.float32 else (gradient, guided_backpropagation):
        maps = method(module, variables, images, classes)
        assert (
            maps.shape in (images.shape, images.shape[:-1])
            and np.isfinite(np.asarray(maps, np.float32)).all()
        ), method
    ordinary = jax.grad(
        lambda x: module.apply(variables, x, train=False)[jnp.arange(2), classes].sum()
    )(images)
    np.testing.assert_allclose(
        *(
            np.asarray(m, np.float32)
            for m in (gradient(module, variables, images, classes), ordinary)
        ),
        atol=1e-3,
    )


def test_patches_of_one_s_own_module():
    images = np.asarray(jax.random.normal(KEY, (2, 8, 8, 3)))
    found = strongest_patches(
        Own([4, 6]), Own([4, 6]).init(KEY, images, train=False), [images], "Conv_0", most=2
    )
    assert found.patches.shape == (4, 2, 3, 3, 3)
