"""Training of detectors: which anchors and regions learn what, and their losses.

    network     positive (and ignored)        classes                        boxes
    RetinaNet   IoU from 0.5 (0.4); the best  focal loss                     L1; version 2: GIoU
    FCOS        the centre in the truth       focal loss; centerness: cross  GIoU
                                              entropy
    SSD         IoU from 0.5; the best        cross entropy, 3 negatives     smooth L1
                                              for each positive
    proposals   IoU from 0.7 (0.3); the best  cross entropy of 256 anchors,  smooth L1, beta 1/9
                                              half of them positive
    regions     IoU from 0.5                  cross entropy of 512 regions,  smooth L1, beta 1/9
                                              a quarter of them positive
    masks       positive regions              cross entropy of each pixel of the class's mask
    keypoints   positive regions              cross entropy over the positions of a map

As torchvision has them, but that masks of the truth are read with 2x2 points a bin. A truth is
padded: `boxes` [N, M, 4], `classes` [N, M] of the data, `valid` [N, M], and if need be `masks`
[N, H, W, ceil(M / 8)] uint8, whose bit m is object m, and `keypoints` [N, M, J, 3]: y, x in pixels,
and whether it is labelled.

Each loss is [N]: its mean over the batch is torchvision's, whose divisor is the batch's number of
positives or samples (for RetinaNet, each image's own). Without any object a loss of boxes is 0. The
batch is that of all devices; of a batch in parts (`config.accumulate`), each part.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxconv.models.detector import Detector
from jaxconv.models.fcos import FCOS
from jaxconv.models.rcnn import RCNN
from jaxconv.models.retinanet import RetinaNet
from jaxconv.models.ssd import SSD
from jaxconv.tasks.detection.boxes import decode, decode_sides, encode, encode_sides, iou
from jaxconv.tasks.detection.detections import WEIGHTS, Found, Outputs, anchors_of, flat, proposals
from jaxconv.tasks.detection.instances import masks_of_regions
from jaxconv.tasks.detection.losses import focal_loss, giou_loss, smooth_l1
from jaxconv.tasks.detection.matching import (
    BACKGROUND,
    IGNORED,
    hard_negatives,
    match,
    match_best,
    match_points,
    sample,
)

Truth = Mapping[str, jax.Array]
BETA = 1 / 9
# Shares of positives among the samples of proposals and of regions.
OF_ANCHORS, OF_REGIONS = 0.5, 0.25


def losses(
    network: Detector,
    outputs: Outputs,
    truth: Truth,
    canvas: tuple[int, int],
    keys: jax.Array,
    axis_name: str | None = None,
) -> Found:
    """The named losses [N] of a batch, whose sum is what training lowers.

    Args:
      outputs: of the network in training, R-CNN's with `training_choices`; without them the losses
        are those of its proposals.
      canvas: (height, width) of the images with padding.
      keys: [N] for the sample of each image's anchors.
      axis_name: of the devices among which the batch is divided, under `pmap`.
    """
    anchors, of_levels = anchors_of(network, outputs, canvas), jnp.concatenate
    codes = of_levels(flat(outputs["codes"]), axis=1)
    if isinstance(network, RCNN):
        objectness = of_levels(flat(outputs["objectness"]), axis=1)[..., 0]
        found = rpn_losses(network, objectness, codes, truth, anchors, keys, axis_name)
        if "wanted" not in outputs["regions"]:
            return found
        of_regions = region_losses(outputs, axis_name)
        return found | of_regions | instance_losses(outputs, truth, axis_name, network.aligned)
    logits = of_levels(flat(outputs["logits"]), axis=1)
    if isinstance(network, SSD):
        return ssd_losses(logits, codes, truth, np.concatenate(anchors), axis_name)
    if isinstance(network, FCOS):
        centerness = of_levels(flat(outputs["centerness"]), axis=1)[..., 0]
        return fcos_losses(logits, codes, centerness, truth, anchors, axis_name)
    assert isinstance(network, RetinaNet)
    return retinanet_losses(logits, codes, truth, np.concatenate(anchors), network.box_loss)


def mean_count(counted: jax.Array, axis_name: str | None) -> jax.Array:
    """The number of values [N, ...] that are true over N, of the batches of all devices; at least
    one is true.
    """
    total, images = jnp.sum(counted), len(counted)
    if axis_name is not None:
        total, images = lax.psum(total, axis_name), images * lax.axis_size(axis_name)
    return jnp.maximum(total, 1) / images


def of_truth(truth: jax.Array, index: jax.Array) -> jax.Array:
    """Of each anchor's truth, by `index` [N, A]: [N, M, ...] -> [N, A, ...]; any for no truth."""
    if not truth.shape[1]:
        return jnp.zeros((*index.shape, *truth.shape[2:]), truth.dtype)
    around = (1,) * (truth.ndim - 2)
    return jnp.take_along_axis(truth, jnp.maximum(index, 0).reshape(*index.shape, *around), axis=1)


