"""Detectors as networks: outputs and their shapes on any backbone, settings, and their layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.layers import ConvTranspose, FrozenBatchNorm
from jaxconv.layers.resize import repeat
from jaxconv.models import abstract_variables
from jaxconv.models.ssd import L2Norm

KEY = jax.random.key(0)


def shapes(name, size, classes=5, train=False, **arguments):
    model = jaxconv.create_model(name, classes, **arguments)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = abstract_variables(model, x.shape)
    run = functools.partial(model.apply, train=train, mutable=["batch_stats"])
    outputs = jax.eval_shape(run, variables, x)[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    return jax.tree.map(lambda leaf: leaf.shape, outputs, is_leaf=lambda x: hasattr(x, "dtype"))


@pytest.mark.parametrize("backbone", ["efficientnet_b0", "vgg16"])
def test_one_stage_on_any_backbone(backbone):
    found = shapes("retinanet_resnet50_fpn", (96, 128), backbone=backbone)
    grids = [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]
    assert found["logits"] == tuple((2, *grid, 9, 5) for grid in grids)
    assert found["codes"] == tuple((2, *grid, 9, 4) for grid in grids)
    found = shapes("fcos_resnet50_fpn", (96, 128), backbone=backbone, dtype="bfloat16")
    assert found["centerness"] == tuple((2, *grid, 1, 1) for grid in grids)


def test_two_stages_on_another_backbone():
    found = shapes("maskrcnn_resnet50_fpn", (70, 100), backbone="mobilenet_v2", train=True)
    grids = [(18, 25), (9, 13), (5, 7), (3, 4), (2, 2)]
    assert found["objectness"] == tuple((2, *grid, 3, 1) for grid in grids)
    # By default the image is the only region.
    assert found["box_logits"] == (2, 1, 6) and found["box_codes"] == (2, 1, 6, 4)
    assert found["masks"] == (2, 1, 28, 28, 6)


def test_ssd_has_the_paper_s_boxes():
    found = shapes("ssd300_vgg16", (300, 300))
    sides = [shape[1] for shape in found["codes"]]
    assert sides == [38, 19, 10, 5, 3, 1]
    assert sum(np.prod(shape[1:4]) for shape in found["codes"]) == 8732
    found = shapes("ssdlite320_mobilenet_v3_large", (320, 320))
    assert [shape[1] for shape in found["logits"]] == [20, 10, 5, 3, 2, 1]
    assert found["logits"][0][-1] == 6


def test_c4_shares_four_stages_and_has_the_fifth_for_each_region():
    found = shapes("faster_rcnn_c4_resnet101", (96, 128))
    assert found["objectness"] == ((2, 6, 8, 9, 1),) and found["box_logits"] == (2, 1, 6)
    model = jaxconv.create_model("faster_rcnn_c4_resnet101", 80)
    params = abstract_variables(model, (1, 96, 96, 3))["params"]
    assert "conv5_1" in params and "conv5_1" not in params["backbone"]
    assert "conv4_23" in params["backbone"]
    shapes("faster_rcnn_c4_resnet101", (96, 96), backbone="resnext50_32x4d")
    for backbone in ("vgg16", "resnet50_v2"):
        with pytest.raises(ValueError, match="the last stage of a ResNet of version 1 or 1.5"):
            jaxconv.create_model("faster_rcnn_c4_resnet101", 5, backbone=backbone)


@pytest.mark.parametrize(
    "name", ["retinanet_resnet50_fpn", "ssd300_vgg16", "maskrcnn_resnet50_fpn"]
)
def test_features_and_no_classes(name):
    model = jaxconv.create_model(name, 0)
    x = jax.ShapeDtypeStruct((1, 320, 320, 3), jnp.float32)
    variables = abstract_variables(model, x.shape)
    levels = jax.eval_shape(functools.partial(model.apply, train=False), variables, x)["pyramid"]
    info = jaxconv.feature_info(jaxconv.create_model(name, 3), x.shape[1:])
    named = [one for key, one in info.items() if key.startswith(("pyramid", "map"))]
    assert [one.shape for one in named] == [level.shape[1:] for level in levels]


def test_a_frozen_norm_has_no_parameters_and_does_not_change():
    model = jaxconv.create_model("retinanet_resnet50_fpn", 3)
    variables = abstract_variables(model, (1, 64, 64, 3))
    paths = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    assert not any("norm" in str(path) for path, _ in paths)
    statistics = variables["batch_stats"]["backbone"]["conv1"]["norm"]
    assert statistics.keys() == {"mean", "var", "scale", "bias"}
    # Another backbone has a norm of its own.
    other = jaxconv.create_model("retinanet_resnet50_fpn", 3, backbone="resnet18")
    assert other.backbone.norm == "batch"
    other = jaxconv.create_model("retinanet_resnet50_fpn", 3, backbone="resnet18", norm="frozen")
    assert other.backbone.norm == "frozen"
    x = jax.random.normal(KEY, (2, 5, 4))
    values = {"mean": 1.0, "var": 4.0, "scale": 3.0, "bias": -1.0}
    given = {"batch_stats": {name: jnp.full(4, value) for name, value in values.items()}}
    np.testing.assert_allclose(
        FrozenBatchNorm().apply(given, x), (x - 1) / (4 + 1e-5) ** 0.5 * 3 - 1, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("retinanet_resnet50_fpn", {"head_norm": "grup"}, "head_norm is 'grup', did you mean"),
        ("retinanet_resnet50_fpn", {"extra": "pool"}, "extra is 'pool'.*level, map"),
        ("retinanet_resnet50_fpn", {"box_loss": "diou"}, "box_loss is 'diou', did you mean 'giou'"),
        ("retinanet_resnet50_fpn", {"backbone": "resnet20_cifar"}, "no map at stride 8"),
        ("ssd300_vgg16", {"backbone": "resnet81"}, "did you mean 'resnet18'"),
        ("faster_rcnn_c4_resnet101", {"masks": True}, "C4 has a head for boxes"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxconv.create_model(name, 3, **arguments)


@pytest.mark.parametrize(("name", "rows"), [("retinanet_resnet50_fpn", 5), ("ssd300_vgg16", 6)])
def test_levels_and_anchors_must_agree(name, rows):
    key = "anchor_sizes" if rows == 5 else "anchor_ratios"
    model = jaxconv.create_model(name, 3, **{key: ((8,),)})
    with pytest.raises(ValueError, match=f"{rows} (levels|maps)?.*{key} are of 1"):
        abstract_variables(model, (1, 300, 300, 3))


def test_repeat_and_transposed_convolutions_are_pytorch_s():
    torch = pytest.importorskip("torch")
    x = jax.random.normal(KEY, (2, 5, 7, 3))
    as_torch = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))
    for size in ((10, 14), (9, 13), (5, 8)):
        wanted = torch.nn.functional.interpolate(as_torch, size, mode="nearest")
        np.testing.assert_array_equal(repeat(x, size), wanted.numpy().transpose(0, 2, 3, 1))
    for window, stride, padding in ((2, 2, 0), (4, 2, 1), (3, 1, 1)):
        module = ConvTranspose(6, window, stride, padding)
        variables = module.init(KEY, x)
        kernel = np.asarray(variables["params"]["kernel"])
        layer = torch.nn.ConvTranspose2d(3, 6, window, stride, padding)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(kernel[::-1, ::-1].transpose(2, 3, 0, 1).copy()))
            layer.bias.zero_()
            wanted = layer(as_torch).numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(module.apply(variables, x), wanted, atol=1e-5)


def test_the_norm_of_zeros_has_a_gradient():
    module, x = L2Norm(), jnp.zeros((1, 2, 2, 4)).at[0, 0, 0, 0].set(3.0)
    variables = module.init(KEY, x)
    y, back = jax.vjp(lambda x: module.apply(variables, x), x)
    assert y[0, 0, 0, 0] == 20 and jnp.sum(jnp.abs(y)) == 20
    assert jnp.all(jnp.isfinite(back(jnp.ones_like(y))[0]))
