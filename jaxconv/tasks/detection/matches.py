"""Which detection is which object of the truth: COCO's matching, by pycocotools, and VOC's.

COCO's is done at ten IoUs from 0.50 to 0.95 and for the sizes of objects in `SIZES`. What lies in a
crowd, or has another size, does not count. VOC's is done at an IoU of 0.5 (Everingham et al. 2010,
section 4.2): a detection takes the object with which it overlaps most, even if another one has
found that already, and is then wrong; what takes a difficult object does not count. Both are of the
data's own classes, the detections with the highest scores first.

    kind        overlap of a detection and an object
    boxes       their boxes' IoU
    masks       their masks' IoU, `mask_overlaps` of what is kept
    keypoints   object keypoint similarity with COCO's 17 constants; for another number of keypoints
                each has the constant 1 / number. Objects without a labelled keypoint do not count

The area of an object, by which it has a size, is `true_mask_areas`, or else its box's.
"""

import contextlib
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxconv.data.objects import areas, common_areas
from jaxconv.errors import needing_extras
from jaxconv.tasks.detection.precision import IOUS, MOST, SIZES, Matches

KINDS = ("boxes", "masks", "keypoints")
# Keypoints of an image and a class.
MOST_KEYPOINTS = 20
# VOC's.
IOU = 0.5


def in_file(kept: Mapping[str, np.ndarray], prefix: str = "") -> np.ndarray:
    """Boxes [N, D, 4] float64 in pixels of the images' files; `prefix` is `true_` for the truth.

    `kept` has `size` and `seen` [N, 2] if they differ from those of the network's images: height
    and width of the file, and of the part of the network's image that shows it.
    """
    return np.asarray(kept[f"{prefix}boxes"], np.float64) * np.tile(_scale(kept), 2)[:, None]


