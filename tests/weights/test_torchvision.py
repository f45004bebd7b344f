"""Parity with torchvision: converted random weights give the same logits and feature maps.

Needs torch and torchvision, which `.ci/run` installs; skipped where they are absent.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxconv
from jaxconv.models import abstract_variables
from jaxconv.weights.names import keys_of, schemes_of
from jaxconv.weights.torchvision import load_torchvision

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


# Our network, and where its feature maps are in torchvision's.
NETWORKS = {
    "alexnet_torchvision": {
        "conv1": "features.0",
        "pool1": "features.2",
        "pool3": "features.12",
        "fc6": "classifier.1",
    },
    "vgg11": {"conv1_1": "features.0", "pool5": "features.20", "fc7": "classifier.3"},
    "vgg11_bn": {"norm1_1": "features.1", "pool5": "features.28"},
    "googlenet_torchvision": {
        "pool1": "maxpool1",
        "inception3b": "inception3b",
        "pool4": "maxpool4",
        "inception5b": "inception5b",
    },
    "resnet18": {"pool1": "maxpool", "conv2": "layer1", "conv5": "layer4"},
    "resnet50": {"conv2": "layer1", "conv3": "layer2", "conv4": "layer3", "conv5": "layer4"},
    "wide_resnet50_2": {"conv5": "layer4"},
    "resnext50_32x4d": {"conv2": "layer1", "conv5": "layer4"},
    "densenet121": {
        "pool1": "features.pool0",
        "block1": "features.denseblock1",
        "transition1": "features.transition1",
    },
    "mobilenet_v2": {
        "conv1": "features.0",
        "block2": "features.1",
        "block3": "features.3",
        "conv2": "features.18",
    },
    "mobilenet_v3_small": {
        "block1": "features.1",
        "block11": "features.11",
        "conv2": "features.12",
    },
    "mobilenet_v3_large": {"block5": "features.5", "conv2": "features.16"},
    "efficientnet_b0": {
        "stage1": "features.0",
        "stage2": "features.1",
        "stage8": "features.7",
        "stage9": "features.8",
    },
    "regnet_x_400mf": {
        "stem": "stem",
        "stage1": "trunk_output.block1",
        "stage4": "trunk_output.block4",
    },
    "regnet_y_400mf": {
        "stem": "stem",
        "stage1": "trunk_output.block1",
        "stage4": "trunk_output.block4",
    },
    "convnext_tiny": {"stem": "features.0", "res2": "features.1", "res5": "features.7"},
    "squeezenet1_0": {"pool1": "features.2", "fire4": "features.5", "fire9": "features.12"},
    "squeezenet1_1": {"pool3": "features.5", "fire9": "features.12"},
    "mnasnet0_5": {"conv1": "layers.2", "block3": "layers.8", "conv2": "layers.16"},
    "shufflenet_v2_x0_5": {"pool1": "maxpool", "stage2": "stage2", "conv5": "conv5"},
    "inception_v3": {
        "conv4a": "Conv2d_4a_3x3",
        "mixed5d": "Mixed_5d",
        "mixed6e": "Mixed_6e",
        "mixed7c": "Mixed_7c",
    },
}
# The same layouts, larger.
LARGER = [
    "vgg13",
    "vgg16",
    "vgg19",
    "vgg16_bn",
    "resnet34",
    "resnet101",
    "densenet161",
    "efficientnet_b5",
    "regnet_y_1_6gf",
    "convnext_small",
    "mnasnet1_3",
    "shufflenet_v2_x2_0",
    "efficientnet_v2_m",
]
SIZE = 96
# Networks for clips, their maps and torchvision's, and a number of frames.
CLIPS = {
    "mc3_18": {"conv1": "stem", "conv3": "layer2", "conv5": "layer4"},
    "r3d_18": {"conv1": "stem", "conv3": "layer2", "conv5": "layer4"},
    "r2plus1d_18": {"conv1": "stem", "conv2": "layer1", "conv5": "layer4"},
}


def random_torch_model(torchvision, name, **settings):
    """A network of torchvision's in inference mode, see `randomized`."""
    torch.manual_seed(0)
    name = name.removesuffix("_torchvision")
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": True, "init_weights": False}
    model = torchvision.models.get_model(name, weights=None, **{"num_classes": 10} | settings)
    return randomized(model)


