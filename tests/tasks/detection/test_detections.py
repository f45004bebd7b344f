"""Whole detectors against torchvision's, with converted random weights: the same proposals, and the
same detections of images in a padded canvas.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.tasks.detection.detections import anchors_of, choices, detections, proposals
from tests.weights.detectors import TURNED, as_torch, detectors  # noqa: F401
from tests.weights.test_detectors import PARAMETERS, SIZES, background, both, some

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


def same(found, wanted, background):
    """Those of one image are torchvision's, but for a few: where two scores are equal, or an
    overlap is just the threshold, the last digits decide which of two boxes stays.
    """
    theirs = {name: wanted[name].detach().numpy() for name in ("scores", "boxes", "labels")}
    boxes, kinds = theirs["boxes"][:, TURNED], theirs["labels"] - background
    own = {name: value[found["valid"]] for name, value in found.items()}
    assert len(own["scores"]) and (np.diff(own["scores"]) <= 0).all()
    assert np.abs(len(own["scores"]) - len(boxes)) <= 0.03 * len(boxes)
    scale = max(np.abs(boxes).max(), 1)

    def missing(some, others):
        """Which of some detections are not among the others."""
        apart = np.abs(some[0][:, None] - others[0]).max(axis=-1) / scale
        apart = np.maximum(apart, np.abs(some[1][:, None] - others[1]))
        apart = np.where(some[2][:, None] == others[2], apart, np.inf)
        return apart.min(axis=1) > 1e-4

    ours = own["boxes"], own["scores"], own["classes"]
    wanted = boxes, theirs["scores"], kinds
    for some_of, others in ((ours, wanted), (wanted, ours)):
        lost = missing(some_of, others)
        # The last ones may have been pushed out by one more before them.
        lost &= some_of[1] > others[1].min() + 1e-4
        assert lost.mean() <= 0.03


@pytest.mark.parametrize("name", some(PARAMETERS))
def test_detections_are_torchvision_s(detectors, name):  # noqa: F811
    model, ours, variables, images = both(detectors, name)
    canvas = images.shape[1:3]
    # The second image is smaller: the rest of its canvas is padding, which is zeros.
    sizes = [canvas, canvas if name in SIZES else (canvas[0], canvas[1] - 40)]
    images[1, :, sizes[1][1] :] = 0
    given = [as_torch(images)[n][:, : size[0], : size[1]] for n, size in enumerate(sizes)]
    with torch.no_grad():
        wanted = model(given)
    limits = jnp.asarray(sizes, jnp.float32)

    @jax.jit
    def run(variables, images):
        chosen = choices(ours, canvas, limits)
        outputs = ours.apply(variables, images, train=False, **chosen)
        return detections(ours, outputs, canvas, limits)

    found = jax.tree.map(np.asarray, run(variables, images))
    assert sum(len(of_image["scores"]) for of_image in wanted) > 20
    for n, of_image in enumerate(wanted):
        own = {key: value[n] for key, value in found.items()}
        same(own, of_image, background(name))


def test_proposals_are_torchvision_s(detectors):  # noqa: F811
    model, ours, variables, images = both(detectors, "fasterrcnn_mobilenet_v3_large_fpn")
    canvas = images.shape[1:3]
    outputs = jax.jit(functools.partial(ours.apply, train=False))(variables, images)
    limits, anchors = jnp.asarray([canvas] * 2, jnp.float32), anchors_of(ours, outputs, canvas)
    with torch.no_grad():
        transformed, _ = model.transform([*as_torch(images)])
        wanted, _ = model.rpn(transformed, model.backbone(transformed.tensors))
    found = proposals(ours, outputs, anchors, limits, False)
    for n, boxes in enumerate(wanted):
        own = np.asarray(found["boxes"][n][found["valid"][n]])
        theirs = boxes.numpy()[:, TURNED]
        assert own.shape == theirs.shape and len(own) > 20
        np.testing.assert_allclose(own, theirs, atol=1e-2)
