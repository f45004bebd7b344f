"""Detectors against torchvision's: as many parameters as it publishes, and the same outputs of the
heads for converted random weights.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.weights.torchvision import load_torchvision
from tests.weights.detectors import (
    TURNED,
    as_torch,
    detectors,  # noqa: F401
    flat,
    random_detector,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

# `num_params` of torchvision 0.28's weights, whose statistics of frozen norms are not among them.
PARAMETERS = {
    "retinanet_resnet50_fpn": 34_014_999,
    "retinanet_resnet50_fpn_v2": 38_198_935,
    "fcos_resnet50_fpn": 32_269_600,
    "fasterrcnn_resnet50_fpn": 41_755_286,
    "fasterrcnn_resnet50_fpn_v2": 43_712_278,
    "fasterrcnn_mobilenet_v3_large_fpn": 19_386_354,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 19_386_354,
    "maskrcnn_resnet50_fpn": 44_401_393,
    "maskrcnn_resnet50_fpn_v2": 46_359_409,
    "keypointrcnn_resnet50_fpn": 59_137_258,
    "ssd300_vgg16": 35_641_826,
    "ssdlite320_mobilenet_v3_large": 3_440_060,
}
SIZES = {"ssd300_vgg16": (300, 300), "ssdlite320_mobilenet_v3_large": (320, 320)}
QUICK = ("retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn", *SIZES)


def some(names):
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.full) for n in names]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_torchvision_s(name):
    assert jaxconv.model_info(name).parameters == PARAMETERS[name]


def background(name):
    """1 where torchvision counts the background among the classes."""
    return int(not name.startswith(("retinanet", "fcos")))


def both(torchvision, name, classes=7, **settings):
    """Both networks for so many of torchvision's classes, our variables, and two images."""
    size = SIZES.get(name, (96, 160))
    model = random_detector(torchvision, name, size, classes, **settings)
    variables = load_torchvision(name, model.state_dict())
    ours = jaxconv.create_model(name, classes - background(name))
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    return model, ours, variables, images


def close(found, wanted):
    wanted = wanted.detach().numpy()
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("name", some(n for n in PARAMETERS if "rcnn" not in n))
def test_heads_of_one_stage_are_torchvision_s(detectors, name):  # noqa: F811
    model, ours, variables, images = both(detectors, name)
    found = jax.jit(functools.partial(ours.apply, train=False))(variables, images)
    with torch.no_grad():
        wanted = model.head(list(model.backbone(as_torch(images)).values()))
    names = {"logits": "cls_logits", "codes": "bbox_regression", "centerness": "bbox_ctrness"}
    assert found.keys() == {ours for ours, theirs in names.items() if theirs in wanted}
    for name, levels in found.items():
        close(flat(levels), wanted[names[name]])


@pytest.mark.parametrize("name", some(n for n in PARAMETERS if "rcnn" in n))
def test_heads_of_two_stages_are_torchvision_s(detectors, name):  # noqa: F811
    model, ours, variables, images = both(detectors, name)
    size, random = images.shape[1:3], np.random.default_rng(1)
    corners = np.sort(random.uniform(0, size, (2, 5, 2, 2)), axis=2).astype(np.float32)
    boxes = corners.reshape(2, 5, 4)
    regions = [torch.from_numpy(of_image[:, TURNED].copy()) for of_image in boxes]

    def choose(found):
        return {"boxes": jnp.asarray(boxes)}

    run = functools.partial(ours.apply, train=False, propose=choose, select=choose)
    found = jax.jit(run)(variables, images)
    heads, sizes = model.roi_heads, [size] * 2
    with torch.no_grad():
        maps = model.backbone(as_torch(images))
        objectness, codes = model.rpn.head(list(maps.values()))
        for levels, wanted in ((found["objectness"], objectness), (found["codes"], codes)):
            for level, map_of in zip(levels, wanted, strict=True):
                joined = level.reshape(*level.shape[:3], -1)
                close(joined, map_of.permute(0, 2, 3, 1))
        pooled = heads.box_head(heads.box_roi_pool(maps, regions, sizes))
        logits, codes = heads.box_predictor(pooled)
        close(found["box_logits"].reshape(logits.shape), logits)
        close(found["box_codes"].reshape(codes.shape), codes)
        if heads.has_mask():
            pooled = heads.mask_head(heads.mask_roi_pool(maps, regions, sizes))
            wanted = heads.mask_predictor(pooled).permute(0, 2, 3, 1)
            close(found["masks"].reshape(wanted.shape), wanted)
        if heads.has_keypoint():
            pooled = heads.keypoint_head(heads.keypoint_roi_pool(maps, regions, sizes))
            wanted = heads.keypoint_predictor(pooled).permute(0, 2, 3, 1)
            close(found["keypoints"].reshape(wanted.shape), wanted)


FIRST_NAMES = {
    "backbone.fpn.inner_blocks.0.0.weight": "backbone.fpn.inner_blocks.0.weight",
    "backbone.fpn.layer_blocks.3.0.bias": "backbone.fpn.layer_blocks.3.bias",
    "rpn.head.conv.0.0.weight": "rpn.head.conv.weight",
    "roi_heads.mask_head.1.0.weight": "roi_heads.mask_head.mask_fcn2.weight",
    "head.classification_head.conv.2.0.bias": "head.classification_head.conv.4.bias",
    "head.regression_head.conv.0.0.weight": "head.regression_head.conv.0.weight",
    "backbone.body.layer1.0.conv1.weight": "backbone.body.layer1.0.conv1.weight",
}


def test_the_names_of_the_first_files_are_understood():
    from jaxconv.weights.detector_names import todays_names

    for name in ("maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"):
        found = todays_names(name, FIRST_NAMES.values())
        assert found == {old: new for new, old in FIRST_NAMES.items()}
        assert todays_names(name, FIRST_NAMES) == {new: new for new in FIRST_NAMES}
    # FCOS has always numbered its layers in a row.
    key = "head.regression_head.conv.0.weight"
    assert todays_names("fcos_resnet50_fpn", [key]) == {key: key}