def randomized(model):
    """A network in inference mode, with random BatchNorm values."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    for key, parameter in model.named_parameters():
        if key.endswith("layer_scale"):  # 1e-6 would hide whatever the block does
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
    return model.eval()


def compare(torchvision, name, maps, theirs=None, sides=(SIZE, SIZE), **arguments):
    """Logits and maps agree; `theirs` are arguments of torchvision's network, the others ours."""
    model = random_torch_model(torchvision, name, **theirs or {})
    images = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32)
    seen = {}
    for ours, theirs in maps.items():
        model.get_submodule(theirs).register_forward_hook(
            lambda m, i, output, ours=ours: seen.update({ours: output.detach().clone()})
        )
    with torch.no_grad():
        expected = model(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()
    variables = load_torchvision(name, model.state_dict())
    network = jaxconv.create_model(name, 10, **arguments)
    run = jax.jit(lambda v, x: (network.apply(v, x, train=False), jaxconv.features(network, v, x)))
    logits, found = run(variables, jnp.array(images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    for ours in maps:
        value = seen[ours].numpy()
        value = np.moveaxis(value, 1, -1)
        np.testing.assert_allclose(
            found[ours], value, rtol=1e-4, atol=1e-4 * np.abs(value).max(), err_msg=ours
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_maps_agree(torchvision, name):
    compare(torchvision, name, NETWORKS[name])


@pytest.mark.parametrize(
    ("name", "output_stride", "replaced"),
    [
        ("resnet50", 8, [False, True, True]),
        pytest.param("resnet50", 16, [False, False, True], marks=pytest.mark.full),
        pytest.param("resnext50_32x4d", 8, [False, True, True], marks=pytest.mark.full),
    ],
)
def test_dilation_is_torchvision_s(torchvision, name, output_stride, replaced):
    theirs = {"replace_stride_with_dilation": replaced}
    compare(torchvision, name, NETWORKS["resnet50"], theirs, output_stride=output_stride)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "mc3_18" else pytest.mark.full) for name in CLIPS],
)
def test_logits_and_maps_of_clips_agree(torchvision, name):
    compare(torchvision, name, CLIPS[name], sides=(5, 33, 48))


def test_efficientnet_v2_with_a_unit_of_each_kind(torchvision):
    """torchvision's classes, fewer units, in the place of the published 40."""
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    rows = ((1, 1, 8, 2), (4, 2, 16, 2), (4, 2, 24, 1), (4, 2, 32, 2), (6, 1, 40, 1))
    channels = [8, *(row[2] for row in rows)]
    kinds = [FusedMBConvConfig] * 3 + [MBConvConfig] * 2
    settings = [
        kind(expansion, 3, stride, channels[n], filters, units)
        for n, (kind, (expansion, stride, filters, units)) in enumerate(
            zip(kinds, rows, strict=True)
        )
    ]
    norm = functools.partial(torch.nn.BatchNorm2d, eps=1e-3)
    model = randomized(EfficientNet(settings, 0.2, 0.2, 10, norm, 1280))
    images = np.random.default_rng(0).normal(size=(2, 33, 48, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    ours = jaxconv.create_model("efficientnet_v2_s", 10, stages=rows)
    paths = flatten_dict(abstract_variables(ours, images.shape), sep="/")
    state, values = model.state_dict(), {}
    for path, key in keys_of("efficientnet_v2_s", paths).items():
        value = state[key].numpy()
        values[path] = value.transpose(*range(2, value.ndim), 1, 0) if value.ndim > 1 else value
    assert len(values) == sum("num_batches" not in key for key in state)
    apply = functools.partial(ours.apply, train=False)
    logits = jax.jit(apply)(unflatten_dict(values, sep="/"), images)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.full
@pytest.mark.parametrize("name", LARGER)
def test_logits_agree_of_larger_networks(torchvision, name):
    compare(torchvision, name, {})


def test_wrong_entries_are_listed(torchvision):
    state = random_torch_model(torchvision, "resnet18").state_dict()
    state["layer9.weight"] = state.pop("bn1.bias")
    state["conv1.weight"] = torch.zeros(64, 3, 5, 5)
    with pytest.raises(ValueError) as error:
        load_torchvision("resnet18", state)
    message = str(error.value)
    assert "missing: bn1.bias (for params/conv1/norm/bias)" in message
    assert "left over: layer9.weight" in message
    assert (
        "of another shape: conv1.weight is (64, 3, 5, 5), but params/conv1/conv/kernel is (7, 7, "
        "3, 64)" in message
    )
    with pytest.raises(
        ValueError, match="torchvision has no network in the layout of 'se_resnet50'"
    ):
        load_torchvision("se_resnet50", {})


@pytest.mark.full
def test_the_auxiliary_logits_of_inception_v3_agree(torchvision):
    """Of the map that they read, with the statistics and without the dropout of inference."""
    model = random_torch_model(torchvision, "inception_v3")
    variables = load_torchvision("inception_v3", model.state_dict())
    ours = jaxconv.create_model("inception_v3", 10, frozen_norm=True)
    images = np.random.default_rng(0).normal(size=(1, 299, 299, 3)).astype(np.float32)
    with torch.no_grad():
        model.Mixed_6e.register_forward_hook(lambda m, i, output: seen.append(output))
        seen = []
        model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        expected = model.AuxLogits(seen[0]).numpy()
    apply = functools.partial(
        ours.apply, train=True, mutable=["auxiliary"], rngs={"dropout": jax.random.key(0)}
    )
    _, kept = jax.jit(apply)(variables, images)
    logits, weight = kept["auxiliary"]["aux"]
    assert weight == pytest.approx(0.4)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        ("squeezenet1_1", "squeezenet1_0"),
        pytest.param("mnasnet0_5", "mnasnet0_75", marks=pytest.mark.full),
    ],
)
def test_weights_of_a_relative_are_named(torchvision, name, relative):
    state = random_torch_model(torchvision, name).state_dict()
    with pytest.raises(ValueError, match=f"the weights look like those of {name}"):
        load_torchvision(relative, state)


def test_inception_v3_without_its_auxiliary_classifier(torchvision):
    state = random_torch_model(torchvision, "inception_v3").state_dict()
    left = {key: value for key, value in state.items() if not key.startswith("AuxLogits")}
    params = load_torchvision("inception_v3", left)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 23_834_568 - 990 * 2049
    assert params["fc"]["bias"].shape == (10,)


def test_googlenet_without_auxiliaries(torchvision):
    state = random_torch_model(torchvision, "googlenet_torchvision").state_dict()
    variables = load_torchvision(
        "googlenet_torchvision",
        {key: value for key, value in state.items() if not key.startswith("aux")},
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 6_624_904 - 990 * 1025


@pytest.mark.full
def test_no_two_networks_look_alike():
    """By names and sizes, but for those that have all in common, as resnet50 and resnet50_v1."""
    from jaxconv.weights import torchvision as ours

    sizes = {
        name: {key: leaf.size for key, leaf in ours._expected(name, {"aux": 0}).items()}
        for name in jaxconv.list_models()
        if schemes_of(name)
    }
    assert len(sizes) > 50
    for name, one in sizes.items():
        for other, two in sizes.items():
            same = sum(two.get(key) == size for key, size in one.items())
            share = same / len(one.keys() | two.keys())
            assert share == 1 or share < ours._ALIKE, (name, other, share)
            if share == 1 and name != other:
                plain = [n.removesuffix("_v1").replace("_320_fpn", "_fpn") for n in (name, other)]
                assert plain[0] == plain[1]
