"""Detections of several networks, or of several views of an image, joined into one set.

Weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302, section 3): detections go, the best
first, to the group of their class with which they overlap most, if the IoU is above 0.55, or start
a group. A group's box is the mean of its boxes, weighted by their scores; its score is their mean,
times the share of the networks that have found it. All images are done side by side.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxconv.tasks.detection.matches import iou

# Above this IoU, detections are of one object.
SAME = 0.55
# Images at a time.
_AT_ONCE = 256
FOUND = ("boxes", "scores", "classes", "valid")
# What is kept of the truth, and of the images; masks and keypoints cannot be joined.
KEPT = (
    *("true_boxes", "true_classes", "true_valid", "true_crowd", "true_mask_areas"),
    *("size", "seen", "loss"),
)


def fused(each: Sequence[Mapping[str, np.ndarray]], same: float = SAME) -> dict[str, np.ndarray]:
    """Join the detections of M networks in N images.

    Args:
      each: of every network `boxes` [N, D, 4], `scores`, `classes` and `valid` [N, D].
      same: the IoU above which detections are of one object.

    Returns:
      The same of the joint detections, the best first; of an image as many as any network has.
    """
    joined = {name: np.concatenate([one[name] for one in each], axis=1) for name in FOUND}
    most = max(one["valid"].shape[1] for one in each)
    count, parts = len(joined["valid"]), []
    for start in range(0, max(count, 1), _AT_ONCE):
        part = {name: value[start : start + _AT_ONCE] for name, value in joined.items()}
        parts.append(_fused(part, len(each), most, same))
    return {
        name: np.concatenate([part[name] for part in parts]).astype(joined[name].dtype)
        for name in FOUND
    }


def joined(each: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `Detection.keep` returned for M networks or views, with their boxes fused.

    All else is that of the first; masks and keypoints are left out.
    """
    return {name: each[0][name] for name in KEPT if name in each[0]} | fused(each)


def turned_back(kept: Mapping[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """The boxes found in mirror images, of `width` pixels or what is `seen`, as in the images."""
    ends = kept["seen"][:, 1, None] if "seen" in kept else np.float32(width)
    top, left, bottom, right = (kept["boxes"][..., n] for n in range(4))
    return {**kept, "boxes": np.stack([top, ends - right, bottom, ends - left], axis=-1)}


def _fused(
    given: Mapping[str, np.ndarray], networks: int, most: int, same: float
) -> dict[str, np.ndarray]:
    """`fused`, of the detections [N, L] of all networks."""
    scores = np.where(given["valid"], given["scores"], 0).astype(np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=1)
    classes = np.take_along_axis(given["classes"], order, axis=1)
    boxes = np.take_along_axis(given["boxes"].astype(np.float64), order[..., None], axis=1)
    images, length = scores.shape
    # Of each group: its box, class, sums of scores and of weighted boxes, and how many it has.
    group, of_class = np.zeros((images, length, 4)), np.full((images, length), -1)
    total, weighted = np.zeros((images, length)), np.zeros((images, length, 4))
    members, used = np.zeros((images, length)), np.zeros(images, np.int64)
    row = np.arange(images)
    for j in range(length):
        there = np.flatnonzero(scores[:, j] > 0)
        if not len(there):
            break
        last = int(used.max()) + 1
        overlap = iou(boxes[:, j, None], group[:, :last])
        overlap[of_class[:, :last] != classes[:, j, None]] = -1
        best = overlap.argmax(axis=1)
        place = np.where(overlap[row, best] > same, best, used)[there]
        used[there] += place == used[there]
        score = scores[there, j]
        of_class[there, place] = classes[there, j]
        members[there, place] += 1
        total[there, place] += score
        weighted[there, place] += score[:, None] * boxes[there, j]
        group[there, place] = weighted[there, place] / total[there, place][:, None]
    share = np.minimum(members, networks) / networks
    joint = total / np.maximum(members, 1) * share
    best = np.argsort(-joint, axis=1, kind="stable")[:, :most]
    joint = np.take_along_axis(joint, best, axis=1)
    return {
        "boxes": np.take_along_axis(group, best[..., None], axis=1),
        "scores": joint,
        "classes": np.maximum(np.take_along_axis(of_class, best, axis=1), 0),
        "valid": joint > 0,
    }
