"""Backward rules: by hand, against PyTorch's hooks, and over the registry."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.inspect.attribution import gradient, guided_backpropagation
from jaxconv.inspect.inside import apply
from jaxconv.layers import Conv, max_pool
from jaxconv.models import MODELS, abstract_variables
from tests.models.test_registry import SMALLEST, TRAINED

X = jnp.array([[-3.5, -1.0, -0.2, 0.3, 1.0, 4.0, 7.0]])
SIGNAL = jnp.array([[1.0, -1.0, 2.0, 0.5, -2.0, 3.0, 1.0]])


class Elementwise(nn.Module):
    function: object

    def __call__(self, x):
        return self.function(x)


def back(function, rule, x=X, signal=SIGNAL):
    """The output, and the result of a backward signal."""
    y, down = jax.vjp(lambda x: apply(Elementwise(function), {}, x, rule)[0], x)
    return y, down(signal)[0]


def by_hand(x):
    return x * nn.sigmoid(1.702 * x)


RECTIFIERS = [
    nn.relu,
    nn.relu6,
    nn.silu,
    nn.hard_swish,
    nn.gelu,
    lambda x: nn.gelu(x, approximate=False),
    nn.elu,
    nn.leaky_relu,
    nn.softplus,
    jax.nn.mish,
    lambda x: x * nn.hard_sigmoid(x),
    by_hand,
    jax.jit(by_hand),
    jax.checkpoint(by_hand),
    lambda x: jnp.maximum(x, 0),
    lambda x: jnp.maximum(0.0, x),
    lambda x: jnp.maximum(jnp.zeros_like(x), x),
]


@pytest.mark.parametrize("function", RECTIFIERS)
def test_rectifiers(function):
    y, ordinary = jax.vjp(function, X)
    (ordinary,) = ordinary(SIGNAL)
    slope = ordinary / SIGNAL
    expected = {
        "gradient": ordinary,
        "deconvnet": jnp.maximum(SIGNAL, 0),
        "guided": jnp.where(X > 0, slope * jnp.maximum(SIGNAL, 0), 0),
    }
    for rule, signal in expected.items():
        out, came = back(function, rule)
        np.testing.assert_allclose(out, y, rtol=1e-6)
        np.testing.assert_allclose(came, signal, rtol=1e-5, atol=1e-6, err_msg=rule)


def norm(x):
    """Computes as Linen's LayerNorm does."""
    variance = jnp.maximum(
        0.0, jnp.mean(x * x, axis=1, keepdims=True) - jnp.mean(x, axis=1, keepdims=True) ** 2
    )
    return x * jax.lax.rsqrt(variance + 1e-6)


PLAIN = [
    nn.tanh,
    nn.sigmoid,
    nn.hard_sigmoid,
    lambda x: 2 * x * x,
    lambda x: x * nn.sigmoid(x[:, ::-1]),
    norm,
]


@pytest.mark.parametrize("function", PLAIN)
def test_what_does_not_rectify(function):
    ordinary = jax.vjp(function, X)[1](SIGNAL)[0]
    for rule in ("gradient", "deconvnet", "guided"):
        np.testing.assert_allclose(back(function, rule)[1], ordinary, rtol=1e-5, atol=1e-6)


