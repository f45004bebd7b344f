"""EfficientNet-Lite0 against a forward pass written in torch, and networks as backbones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxconv
from jaxconv.models import abstract_variables
from jaxconv.train.initial import fit
from jaxconv.weights.names import keys_of
from jaxconv.weights.torchvision import load_torchvision

torch = pytest.importorskip("torch")

# expansion, filter size, stride, units
STAGES = ((1, 3, 1, 1), (6, 3, 2, 2), (6, 5, 2, 2), (6, 3, 2, 3), (6, 5, 1, 3), (6, 5, 2, 4))
STAGES += ((6, 3, 1, 1),)


def random_file():
    """A state dict of EfficientNet-Lite0 under its names, for 10 classes."""
    model = jaxconv.create_model("efficientnet_lite0", 10)
    shapes = flatten_dict(abstract_variables(model, (1, 32, 32, 3)), sep="/")
    random, arrays = np.random.default_rng(0), {}
    for path, key in keys_of("efficientnet_lite0", shapes, "efficientnet_lite_pytorch").items():
        shape = shapes[path].shape
        shape = {4: shape[::-1][:2] + shape[:2], 2: shape[::-1], 1: shape}[len(shape)]
        scale = 1 if len(shape) == 1 else (2 / np.prod(shape[1:])) ** 0.5
        value = random.normal(0, scale, shape).astype(np.float32)
        arrays[key] = 0.5 + abs(value) if path.endswith(("var", "scale")) else value
    return arrays


def by_torch(arrays, x):
    """The logits, written after TensorFlow's definition."""
    weights = {name: torch.from_numpy(value) for name, value in arrays.items()}
    functional = torch.nn.functional

    def conv(x, name, stride=1, groups=1):
        weight = weights[f"{name}.weight"]
        pads = []
        for size in (x.shape[3], x.shape[2]):
            added = max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0)
            pads += [added // 2, added - added // 2]
        return functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=groups)

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(weights[f"{name}.{n}"] for n in names), eps=1e-3)

    x = functional.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    block = 0
    for expansion, _, stride, units in STAGES:
        for n in range(units):
            name, y = f"_blocks.{block}.", x
            if expansion > 1:
                y = functional.relu6(norm(conv(y, name + "_expand_conv"), name + "_bn0"))
            y = conv(y, name + "_depthwise_conv", stride if n == 0 else 1, y.shape[1])
            y = functional.relu6(norm(y, name + "_bn1"))
            y = norm(conv(y, name + "_project_conv"), name + "_bn2")
            x = x + y if n else y
            block += 1
    x = functional.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return x @ weights["_fc.weight"].T + weights["_fc.bias"]


@pytest.mark.slow
def test_logits_are_those_of_tensorflow_s_padding():
    arrays = random_file()
    # One side is even at every stride, the other odd at some.
    images = np.random.default_rng(1).normal(size=(2, 64, 97, 3)).astype(np.float32)
    expected = by_torch(arrays, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    variables = load_torchvision("efficientnet_lite0", arrays)
    model = jaxconv.create_model("efficientnet_lite0", 10)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    other = jaxconv.create_model("efficientnet_lite0", 10, padding=-1)
    with_pixels = jax.jit(lambda v, x: other.apply(v, x, train=False))(variables, images)
    assert np.abs(with_pixels - expected).max() > 1e-2 * np.abs(expected).max()


def numbered(shapes):
    """Arrays of these shapes, each filled with a number of its own."""
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [jnp.full(x.shape, n + 1.0) for n, x in enumerate(leaves)])


def test_a_classifier_becomes_a_backbone():
    tiny = {"stages": ((1, 3, 1, 8, 1), (6, 3, 2, 8, 1))}
    classifier = jaxconv.create_model("efficientnet_lite0", 5, **tiny)
    have = numbered(abstract_variables(classifier, (1, 32, 32, 3)))
    unet = jaxconv.create_model(
        "unet", 3, backbone="efficientnet_lite0", backbone_kwargs=tiny, maps=("stage2", "stage3")
    )
    fresh = jax.tree.map(lambda x: -x, numbered(abstract_variables(unet, (1, 32, 32, 3))))
    fitted, said = fit(have, fresh, 3)
    for collection in ("params", "batch_stats"):
        inner = fitted[collection].pop("backbone")
        assert inner.keys() == have[collection].keys() - {"fc", "stage9"}
        for name, leaves in inner.items():
            jax.tree.map(np.testing.assert_array_equal, leaves, have[collection][name])
        jax.tree.map(
            np.testing.assert_array_equal,
            fitted[collection],
            {k: v for k, v in fresh[collection].items() if k != "backbone"},
        )
    assert any("left out" in line and "fc, stage9" in line for line in said)
    # Weights of the whole network stay the whole network's.
    whole, said = fit(numbered(abstract_variables(unet, (1, 32, 32, 3))), fresh, 3)
    assert said == [] and whole["params"].keys() == fresh["params"].keys()
    del have["params"]["stage2_1"]
    with pytest.raises(ValueError, match="missing: params/backbone/stage2_1"):
        fit(have, fresh, 3)


def test_a_classifier_becomes_a_frozen_backbone_and_back():
    tiny = {"units": (1, 1, 1, 1), "width": 4}
    classifier = jaxconv.create_model("resnet50", 5, **tiny)
    have = numbered(abstract_variables(classifier, (1, 64, 64, 3)))
    sizes = ((32,), (64,), (128,), (256,), (512,))
    detector = jaxconv.create_model(
        "fcos_resnet50_fpn", 3, backbone_kwargs=tiny, filters=8, anchor_sizes=sizes, norm="frozen"
    )
    fresh = jax.tree.map(lambda x: -x, numbered(abstract_variables(detector, (1, 64, 64, 3))))
    fitted, _ = fit(have, fresh, 3)
    stats = fitted["batch_stats"]["backbone"]["conv1"]["norm"]
    for name, collection in (("scale", "params"), ("bias", "params"), ("var", "batch_stats")):
        np.testing.assert_array_equal(stats[name], have[collection]["conv1"]["norm"][name])
    trained = jaxconv.create_model(
        "fcos_resnet50_fpn", 3, backbone_kwargs=tiny, filters=8, anchor_sizes=sizes, norm="batch"
    )
    fresh = jax.tree.map(lambda x: -x, numbered(abstract_variables(trained, (1, 64, 64, 3))))
    again, said = fit(fitted, fresh, 3)
    assert said == []
    scale = again["params"]["backbone"]["conv1"]["norm"]["scale"]
    np.testing.assert_array_equal(scale, have["params"]["conv1"]["norm"]["scale"])


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("retinanet_resnet50_fpn", {"logits"}),
        ("maskrcnn_resnet50_fpn", {"logits", "codes"}),
        ("ssd300_vgg16", {"logits"}),
    ],
)
def test_a_detector_of_other_classes_keeps_what_is_not_of_classes(name, new):
    size = (1, 300, 300, 3) if name == "ssd300_vgg16" else (1, 128, 128, 3)
    shapes = {k: abstract_variables(jaxconv.create_model(name, k), size) for k in (90, 2)}
    zeros = {k: jax.tree.map(lambda x: np.zeros(x.shape), tree) for k, tree in shapes.items()}
    ones = jax.tree.map(np.ones_like, zeros[2])
    fitted, said = fit(zeros[90], ones, 2)
    heads = {line.split(" is newly")[0].rsplit("/", 1)[-1].rstrip("123456") for line in said}
    assert heads == new
    kept = [float(leaf.ravel()[0]) == 0 for leaf in jax.tree.leaves(fitted)]
    assert kept.count(False) == 2 * len(said)
