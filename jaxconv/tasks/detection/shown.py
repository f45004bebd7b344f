"""Instances for people and files: masks as run lengths, numbers of objects, COCO's skeleton."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxconv.data.objects import of_bits
from jaxconv.tasks.detection.masks import paste_mask
from jaxconv.tasks.detection.mistakes import SHOWN
from jaxconv.tasks.detection.truth import present

# What no object covers, in a map of objects.
NOTHING = 255
# Pairs of COCO's 17 keypoints that a line joins: nose, eyes, ears, shoulders, elbows, wrists, hips,
# knees, ankles, left before right (cocodataset.org, person_keypoints, counted from 0).
SKELETON = (
    *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)


def lines_of(joints: int) -> tuple[tuple[int, int], ...]:
    """The pairs of keypoints that a line joins: COCO's for 17; none for another number."""
    return SKELETON if joints == 17 else ()


def instance_masks(
    served: Mapping[str, np.ndarray], rows: np.ndarray, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The masks [height, width] bool of some rows of what is served, one after the other."""
    boxes = served["mask_boxes"] if "mask_boxes" in served else served["boxes"]
    for row in rows.tolist():
        yield paste_mask(served["masks"][row], boxes[row], size) > 0.5


def object_map(
    served: Mapping[str, np.ndarray], rows: np.ndarray, values: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Which object covers each pixel: [height, width] uint8, `NOTHING` for none.

    Args:
      served: `masks` [D, m, m] and `boxes` [D, 4] in pixels, or `mask_boxes`, if these are clipped.
      rows: [n] of the objects, the best first: it covers the others.
      values: [n] of each object.
      size: (height, width).
    """
    found = np.full(size, NOTHING, np.uint8)
    masks = instance_masks(served, rows[::-1], size)
    for mask, value in zip(masks, values[::-1].tolist(), strict=True):
        found[mask] = value
    return found


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask [H, W] bool as COCO's run lengths, for JSON: `size` and `counts`.

    They are compressed where pycocotools is installed, else a list of lengths, column by column,
    the first of what is outside.
    """
    if importlib.util.find_spec("pycocotools"):
        from pycocotools import mask as tools

        found: Any = tools.encode(np.asfortranarray(mask, np.uint8))
        return {"size": list(mask.shape), "counts": found["counts"].decode()}
    column = mask.reshape(-1, order="F")
    changes = np.flatnonzero(column[1:] != column[:-1]) + 1
    lengths = np.diff([0, *changes.tolist(), column.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *lengths] if column[0] else lengths}


def said_of(served: Mapping[str, np.ndarray], row: int, size: tuple[int, int]) -> dict[str, Any]:
    """What JSON says of the object of a row besides its class and box: `mask`, `keypoints`."""
    said: dict[str, Any] = {}
    if "masks" in served:
        (mask,) = instance_masks(served, np.array([row]), size)
        said["mask"] = run_lengths(mask)
    if "keypoints" in served:
        points = np.asarray(served["keypoints"][row], np.float64)
        said["keypoints"] = [[round(x, 1) for x in point] for point in points.tolist()]
    return said


def shown_rows(served: Mapping[str, Any]) -> np.ndarray:
    """The rows of the objects with a score of at least `SHOWN`."""
    return np.flatnonzero(np.asarray(served["valid"]) & (np.asarray(served["scores"]) >= SHOWN))


def size_of(served: Mapping[str, Any], description: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the image that the boxes are in: the file's, or else the network's."""
    shape = description.get("image_shape") or description["input_shape"]
    height, width = served["size"] if "size" in served else shape[:2]
    return int(height), int(width)


def drawn(
    said: Mapping[str, Any], row: int, size: tuple[int, int], class_names: Sequence[str]
) -> Any:
    """The object of a row, in an image of a size (height, width)."""
    from jaxconv.drawing.boxes import Drawn

    words = f"{class_names[int(said['classes'][row])]} {100 * said['scores'][row]:.0f} %"
    mask = None
    if "masks" in said:
        (mask,) = instance_masks(said, np.array([row]), size)
    points = np.asarray(said["keypoints"][row])[:, :2] if "keypoints" in said else None
    lines = () if points is None else lines_of(len(points))
    return Drawn(np.asarray(said["boxes"][row]), False, words, mask, points, lines)


def drawn_truth(
    targets: Mapping[str, Any], class_names: Sequence[str], whole: bool = False
) -> list[Any]:
    """The objects of the truth: boxes, and if `whole` their masks and keypoints too."""
    from jaxconv.drawing.boxes import Drawn

    valid, boxes = np.asarray(present(targets)), np.asarray(targets["boxes"])
    masks = of_bits(targets["masks"], len(valid)) if whole and "masks" in targets else None
    found = []
    for row in np.flatnonzero(valid).tolist():
        points = None
        if whole and "keypoints" in targets:
            labelled = np.asarray(targets["keypoints"][row])
            points = np.where(labelled[:, 2:] > 0, labelled[:, :2], np.nan)
        lines = () if points is None else lines_of(len(points))
        mask = None if masks is None else masks[row]
        name = class_names[int(targets["classes"][row])]
        found.append(Drawn(boxes[row], True, name, mask, points, lines))
    return found
