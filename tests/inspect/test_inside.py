"""Layers by name and replaced layers, in networks of the registry and other Linen modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.inspect.inside import activations, apply, seen
from jaxconv.models.chain import Chain


class Own(nn.Module):
    """A custom module: a layer called twice, one with several outputs, a rematerialised one."""

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
    return model, model.init(jax.random.key(1), x, train=False), x


def test_layers_of_a_network():
    model, variables, x = chain()
    layers = activations(model, variables, x)
    first = [
        "conv1_1",
        "norm1_1",
        "pool1",
        "conv2_1",
        "norm2_1",
        "pool2",
        "dropout1",
        "fc1",
        "dropout_votes",
        "votes",
    ]
    assert list(layers) == first
    for name, noted in jaxconv.features(model, variables, x).items():
        np.testing.assert_array_equal(layers[name], noted)
    np.testing.assert_array_equal(layers["votes"], model.apply(variables, x, train=False))
    jitted = jax.jit(lambda x: activations(model, variables, x))(x)
    for name, value in layers.items():
        np.testing.assert_allclose(jitted[name], value, rtol=1e-5, atol=1e-6)


def test_layers_of_one_s_own_module():
    module, variables, x = own()
    layers = activations(module, variables, x)
    assert list(layers) == ["twice", "twice#2", "two[0]", "two[1]", "again", "norm"]
    params = variables["params"]["twice"]
    np.testing.assert_allclose(
        layers["twice"], x @ params["kernel"] + params["bias"].reshape(1, -1), rtol=1e-5
    )
    np.testing.assert_array_equal(layers["two[1]"], 2 * nn.relu(layers["twice#2"]))
    outputs, _ = apply(module, variables, x)
    np.testing.assert_array_equal(
        outputs["votes"], module.apply(variables, x, train=False)["votes"]
    )


def test_a_network_inside_of_a_module():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="top")(Chain(0, filters=(3,), name="backbone")(x, train=False))

    x = jnp.ones((1, 8, 8, 1))
    layers = activations(Outer(), Outer().init(jax.random.key(0), x), x)
    assert (
        "backbone/conv1_1" in layers
        and layers["backbone/pool1"].shape == (1, 4, 4, 3)
        and list(layers)[-1] == "top"
    )


def test_the_network_from_a_layer_on():
    model, variables, x = chain()
    logits, layers = apply(model, variables, x)
    again, after = apply(model, variables, x, replaced={"pool1": layers["pool1"] + 1})
    assert (
        not np.allclose(again, logits)
        and (after["pool1"] == layers["pool1"] + 1).all()
        and (after["conv1_1"] == layers["conv1_1"]).all()
    )
    same, _ = apply(model, variables, 0 * x, replaced={"pool1": layers["pool1"]})
    np.testing.assert_array_equal(same, logits)
    # The logit of class 1 is linear in the last layer's input.
    slope = jax.grad(
        lambda before: apply(model, variables, x, replaced={"dropout_votes": before})[0][:, 1].sum()
    )(layers["dropout_votes"])
    np.testing.assert_allclose(
        slope, np.tile(variables["params"]["votes"]["kernel"][:, 1], (2, 1)), rtol=1e-6
    )


def test_replacing_a_layer_that_is_called_twice():
    module, variables, x = own()
    _, layers = apply(module, variables, x, replaced={"twice#2": -x})
    assert (layers["two[0]"] == nn.relu(-x) + 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "guidde"}, "no backward rule is called 'guidde', did you mean 'guided'"),
        ({"replaced": {"pol1": 0}}, "no layer is called 'pol1', did you mean 'pool1'"),
        (
            {"replaced": {"pool1": jnp.ones((2, 4, 4, 3))}},
            r"pool1 has shape \(2, 4, 4, 4\); its replacement has shape \(2, 4, 4, 3\)",
        ),
    ],
)
def test_what_cannot_be(arguments, message):
    model, variables, x = chain()
    with pytest.raises(ValueError, match=message):
        apply(model, variables, x, **arguments)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(3, name="dense")(x)), None


class Loop(nn.Module):
    """Linen's own loop over layers, which leaves an equation without outputs behind."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="before")(x)
        x, _ = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)(
            name="loop"
        )(x, None)
        return nn.Dense(2, name="after")(x)


def test_layers_inside_of_a_loop_have_no_name_and_cannot_be_replaced():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    variables = Loop().init(jax.random.key(1), x)
    logits, layers = apply(Loop(), variables, x)
    np.testing.assert_array_equal(logits, Loop().apply(variables, x))
    assert list(layers) == ["before", "after"]
    with pytest.raises(
        ValueError, match="loop/dense is inside nn.scan, nn.vmap or a similar transform"
    ):
        apply(Loop(), variables, x, replaced={"loop/dense": 0 * x})


class Mapped(nn.Module):
    """Layers whose axes are moved by `nn.vmap`, which traces them for one row."""

    @nn.compact
    def __call__(self, x):
        dense = nn.vmap(
            nn.Dense,
            in_axes=1,
            out_axes=1,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return nn.Dense(2, name="after")(dense(4, name="rows")(x).mean((1, 2)))


def test_layers_inside_of_vmap_have_no_name_and_cannot_be_replaced():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    variables = Mapped().init(jax.random.key(1), x)
    logits, layers = apply(Mapped(), variables, x)
    np.testing.assert_allclose(logits, Mapped().apply(variables, x), rtol=1e-6)
    assert list(layers) == list(seen(Mapped(), variables, x)) == ["after"]
    with pytest.raises(ValueError, match="rows is inside nn.scan, nn.vmap or a similar transform"):
        apply(Mapped(), variables, x, replaced={"rows": 0 * x})
    # A vmap around the whole call does not change the names.
    mapped = jax.vmap(lambda x: activations(Mapped(), variables, x))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(mapped["after"][0], layers["after"], rtol=1e-5)


def test_what_a_layer_sees():
    model, variables, x = chain()
    layers = seen(model, variables, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert layers["conv1_1"].extents == {0: (-1, 1), 1: (-1, 1)} and layers["pool1"].extents[0] == (
        -1,
        2,
    )
    assert layers["conv2_1"].stride() == (2, 2) and layers["conv2_1"].extents[1] == (-3, 4)
    info = jaxconv.feature_info(model, x.shape[1:])
    assert {name: (layers[name].field(), layers[name].stride()) for name in info} == {
        n: (m.field, m.stride) for n, m in info.items()
    }
