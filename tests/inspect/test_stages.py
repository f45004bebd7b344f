"""The stages of any network: their kinds, names and values."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.inspect.depth import weighted_depth
from jaxconv.inspect.inside import activations
from jaxconv.inspect.stages import stages
from jaxconv.layers import max_pool
from jaxconv.program import call_arguments


def of(model, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    init = functools.partial(model.init, **call_arguments(model, False, {}))
    variables = jax.jit(lambda key: init(key, jnp.asarray(x[None])))(jax.random.key(0))
    return x, variables, stages(model, variables, x)


def test_a_chain():
    model = jaxconv.create_model("chain", 3, filters=(4, 8), batch_norm=True, neurons=(6,))
    x, variables, found = of(model, (8, 8, 1))
    assert [(stage.name, stage.kind) for stage in found] == [
        ("", "input"),
        ("conv1_1", "convolution"), ("norm1_1", ""), ("", "ReLU"), ("pool1", "pooling"),
        ("conv2_1", "convolution"), ("norm2_1", ""), ("", "ReLU"), ("pool2", "pooling"),
        ("fc1", "fully connected"), ("fc1", "ReLU"), ("votes", "fully connected"),
    ]  # fmt: skip
    layers = activations(model, variables, x[None])
    for stage in found:
        if stage.name and stage.kind != "fully connected":
            np.testing.assert_allclose(stage.value, layers[stage.name][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[3].value, np.maximum(found[2].value, 0))
    np.testing.assert_array_equal(found[5].given, found[4].value)
    last = found[-1]
    np.testing.assert_allclose(
        last.given @ last.weights + variables["params"]["votes"]["bias"],
        last.value,
        rtol=1e-4,
        atol=1e-5,
    )


class Own(nn.Module):
    """Pooling, activations and means outside of modules, and a norm."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = max_pool(nn.gelu(nn.LayerNorm()(nn.Conv(4, (3, 3), name="b")(x))))
        x = jnp.maximum(nn.Dense(5)(x.mean((1, 2))), 0)
        return nn.Dense(3)(jnp.tanh(x))


def test_a_module_of_one_s_own():
    x, variables, found = of(Own(), (16, 16, 2))
    assert [(stage.name, stage.kind) for stage in found] == [
        ("", "input"),
        ("Conv_0", "convolution"),
        ("", "ReLU"),
        ("", "pooling"),
        ("b", "convolution"),
        ("LayerNorm_0", ""),
        ("", "GELU"),
        ("", "pooling"),
        ("Dense_0", "fully connected"),
        ("", "ReLU"),
        ("", "tanh"),
        ("Dense_1", "fully connected"),
    ]
    # Max pooling and the mean after it are one stage: there is no mark between them.
    assert [stage.value.shape for stage in found[6:8]] == [(8, 8, 4), (4,)]
    np.testing.assert_allclose(
        found[-1].value, Own().apply(variables, x[None])[0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(
        found[3].value, nn.max_pool(found[2].value[None], (2, 2), (2, 2))[0]
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Conv(4, (3, 3), name="first")(x))
        return nn.relu(x + nn.Conv(4, (3, 3), name="second")(y))


class Blocks(nn.Module):
    """Residual blocks, parallel branches, and a gate."""

    @nn.compact
    def __call__(self, x):
        x = Block(name="a")(nn.Conv(4, (3, 3), name="stem")(x))
        x = jnp.concatenate(
            [
                nn.relu(nn.Conv(2, (1, 1), name="left")(x)),
                nn.relu(nn.Conv(3, (3, 3), name="right")(x)),
            ],
            axis=-1,
        )
        x = x * nn.sigmoid(nn.Dense(5, name="gate")(x.mean((1, 2)))).reshape(-1, 1, 1, 5)
        return nn.Dense(3, name="votes")(
            nn.Conv(4, (8, 8), padding="VALID", name="last")(x).reshape(x.shape[0], -1)
        )


def test_blocks_branches_and_gates():
    x, variables, found = of(Blocks(), (8, 8, 1))
    assert [(stage.name, stage.kind) for stage in found] == [
        ("", "input"),
        ("stem", "convolution"),
        ("a/first", "convolution"),
        ("", "ReLU"),
        ("a/second", "convolution"),
        ("a", "ReLU"),
        ("left", "convolution"),
        ("", "ReLU"),
        ("right", "convolution"),
        ("", "ReLU"),
        ("gate", "fully connected"),
        ("", "sigmoid"),
        ("last", "convolution"),
        ("votes", "fully connected"),
    ]
    np.testing.assert_allclose(
        found[5].value, np.maximum(found[1].value + found[4].value, 0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(found[8].given, found[5].value)
    np.testing.assert_allclose(
        found[-1].value, Blocks().apply(variables, x[None])[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(32, 2), (8, 8, 8, 1)])
def test_other_dimensions(shape):
    x, variables, found = of(jaxconv.create_model("chain", 2, filters=(3,)), shape)
    assert [stage.kind for stage in found] == [
        "input",
        "convolution",
        "ReLU",
        "pooling",
        "fully connected",
    ]
    assert found[1].weights.shape == (3,) * (len(shape) - 1) + (shape[-1], 3)


class Resized(nn.Module):
    """Products without weights, and with weights computed from others."""

    @nn.compact
    def __call__(self, x):
        x = jax.image.resize(nn.Conv(3, (3, 3))(x), (x.shape[0], 16, 16, 3), "bilinear")
        x = nn.SpectralNorm(nn.Conv(4, (3, 3), name="b"))(x, update_stats=False)
        return nn.Dense(3)(x.max((1, 2)))


def test_products_without_weights_are_no_layers():
    _, _, found = of(Resized(), (8, 8, 2))
    assert [stage.kind for stage in found if stage.weights is not None] == [
        "convolution",
        "convolution",
        "fully connected",
    ]
    assert weighted_depth(Resized(), (8, 8, 2)) == 3
