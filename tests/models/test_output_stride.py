"""`output_stride` and `norm`: what they keep, what they change, and what they refuse."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import jaxconv
from jaxconv.arithmetic import atrous_spacings, output_size
from jaxconv.errors import UserError
from jaxconv.layers import average_pool, convolve, group_count, max_pool
from jaxconv.models.configured import build_model
from jaxconv.models.network import NORMS
from tests.conftest import ROOT, rarely, tiny_config
from tests.models.test_registry import MODELS, SMALLEST, paths_of, variables_of

# The table of docs/guides/backbones.md by family, and networks of each.
FAMILIES = {
    "ResNet, ResNeXt, wide, SE, ECA, SK, D, RS; CSPResNet": "resnet18 resnet50 resnet50_v1 "
    "resnet18_v2 resnet50_v2 resnext50_32x4d wide_resnet50_2 se_resnet50 resnet18d resnetrs50 "
    "ecaresnet26t skresnet18 cspresnet50",
    "ResNet for CIFAR": "resnet20_cifar",
    "RegNet, RepVGG, MobileNet, MNASNet, EfficientNet, Xception": "regnet_x_400mf "
    "regnet_y_400mf mobilenet_v1 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small mnasnet0_5 "
    "efficientnet_b0 efficientnet_lite0 efficientnet_v2_s repvgg_a0 xception",
    "DarkNet, CSPDarkNet": "darknet53",
    "ConvNeXt": "convnext_tiny convnextv2_atto",
    "NFNet": "dm_nfnet_f0",
    "DenseNet, ShuffleNet": "densenet121 shufflenet_v2_x0_5",
    "GoogLeNet": "googlenet googlenet_torchvision",
    "Inception v3": "inception_v3",
    "SqueezeNet": "squeezenet1_0 squeezenet1_1",
    "VGG": "vgg11 vgg11_bn vgg16_conv1",
    "AlexNet": "alexnet alexnet_2012 alexnet_torchvision",
    "ZFNet": "zfnet_base",
    "LeNet-5, All-CNN-C": "lenet5 all_cnn_c",
}
NAMES = [name for names in FAMILIES.values() for name in names.split()]
# Their layers without padding make maps smaller than the stride says.
SHRINKING = ("alexnet", "zfnet", "squeezenet")
NORMLESS = (
    "googlenet",
    "vgg11",
    "vgg16_conv1",
    "alexnet",
    "alexnet_2012",
    "alexnet_torchvision",
    "zfnet_base",
    "lenet5",
    "all_cnn_c",
    "squeezenet1_0",
    "squeezenet1_1",
    "dm_nfnet_f0",
    "chain",
)


def table():
    rows = re.findall(
        r"^\| (.*?) \| (.*?) \| (.*?) \|$", (ROOT / "docs/guides/backbones.md").read_text(), re.M
    )
    return {family: (strides, norm) for family, strides, norm in rows[1:]}


def strides_of(family):
    return [int(stride) for stride in table()[family][0].split(", ")]


def test_the_page_s_table_has_every_family():
    assert [*table()] == [*FAMILIES, "`chain`", "`text:`"]
    # Airbench has no output stride to choose.
    assert {*SMALLEST} - {"chain", "airbench94"} <= {*NAMES}


def unless_alike(name, *more):
    """A parameter, of which those that are like others of their family run with --full."""
    first = {names.split()[0] for names in FAMILIES.values()}
    alike = name not in (*first, "mobilenet_v2", "vgg11_bn")
    return pytest.param(name, *more, marks=pytest.mark.full if alike else ())


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        unless_alike(name, stride)
        for family, names in FAMILIES.items()
        for name in names.split()
        for stride in (
            strides_of(family)
            if name in ("resnet18", "vgg11_bn")
            else [s for s in strides_of(family) if s == 8] or strides_of(family)[-1:]
        )
    ],
)
def test_every_family_by_shapes(name, stride):
    """The last map has that stride; paths and shapes of parameters and logits are the same."""
    _, published, x = variables_of(name, num_classes=5)
    model, variables, _ = variables_of(name, num_classes=5, output_stride=stride)
    assert paths_of(variables) == paths_of(published)
    logits = jax.eval_shape(functools.partial(model.apply, train=False), variables, x)
    assert logits.shape == (1, 5) and logits.dtype == jnp.float32
    maps = [
        info for info in jaxconv.feature_info(model, x.shape[1:]).values() if len(info.shape) == 3
    ]
    coarsest = [info for info in maps if info.shape[0] > 1 and info.stride[0] <= stride][-1]
    assert coarsest.stride == (stride, stride)
    if x.shape[1] == 224 and not name.startswith(SHRINKING):
        assert coarsest.shape[:2] == (224 // stride,) * 2


@pytest.mark.parametrize(
    ("name", "possible"),
    [(name, strides_of(family)) for family, names in FAMILIES.items() for name in names.split()],
)
def test_strides_that_it_cannot_have_are_refused_with_those_it_can(name, possible):
    for stride in (-8, 3, 64):
        listed = ", ".join(map(str, possible))
        with pytest.raises(
            ValueError, match=f"output_stride is {stride}; .* can be {listed}, or 0"
        ):
            jaxconv.create_model(name, 5, output_stride=stride)


# Networks without means over a whole map, on sizes that the strides do and do not divide.
EXACT = {
    "resnet18": ({"units": (1, 1, 2, 1), "width": 8}, 3),
    "resnet50_v1": ({"units": (1, 2, 2), "width": 8}, 3),
    "resnet18_v2": ({"units": (1, 2, 1, 1), "width": 8}, 3),
    "resnet20_cifar": ({"units": (1, 2, 1), "width": 8}, 3),
    "resnext50_32x4d": ({"units": (1, 2, 1), "width": 32, "groups": 4, "group_width": 2}, 3),
    "regnet_x_400mf": ({"depth": 6}, 3),
    "densenet121": ({"layers": (1, 2, 2, 1), "growth": 4, "width": 8}, 3),
    "mobilenet_v1": ({"width": 0.25}, 3),
    "mobilenet_v2": ({"width": 0.25}, 3),
    "convnext_tiny": ({"blocks": (1, 1, 2, 1), "widths": (8, 8, 16, 16)}, 3),
    "googlenet": ({"modules": "3a 4a 4b 5a"}, 3),
    "googlenet_torchvision": ({"modules": "3a 4a 5b"}, 3),
    "inception_v3": ({"modules": "5b 6a 6b 7a 7b", "auxiliary": False}, 3),
    "mnasnet0_5": ({"width": 0.25}, 3),
    "shufflenet_v2_x0_5": ({"units": (1, 2, 2), "widths": (8, 8, 16)}, 3),
    "squeezenet1_0": ({}, 3),
    "resnet18d": ({"units": (1, 1, 2, 1), "width": 8, "deep_stem": (4, 4)}, 3),
    "resnetrs50": ({"units": (1, 2, 1), "width": 8, "squeeze": 0}, 3),
    "repvgg_a0": ({"layers": (1, 1, 2, 2, 1), "widths": (8, 8, 8, 16, 16)}, 3),
    "darknet53": ({"units": (1, 1, 2), "widths": (8, 16, 16), "stem": 8}, 3),
    "cspresnet50": ({"units": (1, 1, 2), "widths": (8, 16, 16), "stem": 8}, 3),
    "xception": ({"blocks": ((8, 8), (8, 8), (8, 16)), "pooled": (1, 2, 3)}, 3),
    "chain": (
        {"filters": (4, 5, 6), "convs": 2, "filter_size": 5, "padding": 1, "rounding": "ceil"},
        1,
    ),
    "text:conv5-4/2p0 relu maxpool3/2ceil conv3-5g1d2p1 relu avgpool2 conv3-6/2 bn relu fc7 fc": (
        {},
        3,
    ),
}
QUICK = [(name, 75) for name in ("resnet20_cifar", [*EXACT][-1])]


def perturbed(variables):
    """Variables whose norms, statistics and scales are none of their initial values."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            leaf + jax.random.uniform(key, leaf.shape) * (0.2 if leaf.ndim == 1 else 0.0)
            for key, leaf in zip(keys, leaves, strict=True)
        ],
    )