def test_guided_backpropagation_by_hand():
    """The logit is relu(x) times the weights 2, 5 and -1; the second input is negative."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1, use_bias=False, name="votes")(nn.relu(x).reshape(1, 3))

    x, variables = (
        jnp.array([[[1.0], [-2.0], [3.0]]]),
        {"params": {"votes": {"kernel": jnp.array([[2.0], [5.0], [-1.0]])}}},
    )
    maps = {
        rule: gradient(Net(), variables, x, jnp.array([0]), rule).ravel().tolist()
        for rule in ("gradient", "deconvnet", "guided")
    }
    assert maps == {"gradient": [2, 0, -1], "deconvnet": [2, 5, 0], "guided": [2, 0, 0]}
    assert guided_backpropagation(Net(), variables, x, jnp.array([0])).ravel().tolist() == [2, 0, 0]


POOLS = [
    lambda x: max_pool(x, 2, 2),
    lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    lambda x: jnp.max(x, axis=(1, 2), keepdims=True),
]


@pytest.mark.parametrize("pool", POOLS)
def test_a_switch_is_one_position(pool):
    x = jnp.array([[0.0, 1.0], [1.0, 1.0]]).reshape(1, 2, 2, 1)
    for rule in ("deconvnet", "guided"):
        y, came = back(pool, rule, x, jnp.full((1, 1, 1, 1), 6.0))
        assert y.ravel().tolist() == [1] and came.ravel().tolist() == [0, 6, 0, 0]
    ordinary = jax.vjp(pool, x)[1](jnp.full((1, 1, 1, 1), 6.0))[0]
    np.testing.assert_allclose(back(pool, "gradient", x, jnp.full((1, 1, 1, 1), 6.0))[1], ordinary)


def test_not_a_number_stays_what_it_is():
    x = jnp.array([[jnp.nan, 1.0], [2.0, 3.0]]).reshape(1, 2, 2, 1)
    assert jnp.isnan(back(POOLS[0], "guided", x, jnp.ones((1, 1, 1, 1)))[0]).all()
    assert jnp.isnan(back(POOLS[0], "guided", x[:, ::-1, ::-1], jnp.ones((1, 1, 1, 1)))[0]).all()


def test_branches_and_loops():
    """Rules apply in the branches of a `cond`; a loop with a rectifier is rejected."""
    branched = lambda x: jax.lax.cond(x[0, 0] < 0, nn.relu, nn.tanh, x)  # noqa: E731
    np.testing.assert_array_equal(back(branched, "deconvnet")[1], jnp.maximum(SIGNAL, 0))
    looped = lambda x: jax.lax.scan(lambda carry, _: (nn.relu(carry), None), x, length=2)[0]  # noqa: E731
    np.testing.assert_array_equal(back(looped, "gradient")[1], jax.vjp(looped, X)[1](SIGNAL)[0])
    with pytest.raises(
        ValueError, match="'guided' cannot be applied to a rectifier inside a 'scan'"
    ):
        back(looped, "guided")


class Tiny(nn.Module):
    """conv, ReLU, max pooling, conv, ReLU, logits."""

    @nn.compact
    def __call__(self, x):
        x = max_pool(nn.relu(Conv(5, 3, padding=1, name="conv1")(x)), 3, 2)
        x = nn.relu(Conv(6, 3, padding=1, name="conv2")(x))
        return Conv(4, x.shape[1:-1], name="votes")(x)[:, 0, 0]


@pytest.mark.parametrize("rule", ["gradient", "deconvnet", "guided"])
def test_as_pytorch_s_hooks_do_it(rule):
    torch = pytest.importorskip("torch")
    x = jax.random.normal(jax.random.key(0), (3, 11, 9, 2))
    variables = Tiny().init(jax.random.key(1), x)
    layers = []
    for name, padding in (("conv1", 1), ("conv2", 1), ("votes", 0)):
        kernel, bias = (
            np.asarray(variables["params"][name][which]) for which in ("kernel", "bias")
        )
        layer = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[:2], padding=padding)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
            layer.bias.copy_(torch.from_numpy(bias.copy()))
        layers.append(layer)
    net = torch.nn.Sequential(
        layers[0], torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2), layers[1], torch.nn.ReLU(), layers[2]
    )
    hooks = {
        "gradient": lambda module, into, out: into,
        "deconvnet": lambda module, into, out: (out[0].clamp(min=0),),
        "guided": lambda module, into, out: (into[0].clamp(min=0),),
    }
    for module in net:
        if isinstance(module, torch.nn.ReLU):
            module.register_full_backward_hook(hooks[rule])
    images = torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy()).requires_grad_()
    classes = [3, 0, 2]
    net(images)[:, :, 0, 0].gather(1, torch.tensor(classes)[:, None]).sum().backward()
    maps = gradient(Tiny(), variables, x, jnp.array(classes), rule)
    np.testing.assert_allclose(
        maps, images.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5
    )


# One network of each family: an image size, and arguments for a minimal version.
ONE_OF_EACH = {
    "lenet5": (32, {}),
    "googlenet": (65, {"modules": "3a"}),
    "resnet18": (32, {"units": (1, 1)}),
    "densenet121": (32, {"layers": (1, 1), "growth": 4}),
    "mobilenet_v3_small": (32, {"rows": TRAINED["mobilenet_v3_small"][1]["rows"]}),
    "efficientnet_b0": (32, {"stages": ((1, 3, 1, 8, 1), (6, 5, 2, 8, 1))}),
    "regnet_y_400mf": (32, {"depth": 2}),
    "convnext_tiny": (32, {"blocks": (1, 1), "widths": (8, 16)}),
    "shufflenet_v2_x0_5": (32, {"units": (2,), "widths": (48,)}),
    "inception_v3": (75, {"modules": "7a 7b", "auxiliary": False}),
    "skresnet18": (32, {"units": (1, 1)}),
    "convnextv2_atto": (32, {"blocks": (1, 1), "widths": (8, 16)}),
    "repvgg_a0": (32, {"layers": (1, 2), "widths": (8, 8)}),
    "dm_nfnet_f0": (32, {"units": (1,), "widths": (16,), "last": 16, "group_width": 4}),
    "cspresnet50": (32, {"units": (1, 1), "widths": (16, 32), "stem": 8}),
    "xception": (32, {"blocks": ((8, 8), (8, 16)), "pooled": (2,)}),
    "airbench94": (32, {"widths": (4, 6, 8)}),
    "text:conv3-8/2 lrn relu maxpool3/2ceil conv3-16g2 bn relu globalpool dropout0.1 fc": (16, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_ordinary_rule_gives_the_ordinary_gradient(name):
    size, arguments = ONE_OF_EACH[name]
    channels = 3 if name.startswith("text:") else MODELS[name].input_size[-1]
    model = jaxconv.create_model(name, 3, **arguments)
    x = jax.random.normal(jax.random.key(0), (1, size, size, channels))
    # Weights without compilation, and logits that depend on the whole network.
    shapes = abstract_variables(model, x.shape)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: (
            abs(random.normal(0, 0.3, leaf.shape)).astype(leaf.dtype) / max(1, leaf.size) ** 0.25
        ),
        shapes,
    )

    @jax.jit
    def both(variables, x):
        ordinary = jax.value_and_grad(lambda x: model.apply(variables, x, train=False)[:, 1].sum())(
            x
        )
        return ordinary, jax.value_and_grad(lambda x: apply(model, variables, x)[0][:, 1].sum())(x)

    (vote, ordinary), (same, interpreted) = both(variables, x)
    scale = float(jnp.abs(ordinary).max())
    assert scale > 0 and np.isfinite(scale)
    np.testing.assert_allclose(same, vote, rtol=1e-5)
    np.testing.assert_allclose(interpreted, ordinary, rtol=1e-3, atol=1e-4 * scale)


# The number of rectifiers of each network, counted by hand.
RECTIFIED = {
    "chain": 2,
    "lenet5": 0,
    "alexnet": 5 + 2,
    "alexnet_2012": 5 + 2,
    "alexnet_torchvision": 5 + 2,
    "zfnet_base": 5 + 2,
    "vgg11": 8 + 2,
    "vgg11_bn": 8 + 2,
    "all_cnn_c": 9,
    "googlenet": 3 + 9 * 6,
    "googlenet_torchvision": 3 + 9 * 6,
    "resnet18": 1 + 8 * 2,
    "resnet50": 1 + 16 * 3,
    "resnet18_v2": 8 * 2 + 1,
    "resnet20_cifar": 1 + 9 * 2,
    "resnext50_32x4d": 1 + 16 * 3,
    "se_resnet50": 1 + 16 * 4,
    "densenet121": 1 + 58 * 2 + 3 + 1,
    "mobilenet_v1": 1 + 13 * 2,
    "mobilenet_v2": 1 + 1 + 16 * 2 + 1,
    # After the depthwise convolution in all 11 units, after the 1x1 before it in all but the first,
    # and in the squeeze-and-excitation of 9.
    "mobilenet_v3_small": 1 + 11 + 10 + 9 + 2,
    "efficientnet_b0": 1 + 16 + 15 + 16 + 1,
    "efficientnet_lite0": 1 + 16 + 15 + 1,
    "regnet_x_400mf": 1 + 22 * 3,
    "regnet_y_400mf": 1 + 16 * 4,
    "convnext_tiny": 18,
    "airbench94": 7,
    "squeezenet1_0": 1 + 8 * 2 + 1,
    "squeezenet1_1": 1 + 8 * 2 + 1,
    # Block 2 expands nothing.
    "mnasnet0_5": 1 + 17 + 16 + 1,
    "shufflenet_v2_x0_5": 1 + 16 * 2 + 3 + 1,
    # 10 fused units; 30 with two activations and one in squeeze-and-excitation.
    "efficientnet_v2_s": 1 + 10 + 30 * 3 + 1,
    # The stem, Figure 5, mixed6a, Figure 6, mixed7a, Figure 7.
    "inception_v3": 5 + 3 * 7 + 4 + 4 * 10 + 6 + 2 * 9,
    "resnet18d": 3 + 8 * 2,
    "resnetrs50": 3 + 1 + 16 * 4,
    "ecaresnet26t": 3 + 8 * 3,
    # Two kernels and what their shares are computed from, and the end of the unit.
    "skresnet18": 1 + 8 * 4,
    "convnextv2_atto": 12,
    "repvgg_a0": 22,
    "dm_nfnet_f0": 3 + 12 * 5 + 1,
    "darknet53": 1 + 5 + 23 * 2,
    # The 1x1 before a stage's units has none.
    "cspresnet50": 1 + 3 + 13 * 3 + 4 * 2,
    "xception": 2 + 1 + 2 * 2 + 8 * 3 + 2 + 2,
}


@pytest.mark.parametrize("name", SMALLEST)
def test_all_rectifiers_of_the_smallest_of_each_family_are_found(name):
    model = jaxconv.create_model(name, 10)
    shape = (1, *MODELS[name].input_size)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    program = jax.make_jaxpr(lambda v, x: apply(model, v, x, "guided")[0])(
        abstract_variables(model, shape), x
    )
    assert (
        program.out_avals[0].shape == (1, 10)
        and str(program).count("custom_vjp_call[") == RECTIFIED[name]
    )
