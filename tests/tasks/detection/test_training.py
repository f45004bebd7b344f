"""Losses of whole detectors against torchvision's, on the same samples: all anchors and regions are
in them; and images without objects, and with small ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.models import abstract_variables
from jaxconv.tasks.detection.training import keypoints_in, losses, training_choices
from tests.weights.detectors import TURNED, as_torch, detectors  # noqa: F401
from tests.weights.test_detectors import PARAMETERS, background, both, some

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow
KEY = jax.random.key(0)
NAMES = {
    "classification": "classes",
    "bbox_regression": "boxes",
    "bbox_ctrness": "centerness",
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
    "loss_keypoint": "keypoints",
}


def truth_of(canvas, masks, joints, classes=6):
    """Three objects in the first image, one in the second, none in the third; sides from 30 to 54
    pixels, of which masks are read with 2x2 points a bin by torchvision too.
    """
    random = np.random.default_rng(0)
    corners = random.uniform(0, np.subtract(canvas, 55), (3, 4, 2))
    boxes = np.concatenate([corners, corners + random.uniform(30, 54, (3, 4, 2))], axis=-1)
    truth = {
        "boxes": boxes.astype(np.float32),
        "classes": random.integers(0, classes, (3, 4)).astype(np.int32),
        "valid": np.arange(4) < np.array([3, 1, 0])[:, None],
    }
    if masks:
        truth["masks"] = random.random((3, 4, *canvas)) > 0.5
    if joints:
        places = boxes[..., None, :2] + random.uniform(-5, 59, (3, 4, 17, 2))
        seen = random.integers(0, 3, (3, 4, 17, 1))
        truth["keypoints"] = np.concatenate([places, seen], axis=-1).astype(np.float32)
    return truth


def in_torch(truth, background):
    targets = []
    for n, valid in enumerate(truth["valid"]):
        own = {name: torch.from_numpy(value[n][valid]) for name, value in truth.items()}
        target = {"boxes": own["boxes"][:, TURNED], "labels": own["classes"].long() + background}
        if "masks" in own:
            target["masks"] = own["masks"].to(torch.uint8)
        if "keypoints" in own:
            target["keypoints"] = own["keypoints"][..., [1, 0, 2]]
        targets.append(target)
    return targets


@pytest.mark.parametrize("name", [n for n in some(PARAMETERS) if "320_fpn" not in n.values[0]])
def test_losses_are_torchvision_s(detectors, name):  # noqa: F811
    every = 10**5
    settings, arguments = {}, {}
    if "rcnn" in name:
        settings = {"rpn_batch_size_per_image": every, "box_batch_size_per_image": every}
        arguments = {"rpn_samples": 20_000, "samples": 4_000}
    classes = 2 if name.startswith("keypoint") else 7
    model, _, variables, images = both(detectors, name, classes, **settings)
    if jaxconv.model_arguments(name)["norm"] == "batch" and not name.startswith("ssd300"):
        arguments["frozen_norm"] = True
    ours = jaxconv.create_model(name, classes - background(name), **arguments)
    canvas = images.shape[1:3]
    images = np.concatenate([images, images[:1] + 0.5])
    truth = truth_of(canvas, "mask" in name, "keypoint" in name, classes - 1)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        wanted = model([*as_torch(images)], in_torch(truth, background(name)))
    sizes = jnp.asarray([canvas] * 3, jnp.float32)

    @jax.jit
    def run(variables, images, truth):
        chosen = training_choices(ours, truth, canvas, sizes, KEY)
        outputs = ours.apply(variables, images, train=True, mutable=["batch_stats"], **chosen)[0]
        return losses(ours, outputs, truth, canvas, KEY)

    found = run(variables, images, truth)
    names = {theirs: NAMES[theirs] for theirs in wanted}
    assert found.keys() == {*names.values()}
    for theirs, value in wanted.items():
        each = found[names[theirs]]
        assert each.shape == (3,) and value > 0
        np.testing.assert_allclose(jnp.mean(each), value.item(), rtol=2e-3, err_msg=theirs)
