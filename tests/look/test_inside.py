"""Layers by name, the network from a layer on, and other backward rules, for networks of the registry and any other Linen module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxconv
from jaxconv.look.inside import activations, apply
from jaxconv.models.chain import Chain


class Own(nn.Module):
    """One's own module: a layer that is called twice, one with several outputs, and a rematerialised one."""

    @nn.compact
    def __call__(self, x, train):
        twice = nn.Dense(3, name="twice")
        x = nn.relu(twice(twice(x)))
        x, y = Two(name="two")(x)
        x = nn.remat(nn.Dense)(4, name="again")(x + y)
        return {"votes": nn.BatchNorm(use_running_average=not train, name="norm")(x)}


class Two(nn.Module):
    def __call__(self, x):
        return x + 1, 2 * x


def own():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    return Own(), Own().init(jax.random.key(1), x, train=False), x


def chain():
    model = jaxconv.create_model("chain", 3, filters=(4, 5), neurons=(6,), batch_norm=True)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    return model, model.init(jax.random.key(1), x), x


def test_layers_of_a_network():
    model, variables, x = chain()
    layers = activations(model, variables, x)
    first = ["conv1_1", "norm1_1", "pool1", "conv2_1", "norm2_1", "pool2", "dropout1", "fc1", "dropout_votes", "votes"]
    assert list(layers) == first
    for name, noted in jaxconv.features(model, variables, x).items():
        np.testing.assert_array_equal(layers[name], noted)
    np.testing.assert_array_equal(layers["votes"], model.apply(variables, x))
    jitted = jax.jit(lambda x: activations(model, variables, x))(x)
    for name, value in layers.items():
        np.testing.assert_allclose(jitted[name], value, rtol=1e-5, atol=1e-6)


def test_layers_of_one_s_own_module():
    module, variables, x = own()
    layers = activations(module, variables, x)
    assert list(layers) == ["twice", "twice#2", "two[0]", "two[1]", "again", "norm"]
    params = variables["params"]["twice"]
    np.testing.assert_allclose(layers["twice"], x @ params["kernel"] + params["bias"].reshape(1, -1), rtol=1e-5)
    np.testing.assert_array_equal(layers["two[1]"], 2 * nn.relu(layers["twice#2"]))
    outputs, _ = apply(module, variables, x)
    np.testing.assert_array_equal(outputs["votes"], module.apply(variables, x, train=False)["votes"])


def test_a_network_inside_of_a_module():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="top")(Chain(0, filters=(3,), name="backbone")(x))

    x = jnp.ones((1, 8, 8, 1))
    layers = activations(Outer(), Outer().init(jax.random.key(0), x), x)
    assert "backbone/conv1_1" in layers and layers["backbone/pool1"].shape == (1, 4, 4, 3) and list(layers)[-1] == "top"
