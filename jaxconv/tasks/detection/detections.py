"""From a detector's raw outputs to detections, and from its proposals to regions.

    network           score of a class                     candidates               codes' weights
    RetinaNet         sigmoid                              best 1000 of each level  1, 1, 1, 1
    FCOS              root of sigmoid times centerness's   best 1000 of each level  sides
    SSD, SSDlite      softmax                              best 400, 300 of a class 10, 10, 5, 5
    proposals         sigmoid of the objectness            best 1000 of each level  1, 1, 1, 1
    R-CNN             softmax                              all                      10, 10, 5, 5

All as torchvision has them: scores below a threshold and boxes without a size are dropped, boxes
are clipped to the image, NMS is done for each class (for proposals, for each level), and the best
stay. Shapes are static: what is missing is padded, and `valid` says what counts. Classes are those
of the data, without a background.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.models.detector import Detector
from jaxconv.models.rcnn import RCNN
from jaxconv.models.ssd import SSD
from jaxconv.tasks.detection.anchors import default_boxes, level_anchors
from jaxconv.tasks.detection.boxes import at_least, clip, decode, decode_sides
from jaxconv.tasks.detection.nms import batched_nms, best

Outputs = Mapping[str, Any]
Found = dict[str, jax.Array]
# Of the codes of R-CNN's boxes and of SSD's.
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Pixels: smaller proposals and boxes of R-CNN are dropped.
SMALLEST_PROPOSAL, SMALLEST_BOX = 1e-3, 1e-2


def anchors_of(network: Detector, outputs: Outputs, canvas: tuple[int, int]) -> list[np.ndarray]:
    """The anchors of each level [anchors, 4] of images whose size, with padding, is `canvas`."""
    maps = [level.shape[1:3] for level in outputs["codes"]]
    if isinstance(network, SSD):
        scales, steps = network.anchor_scales, network.anchor_steps
        return default_boxes(canvas, maps, network.anchor_ratios, scales, steps)
    return level_anchors(canvas, maps, network.anchor_sizes, network.anchor_ratios)


def flat(levels: Any) -> list[jax.Array]:
    """[N, h, w, A, values] of each level -> [N, anchors, values]."""
    return [level.reshape(level.shape[0], -1, level.shape[-1]) for level in levels]


def detections(
    network: Detector, outputs: Outputs, canvas: tuple[int, int], sizes: jax.Array
) -> Found:
    """The detections of a batch.

    Args:
      network: the module that gave `outputs`; R-CNN with the regions of `choices`.
      canvas: (height, width) of the images with padding.
      sizes: [N, 2] height and width of each image without it.

    Returns:
      `boxes` [N, D, 4], `scores` [N, D], `classes` [N, D] int32, `valid` [N, D], the best first;
      `masks` [N, D, 28, 28], probabilities, and `keypoints` [N, D, 56, 56, 17], logits, of the
      boxes, if the network has them.
    """
    if not isinstance(network, RCNN):
        return one_stage(network, outputs, anchors_of(network, outputs, canvas), sizes)
    found = dict(outputs["selected"]) if "selected" in outputs else regions(network, outputs, sizes)
    found.pop("own", None)
    if "masks" in outputs:
        found["masks"] = jax.nn.sigmoid(outputs["masks"])
    if "keypoints" in outputs:
        found["keypoints"] = outputs["keypoints"]
    return found


def choices(
    network: Detector, canvas: tuple[int, int], sizes: jax.Array
) -> dict[str, Callable[[Outputs], Found]]:
    """What an R-CNN's `forward` takes in inference: how proposals become regions, and detections
    the regions of masks and keypoints. Nothing for other networks.

    Args:
      canvas, sizes: as for `detections`.
    """
    if not isinstance(network, RCNN):
        return {}

    def select(outputs: Outputs) -> Found:
        found = regions(network, outputs, sizes)
        return found | {"own": found["classes"] + 1}  # 0 is the background

    return {
        "propose": lambda outputs: proposals(
            network, outputs, anchors_of(network, outputs, canvas), sizes, False
        ),
        "select": select,
    }


def proposals(
    network: RCNN, outputs: Outputs, anchors: list[np.ndarray], sizes: jax.Array, train: bool
) -> Found:
    """The regions that the proposals' head chooses: `boxes` [N, P, 4], `scores`, `valid` [N, P].

    No gradient reaches the head.
    """
    before, after = (pair[0 if train else 1] for pair in (network.before_nms, network.after_nms))

    def of_image(logits: list[jax.Array], codes: list[jax.Array], size: jax.Array) -> Found:
        boxes, scores, levels = [], [], []
        for n, (level, code, anchor) in enumerate(zip(logits, codes, anchors, strict=True)):
            value, order = lax.top_k(level[:, 0], min(before, len(level)))
            boxes.append(decode(code[order], jnp.asarray(anchor)[order]))
            scores.append(jax.nn.sigmoid(value))
            levels.append(jnp.full(order.shape, n, jnp.int32))
        joined = clip(jnp.concatenate(boxes), size)
        score = jnp.concatenate(scores)
        valid = at_least(joined, SMALLEST_PROPOSAL) & (score >= network.rpn_score_threshold)
        kinds, threshold = jnp.concatenate(levels), network.rpn_nms_threshold
        found = _suppressed(joined, score, kinds, valid, threshold, after)
        return {name: found[name] for name in ("boxes", "scores", "valid")}

    levels = flat(outputs["objectness"]), flat(outputs["codes"])
    return jax.vmap(of_image)(*lax.stop_gradient(levels), sizes)


def regions(network: RCNN, outputs: Outputs, sizes: jax.Array) -> Found:
    """Detections of the boxes' head, of regions with `boxes` [N, R, 4] and `valid` [N, R]."""

    def of_image(
        boxes: jax.Array, valid: jax.Array, logits: jax.Array, codes: jax.Array, size: jax.Array
    ) -> Found:
        scores = jax.nn.softmax(logits)[:, 1:]
        decoded = clip(decode(codes[:, 1:], boxes[:, None], WEIGHTS), size)
        sound = at_least(decoded, SMALLEST_BOX) & (scores > network.score_threshold)
        classes = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
        return _suppressed(
            decoded.reshape(-1, 4),
            scores.reshape(-1),
            classes.reshape(-1),
            (sound & valid[:, None]).reshape(-1),
            network.nms_threshold,
            network.detections,
        )

    chosen = outputs["regions"]
    given = chosen["boxes"], chosen["valid"], outputs["box_logits"], outputs["box_codes"]
    return jax.vmap(of_image)(*given, sizes)


