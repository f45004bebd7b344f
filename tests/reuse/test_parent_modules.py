"""Our layers, blocks and networks inside of other people's Linen modules, and under Linen's
transformations `nn.scan`, `nn.remat`, `nn.vmap`, `nn.jit`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.layers import BatchNorm, Conv, Pool, max_pool
from jaxconv.models.resnet import Unit

images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


class UNet(nn.Module):
    """Someone's small U-Net of our layers: [N, H, W, C] -> one logit per pixel [N, H, W]."""

    @nn.compact
    def __call__(self, x, train):
        def block(x, filters):
            x = Conv(filters, 3, padding=1, use_bias=False)(x)
            return nn.relu(BatchNorm(use_running_average=not train)(x))

        fine = block(x, 8)
        coarse = block(max_pool(fine), 16)
        up = jax.image.resize(coarse, (*fine.shape[:3], 16), "nearest")
        x = block(jnp.concatenate([fine, up], axis=-1), 8)
        return Conv(1, 1)(x)[..., 0]


def test_our_layers_in_someone_s_module():
    variables = UNet().init(jax.random.key(0), images, train=False)
    names = [f"{kind}_{n}" for n in range(4) for kind in ("Conv", "BatchNorm")]
    assert [*variables["params"]] == names[:-1]
    logits, state = UNet().apply(variables, images, train=True, mutable=["batch_stats"])
    assert logits.shape == (4, 8, 8)
    kernel = variables["params"]["Conv_0"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    close(state["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * maps.mean((0, 1, 2)))
    assert "Conv_0" in str(jaxconv.summarize(UNet(), (8, 8, 3)))


def test_layers_in_a_sequential():
    layers = [Conv(8, 3, padding=1), nn.relu, Pool("max"), Pool("global"), nn.Dense(2)]
    stack = nn.Sequential(layers)
    variables = stack.init(jax.random.key(0), images)
    first, last = ({"params": variables["params"][f"layers_{n}"]} for n in (0, 4))
    x = nn.relu(nn.Conv(8, (3, 3)).apply(first, images))
    x = nn.max_pool(x, (2, 2), (2, 2)).mean((1, 2))
    close(stack.apply(variables, images), nn.Dense(2).apply(last, x))


def unit(train):
    """The fields of a block of ResNet, which takes constructors of convolution and norm."""
    norm = functools.partial(BatchNorm, use_running_average=not train)
    conv = functools.partial(Conv, use_bias=False)
    tools = {"conv": conv, "norm": norm, "train": train}
    return {"filters": 8, "middle": 8, "stride": 1, "bottleneck": False, **tools}


class Loop(nn.Module):
    """Three blocks, one after the other."""

    train: bool
    wrapped: type = Unit

    @nn.compact
    def __call__(self, x):
        for n in range(3):
            x = self.wrapped(**unit(self.train), name=f"unit{n}")(x)
        return x


class Scan(nn.Module):
    """The same blocks as one, scanned over a leading axis of the variables."""

    train: bool

    @nn.compact
    def __call__(self, x):
        body = nn.scan(
            lambda module, x, _: (module(x), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=3,
        )
        return body(Unit(**unit(self.train), name="unit"), x, None)[0]


def of_loop_and_scan():
    x = Conv(8, 1).init_with_output(jax.random.key(0), images)[0]
    stacked = Scan(False).init(jax.random.key(0), x)
    apart = {
        name: {f"unit{n}": jax.tree.map(lambda v, n=n: v[n], tree["unit"]) for n in range(3)}
        for name, tree in stacked.items()
    }
    return x, stacked, apart


def test_blocks_under_scan_are_blocks_in_a_loop():
    x, stacked, apart = of_loop_and_scan()
    kernel = stacked["params"]["unit"]["conv1"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 3, 8, 8) and not np.allclose(kernel[0], kernel[1])
    one, one_state = Loop(True).apply(apart, x, mutable=["batch_stats"])
    two, two_state = Scan(True).apply(stacked, x, mutable=["batch_stats"])
    close(one, two)
    mean = [s["batch_stats"] for s in (one_state, two_state)]
    close(mean[0]["unit2"]["conv2"]["norm"]["mean"], mean[1]["unit"]["conv2"]["norm"]["mean"][2])


@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_blocks_under_a_transformation_are_themselves(transform):
    x, _, apart = of_loop_and_scan()

    def loss(params, module):
        y, state = module.apply({**apart, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(y**2), state

    plain = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    close(*(plain(apart["params"], Loop(True, kind)) for kind in (Unit, transform(Unit))))


class Towers(nn.Module):
    """Two encoders of one form, with weights of their own, for pairs [N, 2, H, W, C]."""

    @nn.compact
    def __call__(self, x, train):
        encoder = jaxconv.create_model("resnet20_cifar", num_classes=0, units=(1,), width=8)
        both = nn.vmap(
            lambda module, x: module(x, train=train),
            in_axes=1,
            out_axes=1,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )
        return both(encoder.copy(name="encoder"), x)


def test_two_networks_under_vmap_are_each_alone():
    pairs = jnp.stack([images, images[::-1]], axis=1)
    variables = Towers().init(jax.random.key(0), pairs, train=False)
    found = Towers().apply(variables, pairs, train=False)
    encoder = jaxconv.create_model("resnet20_cifar", num_classes=0, units=(1,), width=8)
    for n in range(2):
        own = {
            name: jax.tree.map(lambda v, n=n: v[n], tree["encoder"])
            for name, tree in variables.items()
        }
        close(found[:, n], encoder.apply(own, pairs[:, n], train=False))
    kernel = variables["params"]["encoder"]["conv1"]["conv"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


class Levels(nn.Module):
    """Someone's head on two levels of our network, which may be recomputed for the gradient."""

    backbone: nn.Module
    remat: bool = False

    @nn.compact
    def __call__(self, x, train):
        def maps_of(backbone, x):
            return backbone(x, train=train, features=("conv2", "conv3"))

        maps = (nn.remat(maps_of) if self.remat else maps_of)(self.backbone, x)
        return {name: Conv(5, 1, name=f"head_{name}")(level) for name, level in maps.items()}


def backbone():
    return jaxconv.create_model("resnet20_cifar", num_classes=10, units=(1, 1), width=8)


def test_feature_maps_inside_of_a_parent():
    """The backbone's parameters are those of the network alone, such as published weights."""
    model = Levels(backbone())
    variables = model.init(jax.random.key(0), images, train=False)
    assert "fc" not in variables["params"]["backbone"]  # what comes after the maps is not there
    alone = backbone().init(jax.random.key(3), images, train=False)
    params = {**variables["params"], "backbone": alone["params"]}
    variables = {"params": params, "batch_stats": {"backbone": alone["batch_stats"]}}
    found = model.apply(variables, images, train=False)
    maps = jaxconv.features(backbone(), alone, images)
    assert [*found] == ["conv2", "conv3"]
    for name, level in found.items():
        close(level, Conv(5, 1).apply({"params": params[f"head_{name}"]}, maps[name]))


def test_feature_maps_are_recomputed_for_the_gradient():
    variables = Levels(backbone()).init(jax.random.key(0), images, train=False)

    def gradient(remat):
        def loss(params):
            levels, state = Levels(backbone(), remat).apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return sum(jnp.sum(level**2) for level in levels.values()), state

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    close(gradient(True), gradient(False))
