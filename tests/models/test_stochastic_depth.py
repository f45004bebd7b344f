"""Stochastic depth: what is dropped in training, and that nothing else changes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.models import create_model
from jaxconv.models.resnet import PreactivationUnit, Unit

NETWORKS = {
    "resnet50": {"units": (1, 2), "width": 8, "small_images": True},
    "resnet18_v2": {"units": (1, 2), "width": 8, "small_images": True},
    "convnext_tiny": {"blocks": (1, 2), "widths": (8, 16)},
    "efficientnet_b0": {"width": 0.25, "stages": ((1, 3, 1, 16, 2), (6, 3, 2, 24, 2))},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_it_acts_in_training_alone(name):
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    still, moving = (
        create_model(name, 5, drop_path=share, **NETWORKS[name]) for share in (0.0, 0.9)
    )
    variables = jax.jit(functools.partial(moving.init, train=False))(jax.random.key(0), images)
    if name == "convnext_tiny":  # its residuals start a millionth as large
        params = jax.tree_util.tree_map_with_path(
            lambda p, x: x * 1e6 if p[-1].key == "scale" and x.ndim == 1 else x, variables["params"]
        )
        variables = variables | {"params": params}
    shapes = [
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
        for model in (still, moving)
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    np.testing.assert_array_equal(
        *(model.apply(variables, images, train=False) for model in (still, moving))
    )

    def logits(key, dtype=jnp.float32):
        model = create_model(name, 5, dtype, drop_path=0.9, **NETWORKS[name])
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    first, again, second = (np.asarray(jax.jit(logits)(key)) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    half = jax.jit(lambda key: logits(key, jnp.bfloat16))(0)
    assert half.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(half)))


def test_a_unit_is_left_out_whole_and_the_mean_is_kept():
    """Each example either keeps its input or gets the residual scaled by 1/(1 - share)."""
    conv, norm = create_model("resnet18_v2", 5).tools(train=False)
    unit = PreactivationUnit(4, 4, 1, conv, norm, bottleneck=False, drop=0.25, train=True)
    x = jax.random.normal(jax.random.key(0), (2000, 2, 2, 4))
    variables = unit.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)
    whole = unit.clone(drop=0.0).apply(variables, x) - x
    left = unit.apply(variables, x, rngs={"dropout": jax.random.key(1)}) - x
    out = np.all(np.asarray(left) == 0, axis=(1, 2, 3))
    assert abs(out.mean() - 0.25) < 0.04
    np.testing.assert_allclose(
        np.asarray(left)[~out], np.asarray(whole)[~out] / 0.75, rtol=1e-4, atol=1e-5
    )


def test_units_are_left_out_linearly_in_depth():
    """The first unit is never dropped, the last with the full probability."""
    model = create_model("resnet50", 5, units=(2, 2, 1), width=4, small_images=True, drop_path=0.2)
    seen = {}

    def note(next_method, args, kwargs, context):
        if isinstance(context.module, Unit):
            seen[context.module.name] = context.module.drop
        return next_method(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False), jnp.ones((1, 8, 8, 3))
        )
    assert list(seen) == ["conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv4_1"]
    np.testing.assert_allclose(list(seen.values()), [0, 0.05, 0.1, 0.15, 0.2])
