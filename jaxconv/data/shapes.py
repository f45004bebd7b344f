"""The shapes of objects as masks: COCO's polygons, run lengths and panoptic PNGs.

Polygons and run lengths become masks by pycocotools, the reference (the extra `coco`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.folder import read_content
from jaxconv.data.interface import DamagedError
from jaxconv.data.masks import IGNORED
from jaxconv.data.objects import Faults
from jaxconv.data.pictures import opened
from jaxconv.errors import UserError, missing, short, some


def checked_shape(shape: Any, height: int, width: int) -> Any:
    """A segmentation that pycocotools can be given safely; None if there is none in it.

    Args:
      shape: polygons [x, y, x, y ...], a list of them; or run lengths, compressed or not.
      height, width: of the image.
    """
    try:
        return _checked(shape, height, width)
    except (ValueError, TypeError, OverflowError):
        return None


def _checked(shape: Any, height: int, width: int) -> Any:
    if isinstance(shape, list):
        good = [p for p in shape if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
        polygons = [np.asarray(polygon, np.float64) for polygon in good]
        return [p for p in polygons if np.isfinite(p).all()] or None
    if not isinstance(shape, dict) or list(shape.get("size", ())) != [height, width]:
        return None
    counts = shape.get("counts")
    if isinstance(counts, list):
        numbers = np.asarray(counts, np.int64)
        fits = numbers.ndim == 1 and (numbers >= 0).all() and numbers.sum() == height * width
        return {"size": [height, width], "counts": numbers} if fits else None
    return shape if isinstance(counts, str | bytes) and counts else None


def rasterized(shape: Any, height: int, width: int) -> np.ndarray:
    """A segmentation as a mask [H, W] bool, by pycocotools.

    Args:
      shape: of `checked_shape`.
      height, width: of the image, in pixels.

    Raises:
      UserError: pycocotools is not installed.
      DamagedError: the run lengths are damaged.
    """
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise missing("coco:", "pycocotools") from error
    tools: Any = mask
    height, width = int(height), int(width)
    try:
        if isinstance(shape, list):
            parts = tools.frPyObjects([polygon.tolist() for polygon in shape], height, width)
            run = tools.merge(parts)
        elif isinstance(shape["counts"], np.ndarray):
            counts = shape["counts"].tolist()
            run = tools.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        else:
            run = {"size": [height, width], "counts": shape["counts"]}
        return tools.decode(run).astype(bool)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"has run lengths that cannot be read ({short(error)})") from error


def merged(shapes: Sequence[Any], classes: Sequence[int], height: int, width: int) -> np.ndarray:
    """The class of each pixel [H, W] uint8: 0 of none, k + 1 of class k, 255 of several.

    Args:
      shapes: n segmentations.
      classes: n numbers, from 0.
      height, width: of the image, in pixels.
    """
    found = np.zeros((height, width), np.uint8)
    for shape, k in zip(shapes, classes, strict=True):
        inside = rasterized(shape, height, width)
        other = inside & (found != 0) & (found != k + 1)
        found[inside] = k + 1
        found[other] = IGNORED
    return found


def panoptic_masks(
    path: Path, segments: Sequence[tuple[str, Mapping[int, int]]]
) -> Callable[[int], tuple[np.ndarray, str]]:
    """The function from the number of an image to its classes [H, W] uint8 and its PNG's name.

    Args:
      path: of the panoptic file.
      segments: of each image, the name of its PNG, and {number of a segment: class}.

    Raises:
      UserError: a PNG is missing.
    """
    folders = (path.parent / path.stem, path.parent.parent / path.stem, path.parent)
    folder = next((f for f in folders if (f / segments[0][0]).is_file()), None)
    if folder is None:
        raise UserError(
            f"{path}: its mask {segments[0][0]} is in none of {', '.join(map(str, folders))}",
            exit_code=1,
        )
    for name, _ in segments:
        if not (folder / name).is_file():
            raise UserError(f"{path}: there is no mask {folder / name}", exit_code=1)

    def mask(i: int) -> tuple[np.ndarray, str]:
        name, classes = segments[i]
        file = folder / name
        with opened(read_content(file)) as image:
            colours = np.asarray(image.convert("RGB")).astype(np.int64)
        numbers = colours @ np.array([1, 256, 65536])
        values, where = np.unique(numbers, return_inverse=True)
        of = np.array([classes.get(int(value), IGNORED) for value in values], np.uint8)
        return of[where].reshape(numbers.shape), str(file)

    return mask


def panoptic_segments(
    annotations: Sequence[Mapping[str, Any]],
    by_id: Mapping[int, int | None],
    order: Mapping[int, int],
    images: int,
    faults: Faults,
) -> list[tuple[str, dict[int, int]]]:
    """The PNG of each image, and the class of each of its segments, {number: class}.

    Args:
      annotations: of a panoptic file.
      by_id: the number of each image by its id; None of those that are not there.
      order: the class of each category by its id.
      images: how many there are.
      faults: what is wrong is added.

    Raises:
      UserError: an image has no segments.
    """
    found: list[tuple[str, dict[int, int]] | None] = [None] * images
    nowhere, unknown = [], []
    for one in annotations:
        number = int(one["image_id"])
        if number not in by_id:
            nowhere.append(f"image {number}")
        place = by_id.get(number)
        if place is None:
            continue
        segments = {int(s["id"]): int(s["category_id"]) for s in one["segments_info"]}
        unknown += [
            f"segment {segment} of category {category}"
            for segment, category in segments.items()
            if category not in order
        ]
        known = {s: order[category] for s, category in segments.items() if category in order}
        found[place] = (str(one["file_name"]), known)
    faults.add("annotations of an image that is not listed, left out", nowhere)
    faults.add("segments of an unknown category, ignored", unknown)
    lacking = [f"image {n}" for n, one in enumerate(found) if one is None]
    if lacking:
        raise UserError(
            f"{faults.place}: has no segments for {some(lacking)}; remove them from its images",
            exit_code=1,
        )
    return [one for one in found if one is not None]
