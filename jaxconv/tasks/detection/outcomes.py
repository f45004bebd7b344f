"""COCO's average precision, from the detections and the truth of every image.

pycocotools finds which detection is which object, at ten IoUs from 0.50 to 0.95, and which count
(a crowd's do not). The curves of precision are made here, so that images can be counted several
times: figures by the bootstrap take no further matching.

    AP      the mean over 101 recalls of the highest precision at that recall or a higher one
    ap      the mean AP of all classes with objects and all ten IoUs; ap50 and ap75 of one IoU
    ar      the mean recall, with up to 100 detections of an image and a class

As in COCOeval (https://github.com/cocodataset/cocoapi). They are 0 if there is no object at all.

    kind        overlap of a detection and an object
    boxes       their boxes' IoU
    masks       their masks' IoU, `mask_overlaps` of what is kept
    keypoints   object keypoint similarity with COCO's 17 constants; for another number of keypoints
                each has the constant 1 / number. The area is the object's, `true_mask_areas`, or
                else its box's. Objects without a labelled keypoint do not count
"""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxconv.errors import needing_extras
from jaxconv.tasks.intervals import CONFIDENCE

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# Of an image and a class; of keypoints.
MOST, MOST_KEYPOINTS = 100, 20
KINDS = ("boxes", "masks", "keypoints")


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """Detections of one class, the best first, and its objects.

    Attributes:
      image: [D] the row of each detection's image.
      scores: [D].
      right: [10, D] bool: it has found an object, at each of `IOUS`.
      counts: [10, D] bool: those that do not count found what does not.
      objects: [N] in each image.
    """

    image: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    counts: np.ndarray
    objects: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """What was found in N images.

    Attributes:
      values: [N, ...] by name, what `Detection.keep` returned.
      class_names: K.
      index: [N] the examples' positions in their source.
      matches: of each class, by boxes.
      more: of each class by masks and keypoints, if the network has them.
    """

    values: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    index: np.ndarray
    matches: tuple[Matches, ...]
    more: Mapping[str, tuple[Matches, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)


def as_coco(kept: Mapping[str, np.ndarray], classes: int) -> tuple[dict[str, Any], list[Any]]:
    """COCO's annotations and results, of kept arrays [N, ...].

    Images have the ids 1 ... N and categories 1 ... K; boxes are (left, top, width, height).
    """
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for prefix, into in (("true_", truths), ("", found)):
        boxes, labels, valid = (
            np.asarray(kept[f"{prefix}{name}"]) for name in ("boxes", "classes", "valid")
        )
        for n, m in np.argwhere(valid).tolist():
            top, left, bottom, right = boxes[n, m].astype(np.float64).tolist()
            height, width = bottom - top, right - left
            one = {
                "id": len(into) + 1,
                "image_id": n + 1,
                "category_id": int(labels[n, m]) + 1,
                "bbox": [left, top, width, height],
                "area": width * height,
            }
            if prefix:
                one["iscrowd"] = int(kept["true_crowd"][n, m])
                if "true_mask_areas" in kept:
                    one["area"] = float(kept["true_mask_areas"][n, m])
            else:
                one["score"] = float(kept["scores"][n, m])
            one["place"] = m
            if "true_keypoints" in kept:
                points = np.asarray(kept[f"{prefix}keypoints"][n, m], np.float64)
                one["keypoints"] = points[:, [1, 0, 2]].reshape(-1).tolist()
                one["num_keypoints"] = int(np.count_nonzero(points[:, 2] > 0))
            into.append(one)
    dataset = {
        "images": [{"id": n + 1} for n in range(len(kept["valid"]))],
        "categories": [{"id": k + 1} for k in range(classes)],
        "annotations": truths,
    }
    return dataset, found


def matched(
    kept: Mapping[str, np.ndarray], classes: int, kind: str = "boxes"
) -> tuple[Matches, ...]:
    """The matches of each class by the overlaps of a kind of `KINDS`.

    Raises:
      UserError: pycocotools is not installed.
    """
    with needing_extras("COCO's average precision"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    dataset, found = as_coco(kept, classes)
    truth: Any = COCO()
    results: Any = COCO()
    truth.dataset, results.dataset = dataset, {**dataset, "annotations": found}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        truth.createIndex()
        results.createIndex()
        evaluator: Any = COCOeval(truth, results, "keypoints" if kind == "keypoints" else "bbox")
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.params.maxDets = [MOST_KEYPOINTS if kind == "keypoints" else MOST]
        if kind == "masks":
            evaluator.computeIoU = functools.partial(_mask_overlaps, evaluator, kept)
        elif kind == "keypoints" and (joints := kept["keypoints"].shape[2]) != len(
            evaluator.params.kpt_oks_sigmas
        ):
            evaluator.params.kpt_oks_sigmas = np.full(joints, 1 / joints)
        evaluator.evaluate()
    images = len(kept["valid"])
    each = evaluator.evalImgs
    return tuple(_joined(each[k * images : (k + 1) * images]) for k in range(classes))


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


def _joined(each: Sequence[Any]) -> Matches:
    """The matches of one class, of what COCOeval found in each image: None without a box."""
    objects, there = np.zeros(len(each), np.int64), []
    for n, one in enumerate(each):
        if one is not None:
            objects[n] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
            there.append((n, one))
    empty = np.zeros((len(IOUS), 0))
    images = [np.full(len(one["dtScores"]), n) for n, one in there]
    image = np.concatenate([np.zeros(0, np.int64), *images])
    scores = np.concatenate([np.zeros(0), *(one["dtScores"] for _, one in there)])
    right = np.concatenate([empty, *(one["dtMatches"] for _, one in there)], axis=1) > 0
    ignored = np.concatenate([empty, *(one["dtIgnore"] for _, one in there)], axis=1) > 0
    order = np.argsort(-scores, kind="stable")
    counts = ~ignored[:, order]
    return Matches(image[order], scores[order], right[:, order] & counts, counts, objects)


def of_class(matches: Matches, times: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """AP [10] and recall [10] of a class at each of `IOUS`; NaN without an object.

    Args:
      matches: of the class.
      times: [N] how often each image counts; once by default.
    """
    times = np.ones(len(matches.objects)) if times is None else times
    objects = float(times @ matches.objects)
    if not objects:
        return np.full(len(IOUS), np.nan), np.full(len(IOUS), np.nan)
    weight = times[matches.image]
    right = np.cumsum(matches.right * weight, axis=1)
    taken = np.cumsum(matches.counts * weight, axis=1)
    recall, precision = right / objects, right / (taken + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.concatenate([precision, np.zeros((len(IOUS), 1))], axis=1)
    places = np.stack([np.searchsorted(row, RECALLS, side="left") for row in recall])
    last = recall[:, -1] if recall.shape[1] else np.zeros(len(IOUS))
    return np.take_along_axis(precision, places, axis=1).mean(axis=1), last


def figures(matches: tuple[Matches, ...], times: np.ndarray | None = None) -> dict[str, float]:
    """`ap`, `ap50`, `ap75` and `ar` of all classes; `times` as for `of_class`."""
    each = [of_class(one, times) for one in matches]
    known = [pair for pair in each if not np.isnan(pair[0][0])]
    if not known:
        return dict.fromkeys(("ap", "ap50", "ap75", "ar"), 0.0)
    precision, recall = (np.mean([pair[n] for pair in known], axis=0) for n in (0, 1))
    return {
        "ap": float(precision.mean()),
        "ap50": float(precision[0]),
        "ap75": float(precision[5]),
        "ar": float(recall.mean()),
    }


def more_matched(kept: Mapping[str, np.ndarray], classes: int) -> dict[str, tuple[Matches, ...]]:
    """The matches of each class by masks and keypoints, where they are kept."""
    has = {"masks": "mask_overlaps" in kept, "keypoints": "true_keypoints" in kept}
    return {kind: matched(kept, classes, kind) for kind in KINDS[1:] if has[kind]}


def more_figures(
    more: Mapping[str, tuple[Matches, ...]], times: np.ndarray | None = None
) -> dict[str, float]:
    """`mask_ap`, `mask_ap50`, `mask_ap75`, `keypoint_ap`, `keypoint_ap50`, those there are."""
    names = {"masks": ("ap", "ap50", "ap75"), "keypoints": ("ap", "ap50")}
    found: dict[str, float] = {}
    for kind, matches in more.items():
        values = figures(matches, times)
        found |= {f"{kind[:-1]}_{name}": values[name] for name in names[kind]}
    return found


def intervals(outcomes: Outcomes, resamples: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """(low, high) of each figure by the bootstrap over images: `resamples` sets of as many."""
    random, count = np.random.default_rng(seed), len(outcomes)
    times = random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    loss = np.asarray(outcomes.values["loss"], np.float64)
    each = [
        {
            **figures(outcomes.matches, one),
            **more_figures(outcomes.more, one),
            "loss": float(one @ loss / count),
        }
        for one in times
    ]
    tails = 100 * np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    found = {name: np.percentile([one[name] for one in each], tails) for name in each[0]}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def class_lines(outcomes: Outcomes) -> list[str]:
    """The table of all classes, the lowest AP first; classes without objects are left out."""
    rows = []
    for name, matches in zip(outcomes.class_names, outcomes.matches, strict=True):
        precision, recall = of_class(matches)
        if not np.isnan(precision[0]):
            numbers = (precision.mean(), precision[0], precision[5], recall.mean())
            rows.append((name, int(matches.objects.sum()), *(100 * float(x) for x in numbers)))
    width = max([5, *(len(row[0]) for row in rows)])
    head = f"{'class':{width}}  {'objects':>8}  {'AP':>6}  {'AP50':>6}  {'AP75':>6}  {'AR':>6}"
    lines = [
        f"{name:{width}}  {objects:8,}  " + "  ".join(f"{number:6.2f}" for number in numbers)
        for name, objects, *numbers in sorted(rows, key=lambda row: row[2])
    ]
    return [head, *lines]