def pace(name, size):
    """The marks of a case: sizes besides the first, and most networks, run with --full."""
    if (name, size) in QUICK:
        return ()
    some = name == "chain" and size == 75
    return pytest.mark.slow if some else pytest.mark.full


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param(name, size, marks=pace(name, size)) for name in EXACT for size in (75, 64, 97)],
)
def test_the_positions_of_before_hold_the_values_of_before(name, size):
    """The law of dilation: every k-th value of a dilated map is that of the strided network."""
    arguments, channels = EXACT[name]
    if name == "googlenet" and size != 97:
        arguments = {**arguments, "auxiliary": False}
    size += 32 if name == "inception_v3" else 0  # which takes no smaller images
    plain = jaxconv.create_model(name, 3, **arguments)
    x = jax.random.normal(jax.random.key(0), (2, size, size - 7, channels))
    init = functools.partial(plain.init, train=False)
    variables = perturbed(jax.jit(init)(jax.random.key(1), x))
    wanted = jax.jit(functools.partial(jaxconv.features, plain))(variables, x)
    strides_before = jaxconv.feature_info(plain, x.shape[1:])
    strides, fixed = plain.strides()
    products = [1, *itertools.accumulate(strides, int.__mul__)]
    for stride in sorted({*products[fixed:-1]} - {products[-1]})[-2:]:
        model = plain.clone(output_stride=stride)
        info = jaxconv.feature_info(model, x.shape[1:])
        found = jax.jit(functools.partial(jaxconv.features, model))(variables, x)
        assert any(found[n].shape != wanted[n].shape for n in wanted)
        for key, value in wanted.items():
            if value.ndim == 4 and all(strides_before[key].stride):
                times = int(strides_before[key].stride[0] / info[key].stride[0])
                thinned = found[key][:, ::times, ::times]
                np.testing.assert_allclose(
                    thinned, value, rtol=2e-4, atol=2e-4 * float(jnp.abs(value).max()), err_msg=key
                )
            elif key.startswith("fc"):
                np.testing.assert_allclose(found[key], value, rtol=2e-3, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(6, 40),
    window=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    spacing=st.integers(1, 4),
    rounding=st.sampled_from(("floor", "ceil")),
    kind=st.sampled_from(("max", "average", "conv")),
)
def test_a_layer_without_its_stride(
    size, window, stride, padding, dilation, spacing, rounding, kind
):
    """On every spacing-th pixel it is the strided layer; with floor it keeps the map's size."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, size, 2)).astype(np.float32))
    dilation, padding = (dilation, padding) if kind == "conv" else (1, min(padding, window - 1))
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(window, 2, 3)).astype(np.float32))

    def layer(x, atrous):
        if kind == "conv":
            return convolve(x, kernel, stride, padding, dilation, 1, rounding, atrous=atrous)
        pool = max_pool if kind == "max" else average_pool
        return pool(x, window, stride, padding, rounding, atrous=atrous)

    thin = x[:, ::spacing]
    if thin.shape[1] + 2 * padding < (window - 1) * dilation + 1:
        return
    wanted, found = layer(thin, 0), layer(x, spacing)
    count = output_size(thin.shape[1], window, stride, padding, dilation, rounding)
    assert found.shape[1] <= count * stride * spacing
    np.testing.assert_allclose(found[:, :: stride * spacing], wanted, rtol=1e-4, atol=1e-5)
    if padding * 2 == (window - 1) * dilation and rounding == "floor":
        assert found.shape[1] == size


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.data())
def test_spacings(strides, data):
    products = [1, *itertools.accumulate(strides, int.__mul__)]
    fixed = data.draw(st.integers(0, len(strides)))
    wanted = data.draw(st.sampled_from(products[fixed:]))
    spacings = atrous_spacings(strides, wanted, fixed)
    kept = [1 if spacing else stride for stride, spacing in zip(strides, spacings, strict=True)]
    assert np.prod(kept) == wanted and not any(spacings[:fixed])
    removed = 1
    for stride, spacing in zip(strides, spacings, strict=True):
        assert spacing in (0, removed)
        removed *= stride if spacing else 1
    assert atrous_spacings(strides, 0, fixed) == (0,) * len(strides)


def test_a_text_s_strides_that_differ_between_axes():
    text = "text:conv3-4 maxpool2x3 globalpool fc"
    assert jaxconv.create_model(text, 2).output_stride == 0
    with pytest.raises(ValueError, match=r"stride of pool1 is 2x3; give it one for all axes"):
        jaxconv.create_model(text, 2, output_stride=1)


# Norms.


@pytest.mark.parametrize("norm", rarely(NORMS[1:], set(NORMS[1:]) - {"group"}))
@pytest.mark.parametrize("name", ["chain", *map(unless_alike, NAMES)])
def test_norms_of_every_family(name, norm):
    arguments = {"batch_norm": True} if name == "chain" else {}
    if name in NORMLESS and not arguments:
        with pytest.raises(ValueError, match=f"norm is '{norm}', which would do nothing"):
            jaxconv.create_model(name, 5, norm=norm)
        return
    size = SMALLEST.get(name)
    _, published, _ = variables_of(name, size, num_classes=5, **arguments)
    model, variables, x = variables_of(
        name, size, num_classes=5, norm=norm, dtype="bfloat16", **arguments
    )
    assert ("batch_stats" in variables) == (norm == "frozen")
    if norm in ("none", "frozen"):
        paths = paths_of(variables["params"])
        names = {path.split()[0].rsplit("/", 1)[-1] for path in paths}
        assert names <= {"kernel", "bias", "scale"}  # ConvNeXt's blocks have a scale of their own
        assert not any("norm" in path for path in paths)
        # ECA's convolutions never have a bias.
        if norm == "none" and name not in ("vgg11_bn", "ecaresnet26t"):
            assert sum("bias" in path for path in paths_of(variables)) >= sum(
                "kernel" in path for path in paths_of(variables)
            )
    else:
        assert paths_of(variables["params"]) == paths_of(published["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    apply = functools.partial(
        model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    logits, _ = jax.eval_shape(apply, variables, x)
    assert logits.shape == (1, 5) and logits.dtype == jnp.float32


@given(st.integers(1, 3000))
def test_group_counts(channels):
    groups = group_count(channels)
    assert 1 <= groups <= 32 and channels % groups == 0
    assert channels // groups >= 2 or channels == 1
    if channels % 32 == 0 and channels >= 64:
        assert groups == 32


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_values_of_norms(norm):
    """By NumPy, with and without spatial axes; nothing differs between training and inference."""
    model = jaxconv.from_text("bn", 0).clone(norm=norm)
    for shape in ((3, 4, 5, 12), (3, 12)):
        x = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
        variables = model.init(jax.random.key(0), x, train=False)
        scale, bias = (np.random.default_rng(n).normal(size=12).astype(np.float32) for n in (1, 2))
        variables = {"params": {"norm_input": {"scale": scale, "bias": bias}}}
        grouped = x.reshape(3, -1, *((6, 2) if norm == "group" else (1, 12)))
        axes = (1, 3) if norm == "group" else (2, 3)
        mean, var = (f(grouped, axis=axes, keepdims=True) for f in (np.mean, np.var))
        wanted = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(shape) * scale + bias
        for train in (False, True):
            found = model.apply(variables, x, train=train)
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_no_norm_of_a_chain_is_the_chain_without():
    arguments = {"filters": (4, 5), "neurons": (3,)}
    plain = jaxconv.create_model("chain", 2, **arguments)
    none = jaxconv.create_model("chain", 2, batch_norm=True, norm="none", **arguments)
    x = jnp.ones((1, 8, 8, 1))
    variables = plain.init(jax.random.key(0), x, train=False)
    np.testing.assert_array_equal(
        *(model.apply(variables, x, train=True) for model in (plain, none))
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18", {"norm": "grup"}, "norm is 'grup', did you mean 'group'"),
        ("resnet18", {"norm": "group", "frozen_norm": True}, "frozen_norm is True.*'group'"),
        ("resnet18", {"norm": "none", "norm_groups": 2}, "norm_groups is 2.*'none'"),
        ("convnext_tiny", {"frozen_norm": True}, "frozen_norm is True.*'layer'"),
        ("vgg11", {"frozen_norm": True}, "frozen_norm is True.*the text has no bn"),
        ("chain", {"norm": "layer"}, "norm is 'layer'.*batch_norm is False"),
        ("lenet5", {"norm_groups": 4}, "norm_groups is 4.*the text has no bn"),
        ("resnet20_cifar", {"output_stride": 8}, "can be 1, 2, 4, or 0 for its own, 4"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxconv.create_model(name, 5, **arguments)


def test_a_config_s_norm_and_output_stride():
    config = tiny_config(model__name="resnet20_cifar").model
    config.kwargs = ConfigDict({"norm": "group", "output_stride": 2})
    model = build_model(config, 3)
    assert (model.norm, model.output_stride) == ("group", 2)
    for kwargs, message in (
        ({"norm": "grup"}, "config.model: norm is 'grup', did you mean 'group'"),
        ({"output_stride": 8}, "config.model: output_stride is 8; that of ResNet can be 1, 2, 4"),
        ({"output_stride": "8"}, "output_stride"),
    ):
        config.kwargs = ConfigDict(kwargs)
        with pytest.raises(UserError, match=message):
            build_model(config, 3)


def test_arguments_are_listed():
    for name in MODELS:
        known = jaxconv.model_arguments(name)
        if "backbone" not in known:
            assert known["output_stride"] == 0
        own = "layer" if name.startswith("convnext") else "batch"
        assert known["norm"] == MODELS[name].arguments.get("norm", own)