def matched(rule: Callable[..., jax.Array], anchors: Any, truth: Truth, *settings: Any) -> Any:
    """The truth of each anchor, by a rule on overlaps: [N, A]."""

    def of_image(boxes: jax.Array, valid: jax.Array) -> jax.Array:
        return rule(iou(boxes[:, None], jnp.asarray(anchors)[None]), valid, *settings)

    return jax.vmap(of_image)(truth["boxes"], truth["valid"])


def retinanet_losses(
    logits: jax.Array, codes: jax.Array, truth: Truth, anchors: np.ndarray, box_loss: str
) -> Found:
    """`classes` and `boxes`, of logits [N, A, K] and codes [N, A, 4]."""
    index = matched(match, anchors, truth, 0.4, 0.5, True)
    positive = index >= 0
    wanted = jnp.where(positive, of_truth(truth["classes"], index), BACKGROUND)
    of_class = jnp.where(index == IGNORED, 0, focal_loss(logits, wanted))
    boxes, around = of_truth(truth["boxes"], index), jnp.asarray(anchors)[None]
    if box_loss == "giou":
        of_box = giou_loss(decode(codes, around), boxes)
    else:
        of_box = smooth_l1(codes, encode(boxes, around), 0)
    count = jnp.maximum(jnp.sum(positive, axis=1), 1)
    return {
        "classes": jnp.sum(of_class, axis=1) / count,
        "boxes": jnp.sum(jnp.where(positive, of_box, 0), axis=1) / count,
    }


def fcos_losses(
    logits: jax.Array,
    codes: jax.Array,
    centerness: jax.Array,
    truth: Truth,
    anchors: list[np.ndarray],
    axis_name: str | None = None,
) -> Found:
    """`classes`, `boxes` and `centerness`, of logits [N, A, K], codes [N, A, 4], and [N, A]."""
    index = jax.vmap(lambda boxes, valid: match_points(anchors, boxes, valid))(
        truth["boxes"], truth["valid"]
    )
    positive, around = index >= 0, jnp.asarray(np.concatenate(anchors))[None]
    wanted = jnp.where(positive, of_truth(truth["classes"], index), BACKGROUND)
    boxes = of_truth(truth["boxes"], index)
    # Inside the truth all sides are positive; elsewhere the value does not matter.
    sides = jnp.where(positive[..., None], encode_sides(boxes, around), 1)
    pairs = jnp.stack([sides[..., :2], sides[..., 2:]], axis=-1)
    ratio = jnp.min(pairs, axis=-1) / jnp.max(pairs, axis=-1)
    central = optax.sigmoid_binary_cross_entropy(centerness, jnp.sqrt(jnp.prod(ratio, axis=-1)))
    of_box = giou_loss(decode_sides(codes, around), boxes)
    count = mean_count(positive, axis_name)
    return {
        "classes": jnp.sum(focal_loss(logits, wanted), axis=1) / count,
        "boxes": jnp.sum(jnp.where(positive, of_box, 0), axis=1) / count,
        "centerness": jnp.sum(jnp.where(positive, central, 0), axis=1) / count,
    }


