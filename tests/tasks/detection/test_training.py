"""Losses of whole detectors against torchvision's, on the same samples: all anchors and regions are
in them; and images without objects, and with small ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from jaxconv.data.objects import as_bits, of_bits
from jaxconv.models import abstract_variables
from jaxconv.tasks.detection.detections import choices, detections
from jaxconv.tasks.detection.training import keypoints_in, losses, training_choices
from tests.weights.detectors import TURNED, as_torch, detectors  # noqa: F401
from tests.weights.test_detectors import PARAMETERS, background, both, some

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3)
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
        drawn = random.random((3, 4, *canvas)) > 0.5
        truth["masks"] = np.stack([as_bits(masks, 4) for masks in drawn])
    if joints:
        places = boxes[..., None, :2] + random.uniform(-5, 59, (3, 4, 17, 2))
        seen = random.integers(0, 3, (3, 4, 17, 1))
        truth["keypoints"] = np.concatenate([places, seen], axis=-1).astype(np.float32)
    return truth


def in_torch(truth, background):
    targets = []
    for n, valid in enumerate(truth["valid"]):
        of_image = {name: value[n] for name, value in truth.items()}
        if "masks" in of_image:
            of_image["masks"] = of_bits(of_image["masks"], len(valid))
        own = {name: torch.from_numpy(value[valid]) for name, value in of_image.items()}
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
        settings |= {"rpn_post_nms_top_n_train": 60}
        arguments = {"rpn_samples": 20_000, "samples": 300, "after_nms": (60, 60)}
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
        chosen = training_choices(ours, truth, canvas, sizes, KEYS)
        outputs = ours.apply(variables, images, train=True, mutable=["batch_stats"], **chosen)[0]
        return losses(ours, outputs, truth, canvas, KEYS)

    found = run(variables, images, truth)
    names = {theirs: NAMES[theirs] for theirs in wanted}
    assert found.keys() == {*names.values()}
    for theirs, value in wanted.items():
        each = found[names[theirs]]
        assert each.shape == (3,) and value > 0
        np.testing.assert_allclose(jnp.mean(each), value.item(), rtol=2e-3, err_msg=theirs)


def random_like(shapes, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), "float32"), shapes)


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_resnet50_fpn_v2",
        "fcos_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large",
        "maskrcnn_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
    ],
)
def test_small_objects_and_images_without_any_give_finite_gradients(name):
    """Of the outputs, which are random: objects of a pixel, at the border, without a size."""
    canvas = (320, 320) if name.startswith("ssd") else (64, 96)
    model, x = jaxconv.create_model(name, 3), jax.ShapeDtypeStruct((3, *canvas, 3), jnp.float32)
    variables = abstract_variables(model, x.shape)
    outputs = random_like(jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, x))
    truth = truth_of(canvas, True, True, 3)
    truth["boxes"][0, 0] = (5, 7, 6, 8)
    truth["boxes"][0, 1] = (canvas[0] - 1, canvas[1] - 1, *canvas)
    truth["boxes"][0, 2] = (30, 30, 30, 30)
    truth = jax.tree.map(jnp.asarray, truth)
    sizes = jnp.asarray([canvas] * 3, jnp.float32)
    for step in (
        training_choices(model, truth, canvas, sizes, KEYS),
        choices(model, canvas, sizes),
    ):
        train = step and "index" in (found := jax.jit(step["propose"])(outputs))
        if step:
            outputs["regions"] = found
            count = found["boxes"].shape[1]
            heads = {"box_logits": (3, count, 4), "box_codes": (3, count, 4, 4)}
            outputs |= random_like(
                {k: jax.ShapeDtypeStruct(v, "float32") for k, v in heads.items()}
            )
            outputs["selected"] = jax.jit(step["select"])(outputs)
            count = outputs["selected"]["boxes"].shape[1]
            for head in ("masks", "keypoints"):
                if head in outputs:
                    # Of masks, that of a region's own class.
                    sides = outputs[head].shape[2 : 4 if head == "masks" else 5]
                    outputs[head] = random_like(jax.ShapeDtypeStruct((3, count, *sides), "float32"))
        if train or not step:
            fixed = {k: v for k, v in outputs.items() if k in ("regions", "selected")}
            free = {k: v for k, v in outputs.items() if k not in fixed}

            def total(free, fixed=fixed):
                found = losses(model, fixed | free, truth, canvas, KEYS)
                return sum(jnp.sum(value) for value in found.values()), found

            (_, each), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(free)
            for leaf in (*jax.tree.leaves(each), *jax.tree.leaves(slopes)):
                assert jnp.all(jnp.isfinite(leaf))
            # The image without an object has no loss of boxes.
            assert all(each[key][2] == 0 for key in ("boxes", "proposals") if key in each)
    found = jax.jit(lambda outputs: detections(model, outputs, canvas, sizes))(outputs)
    assert all(jnp.all(jnp.isfinite(value)) for value in found.values())


def test_where_keypoints_lie():
    boxes = jnp.array([[10.0, 20, 30, 60]])
    points = jnp.array(
        [[[10.0, 20, 1], [30, 60, 1], [19.9, 40, 2], [31, 40, 1], [15, 30, 0], [9, 30, 1]]]
    )
    cells, inside = keypoints_in(points, boxes, 4)
    np.testing.assert_array_equal(inside[0], [True, True, True, False, False, False])
    np.testing.assert_array_equal(cells[0], [0, 15, 1 * 4 + 2, 0, 0, 0])