def _scale(kept: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N, 2] pixels of the file for each of the image that the network sees, down and across."""
    if "size" not in kept:
        return np.ones((len(kept["valid"]), 2))
    return np.asarray(kept["size"], np.float64) / np.asarray(kept["seen"], np.float64)


def as_coco(
    kept: Mapping[str, np.ndarray],
    classes: int,
    image_ids: Sequence[int] = (),
    category_ids: Sequence[int] = (),
    kind: str = "boxes",
) -> tuple[dict[str, Any], list[Any]]:
    """COCO's annotations and results, of kept arrays [N, ...], in pixels of the files.

    Boxes are (left, top, width, height). `place` is the row of each object or detection in its
    image.

    Args:
      kept: what `Detection.keep` returned.
      classes: K.
      image_ids: of the N images; 1 ... N by default.
      category_ids: of the classes; 1 ... K by default.
      kind: of `KINDS`; by masks, a detection's area is that of its mask.
    """
    images, names = image_ids or range(1, len(kept["valid"]) + 1), category_ids
    names = names or range(1, classes + 1)
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    scale = _scale(kept)
    for prefix, into in (("true_", truths), ("", found)):
        boxes = in_file(kept, prefix)
        of_masks = kept.get(f"{prefix}mask_areas") if prefix or kind == "masks" else None
        labels, valid = (np.asarray(kept[f"{prefix}{name}"]) for name in ("classes", "valid"))
        for n, m in np.argwhere(valid).tolist():
            top, left, bottom, right = boxes[n, m].tolist()
            height, width = bottom - top, right - left
            one = {
                "id": len(into) + 1,
                "image_id": images[n],
                "category_id": names[int(labels[n, m])],
                "bbox": [left, top, width, height],
                "area": width * height,
                "place": m,
            }
            if of_masks is not None:
                one["area"] = float(of_masks[n, m]) * scale[n].prod()
            if prefix:
                one["iscrowd"] = int(kept["true_crowd"][n, m])
            else:
                one["score"] = float(kept["scores"][n, m])
            if "true_keypoints" in kept:
                points = np.asarray(kept[f"{prefix}keypoints"][n, m], np.float64)
                points = points * [*scale[n], 1]
                one["keypoints"] = points[:, [1, 0, 2]].reshape(-1).tolist()
                one["num_keypoints"] = int(np.count_nonzero(points[:, 2] > 0))
            into.append(one)
    dataset = {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number} for number in names],
        "annotations": truths,
    }
    return dataset, found


def matched(kept: Mapping[str, np.ndarray], classes: int, kind: str = "boxes") -> Matches:
    """COCO's matches by the overlaps of a kind of `KINDS`.

    Raises:
      UserError: pycocotools is not installed.
    """
    with needing_extras("COCO's average precision"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    dataset, found = as_coco(kept, classes, kind=kind)
    truth: Any = COCO()
    results: Any = COCO()
    truth.dataset, results.dataset = dataset, {**dataset, "annotations": found}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        truth.createIndex()
        results.createIndex()
        evaluator: Any = COCOeval(truth, results, "keypoints" if kind == "keypoints" else "bbox")
        evaluator.params.areaRng = [list(ends) for ends in SIZES.values()]
        evaluator.params.areaRngLbl = list(SIZES)
        evaluator.params.maxDets = [MOST_KEYPOINTS] if kind == "keypoints" else list(MOST)
        if kind == "masks":
            evaluator.computeIoU = functools.partial(_mask_overlaps, evaluator, kept)
        elif kind == "keypoints" and (joints := kept["keypoints"].shape[2]) != len(
            evaluator.params.kpt_oks_sigmas
        ):
            evaluator.params.kpt_oks_sigmas = np.full(joints, 1 / joints)
        evaluator.evaluate()
    return _joined(evaluator.evalImgs, classes, len(kept["valid"]))


def more_matched(kept: Mapping[str, np.ndarray], classes: int) -> dict[str, Matches]:
    """The matches by masks and keypoints, where they are kept."""
    has = {"masks": "mask_overlaps" in kept, "keypoints": "true_keypoints" in kept}
    return {kind: matched(kept, classes, kind) for kind in KINDS[1:] if has[kind]}


def _mask_overlaps(
    evaluator: Any, kept: Mapping[str, np.ndarray], image: int, category: int
) -> np.ndarray | list[Any]:
    """What COCOeval's `computeIoU` returns: the overlaps of an image's detections of a category,
    the best first, with its objects.
    """
    truths, found = evaluator._gts[image, category], evaluator._dts[image, category]
    if not truths or not found:
        return []
    order = np.argsort([-one["score"] for one in found], kind="mergesort")
    rows = [found[i]["place"] for i in order[: evaluator.params.maxDets[-1]]]
    places = np.ix_(rows, [one["place"] for one in truths])
    # Rounded, 7 of 10 pixels are 0.7, which float32 is just below.
    return np.round(np.asarray(kept["mask_overlaps"][image - 1], np.float64), 7)[places]


def _joined(each: Sequence[Any], classes: int, images: int) -> Matches:
    """The matches of what COCOeval found of each class, size and image: None without a box."""
    objects = np.zeros((len(SIZES), classes, images), np.int64)
    # The detections are the same for all sizes.
    right: list[list[Any]] = [[] for _ in SIZES]
    ignored: list[list[Any]] = [[] for _ in SIZES]
    image, of_class, scores, rank = [], [], [], []
    for number, one in enumerate(each):
        if one is None:
            continue
        k, size, n = np.unravel_index(number, (classes, len(SIZES), images))
        objects[size, k, n] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
        right[size].append(one["dtMatches"])
        ignored[size].append(one["dtIgnore"])
        if size == 0:
            count = len(one["dtScores"])
            image.append(np.full(count, n))
            of_class.append(np.full(count, k))
            rank.append(np.arange(count))
            scores.append(one["dtScores"])

    def whole(parts: Sequence[Any], kind: Any = np.int64) -> np.ndarray:
        return np.concatenate([np.zeros(0, kind), *parts]).astype(kind)

    empty = np.zeros((len(IOUS), 0))
    found, not_counted = (
        np.stack([np.concatenate([empty, *of_size], axis=1) > 0 for of_size in parts])
        for parts in (right, ignored)
    )
    flat = whole(image), whole(of_class), whole(scores, np.float64), whole(rank)
    return _sorted(*flat, found, ~not_counted, objects)


def _sorted(
    image: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    rank: np.ndarray,
    found: np.ndarray,
    counts: np.ndarray,
    objects: np.ndarray,
) -> Matches:
    order = np.lexsort((-scores, classes))  # which is stable
    counts = counts[..., order]
    of = image[order], classes[order], scores[order], rank[order]
    return Matches(*of, found[..., order] & counts, counts, objects)


def voc_matched(kept: Mapping[str, np.ndarray], classes: int) -> Matches:
    """VOC's matches, of one IoU and one size; the truth's crowds are VOC's difficult objects."""
    valid, labels = np.asarray(kept["valid"]), np.asarray(kept["classes"])
    true_labels, crowd = np.asarray(kept["true_classes"]), np.asarray(kept["true_crowd"])
    there = np.asarray(kept["true_valid"])
    scores = np.asarray(kept["scores"], np.float64)
    found, counts = np.zeros(valid.shape, bool), valid.copy()
    rank, objects = np.zeros(valid.shape, np.int64), np.zeros((1, classes, len(valid)), np.int64)
    for n in range(len(valid)):
        objects[0, :, n] = np.bincount(true_labels[n][there[n] & ~crowd[n]], minlength=classes)
        own = labels[n][:, None] == true_labels[n][None]
        of_image = np.where(own & there[n][None], overlaps(kept, n), -1)
        taken = set()
        seen = np.zeros(classes, np.int64)
        for d in np.argsort(-scores[n], kind="stable").tolist():
            if not valid[n, d]:
                continue
            rank[n, d], seen[labels[n, d]] = seen[labels[n, d]], seen[labels[n, d]] + 1
            m = int(np.argmax(of_image[d])) if of_image.shape[1] else 0
            if not of_image.shape[1] or of_image[d, m] < IOU:
                continue
            counts[n, d] = not crowd[n, m]
            found[n, d] = m not in taken and counts[n, d]
            taken.add(m)
    image, row = np.nonzero(valid)
    flat = labels[image, row].astype(np.int64), scores[image, row], rank[image, row]
    of = found[image, row][None, None], counts[image, row][None, None]
    return _sorted(image, *flat, *of, objects)


def overlaps(kept: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """[D, M] IoU of the detections of image n with its objects, whether they are valid or not."""
    some, others = (np.asarray(kept[name][n], np.float64) for name in ("boxes", "true_boxes"))
    return iou(some[:, None], others[None])


def iou(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of boxes [..., 4], which broadcast; 0 where both have no area."""
    common = common_areas(some, others)
    return common / np.maximum(areas(some) + areas(others) - common, 1e-12)