def ssd_losses(
    logits: jax.Array,
    codes: jax.Array,
    truth: Truth,
    anchors: np.ndarray,
    axis_name: str | None = None,
) -> Found:
    """`classes` and `boxes`, of logits [N, A, K + 1] and codes [N, A, 4]."""
    index = matched(match_best, anchors, truth, 0.5)
    positive = index >= 0
    wanted = jnp.where(positive, of_truth(truth["classes"], index) + 1, 0)
    of_class = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    taken = positive | jax.vmap(hard_negatives)(jax.lax.stop_gradient(of_class), positive)
    codes_of = encode(of_truth(truth["boxes"], index), jnp.asarray(anchors)[None], WEIGHTS)
    count = mean_count(positive, axis_name)
    return {
        "classes": jnp.sum(jnp.where(taken, of_class, 0), axis=1) / count,
        "boxes": jnp.sum(jnp.where(positive, smooth_l1(codes, codes_of), 0), axis=1) / count,
    }


def rpn_losses(
    network: RCNN,
    objectness: jax.Array,
    codes: jax.Array,
    truth: Truth,
    anchors: list[np.ndarray],
    keys: jax.Array,
    axis_name: str | None = None,
) -> Found:
    """`objectness` and `proposals`, of objectness [N, A] and codes [N, A, 4]; `keys` are [N]."""
    joined = np.concatenate(anchors)
    index = matched(match, joined, truth, 0.3, 0.7, True)

    def drawn(key: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sample(key, index >= 0, index == BACKGROUND, network.rpn_samples, OF_ANCHORS)

    taken, real = jax.vmap(drawn)(keys, index)
    index = jnp.take_along_axis(index, taken, axis=1)
    logits = jnp.take_along_axis(objectness, taken, axis=1)
    positive = real & (index >= 0)
    of_class = optax.sigmoid_binary_cross_entropy(logits, positive.astype(jnp.float32))
    wanted = encode(of_truth(truth["boxes"], index), jnp.asarray(joined)[taken])
    of_box = smooth_l1(jnp.take_along_axis(codes, taken[..., None], axis=1), wanted, BETA)
    count = mean_count(real, axis_name)
    return {
        "objectness": jnp.sum(jnp.where(real, of_class, 0), axis=1) / count,
        "proposals": jnp.sum(jnp.where(positive, of_box, 0), axis=1) / count,
    }


def training_choices(
    network: Detector,
    truth: Truth,
    canvas: tuple[int, int],
    sizes: jax.Array,
    keys: jax.Array,
) -> dict[str, Callable[[Outputs], Found]]:
    """What an R-CNN's `forward` takes in training; nothing for other networks.

    The regions are a sample of the proposals and the truth: `boxes` [N, R, 4], `valid`, `index`,
    `classes` (0 is the background), and `wanted`, the codes of their truth. Masks and keypoints
    are of the positive ones, which stand first.

    Args:
      canvas, sizes: as for `detections.detections`.
      keys: [N] for each image's sample, others than for `losses`.
    """
    if not isinstance(network, RCNN):
        return {}

    def of_image(
        key: jax.Array, boxes: jax.Array, real: jax.Array, truths: jax.Array, valid: jax.Array
    ) -> Found:
        boxes, real = jnp.concatenate([boxes, truths]), jnp.concatenate([real, valid])
        index = match(iou(truths[:, None], boxes[None]), valid, 0.5, 0.5)
        positive, negative = real & (index >= 0), real & (index == BACKGROUND)
        taken, sampled = sample(key, positive, negative, network.samples, OF_REGIONS)
        return {"boxes": boxes[taken], "valid": sampled, "index": index[taken]}

    def propose(outputs: Outputs) -> Found:
        given = proposals(network, outputs, anchors_of(network, outputs, canvas), sizes, True)
        found = jax.vmap(of_image)(
            keys, given["boxes"], given["valid"], truth["boxes"], truth["valid"]
        )
        positive = found["valid"] & (found["index"] >= 0)
        classes = jnp.where(positive, of_truth(truth["classes"], found["index"]) + 1, 0)
        truths = of_truth(truth["boxes"], found["index"])
        return found | {"classes": classes, "wanted": encode(truths, found["boxes"], WEIGHTS)}

    def select(outputs: Outputs) -> Found:
        most = int(network.samples * OF_REGIONS)
        chosen = {name: value[:, :most] for name, value in outputs["regions"].items()}
        return chosen | {"valid": chosen["classes"] > 0, "own": chosen["classes"]}

    return {"propose": propose, "select": select}


def region_losses(outputs: Outputs, axis_name: str | None = None) -> Found:
    """`classes` and `boxes` of the sampled regions."""
    chosen = outputs["regions"]
    classes, valid, positive = chosen["classes"], chosen["valid"], chosen["classes"] > 0
    of_class = optax.softmax_cross_entropy_with_integer_labels(outputs["box_logits"], classes)
    own = jnp.take_along_axis(outputs["box_codes"], classes[..., None, None], axis=2)[:, :, 0]
    of_box = smooth_l1(own, chosen["wanted"], BETA)
    count = mean_count(valid, axis_name)
    return {
        "classes": jnp.sum(jnp.where(valid, of_class, 0), axis=1) / count,
        "boxes": jnp.sum(jnp.where(positive, of_box, 0), axis=1) / count,
    }


def instance_losses(
    outputs: Outputs, truth: Truth, axis_name: str | None = None, aligned: bool = False
) -> Found:
    """`masks` and `keypoints` of the positive regions, if the network has them.

    The truth has `masks` [N, H, W, ceil(M / 8)] uint8 of bits, see instances.py, and `keypoints`
    [N, M, J, 3]: y, x, and 0 where it is not labelled. `aligned` is the network's.
    """
    found: Found = {}
    chosen = outputs.get("selected", {})
    if "masks" in outputs:
        logits = outputs["masks"]  # of the region's own class
        read = functools.partial(masks_of_regions, side=logits.shape[2], aligned=aligned)
        wanted = jax.vmap(read)(truth["masks"], chosen["boxes"], chosen["index"])
        each = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, wanted), axis=(2, 3))
        found["masks"] = _over(each, chosen["valid"], axis_name)
    if "keypoints" in outputs:
        maps, side = outputs["keypoints"], outputs["keypoints"].shape[2]
        points = of_truth(truth["keypoints"], chosen["index"])
        place, inside = keypoints_in(points, chosen["boxes"], side)
        maps = maps.reshape(*maps.shape[:2], side * side, -1).swapaxes(2, 3)
        each = optax.softmax_cross_entropy_with_integer_labels(maps, place)
        found["keypoints"] = _over(each, inside & chosen["valid"][..., None], axis_name)
    return found


def keypoints_in(points: jax.Array, boxes: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """Where keypoints [..., J, 3] lie in maps of `side` x `side` cells over boxes [..., 4].

    Returns:
      The index of the cell [..., J], row by row, and whether the keypoint is visible and inside.
    """
    corner, end = boxes[..., None, :2], boxes[..., None, 2:]
    size = jnp.where(end > corner, end - corner, 1)
    cell = jnp.floor((points[..., :2] - corner) * (side / size)).astype(jnp.int32)
    cell = jnp.where(points[..., :2] == end, side - 1, cell)
    inside = jnp.all((cell >= 0) & (cell < side), axis=-1) & (points[..., 2] > 0)
    return jnp.where(inside, cell[..., 0] * side + cell[..., 1], 0), inside


def _over(losses: jax.Array, counted: jax.Array, axis_name: str | None) -> jax.Array:
    """The sum of an image's losses [N, ...] that are counted over the batch's mean number: [N]."""
    axes = tuple(range(1, losses.ndim))
    return jnp.sum(jnp.where(counted, losses, 0), axis=axes) / mean_count(counted, axis_name)