def one_stage(
    network: Detector, outputs: Outputs, anchors: list[np.ndarray], sizes: jax.Array
) -> Found:
    """Detections of a network without regions."""
    candidates = _of_classes if isinstance(network, SSD) else _of_levels
    levels = {name: flat(of_levels) for name, of_levels in outputs.items()}

    def of_image(levels: dict[str, list[jax.Array]], size: jax.Array) -> Found:
        boxes, scores, classes = candidates(network, levels, anchors)
        valid = scores > network.score_threshold
        threshold, most = network.nms_threshold, network.detections
        return _suppressed(clip(boxes, size), scores, classes, valid, threshold, most)

    return jax.vmap(of_image)(levels, sizes)


def _of_levels(
    network: Detector, levels: dict[str, list[jax.Array]], anchors: list[np.ndarray]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Boxes [C, 4], scores [C], classes [C] of the best candidates of each level of RetinaNet and
    FCOS, whose classes are independent.
    """
    boxes, scores, classes = [], [], []
    decoder = decode_sides if "centerness" in levels else decode
    for n, (logits, codes) in enumerate(zip(levels["logits"], levels["codes"], strict=True)):
        score = jax.nn.sigmoid(logits)
        if "centerness" in levels:
            score = jnp.sqrt(score * jax.nn.sigmoid(levels["centerness"][n]))
        value, order = lax.top_k(score.reshape(-1), min(network.candidates, score.size))
        anchor = order // score.shape[1]
        boxes.append(decoder(codes[anchor], jnp.asarray(anchors[n])[anchor]))
        scores.append(value)
        classes.append(order % score.shape[1])
    return jnp.concatenate(boxes), jnp.concatenate(scores), jnp.concatenate(classes)


def _of_classes(
    network: Detector, levels: dict[str, list[jax.Array]], anchors: list[np.ndarray]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Boxes [C, 4], scores [C], classes [C] of the best candidates of each class of SSD, whose
    first class is the background.
    """
    codes, of_anchor = jnp.concatenate(levels["codes"]), jnp.asarray(np.concatenate(anchors))
    scores = jax.nn.softmax(jnp.concatenate(levels["logits"]))[:, 1:].T
    value, order = lax.top_k(scores, min(network.candidates, scores.shape[1]))
    classes = jnp.broadcast_to(jnp.arange(len(scores), dtype=jnp.int32)[:, None], order.shape)
    boxes = decode(codes, of_anchor, WEIGHTS)[order.reshape(-1)]
    return boxes, value.reshape(-1), classes.reshape(-1)


def _suppressed(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array,
    valid: jax.Array,
    threshold: float,
    most: int,
) -> Found:
    """The best `most` after NMS of each class; those that do not count are zeros."""
    keep = batched_nms(boxes, scores, classes, threshold, valid, most)
    order, real = best(scores, keep, most)
    return {
        "boxes": jnp.where(real[:, None], boxes[order], 0),
        "scores": jnp.where(real, scores[order], 0),
        "classes": jnp.where(real, classes[order], 0).astype(jnp.int32),
        "valid": real,
    }
