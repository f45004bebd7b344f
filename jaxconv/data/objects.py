"""The annotated objects of images: boxes, classes, crowds; and what is wrong with them.

A crowd is a region of many objects, or an object that is too difficult to count: it is none to
find, and none that is wrong to find. Faults are counted, and said before training.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxconv.errors import UserError, nearest

# What to do with faulty annotations.
WAYS = ("mend", "keep", "refuse")
# Boxes are stored in hundredths of a pixel: this far outside of its image, one is not faulty.
_SLACK = 1.0
# COCO's sizes of objects: the area is less than the square of this many pixels of the file.
SIZES = {"small": 32.0, "medium": 96.0, "large": float("inf")}


def check_way(way: str) -> None:
    """Raise UserError unless `config.data.annotations` is one of `WAYS`."""
    if way not in WAYS:
        raise UserError(
            f"config.data.annotations is {way!r}{nearest(way, WAYS)}; it must be one of "
            f"{', '.join(WAYS)}"
        )


class Faults:
    """What is wrong with the annotations of a set, for notes.

    Args:
      place: of the annotations, for messages.
      way: `config.data.annotations`: `refuse` stops at the first fault.
    """

    def __init__(self, place: str, way: str):
        check_way(way)
        self.place, self.way = place, way
        self._found: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, why: str, names: Sequence[str]) -> None:
        """Add things with the same fault.

        Args:
          why: such as `boxes without area, left out`.
          names: of the things.

        Raises:
          UserError: faults are refused, and there is a name.
        """
        if names and self.way == "refuse":
            raise UserError(
                f"{self.place}: {names[0]}: {why}: {len(names):,}; correct the annotations, or "
                "set --config.data.annotations=mend",
                exit_code=1,
            )
        self._found[why] += names

    def notes(self) -> tuple[str, ...]:
        """One line for each fault: how many there are, and an example."""
        return tuple(
            f"{self.place}: {why}: {len(names):,}, such as {names[0]}"
            for why, names in self._found.items()
            if names
        )


@dataclasses.dataclass(frozen=True)
class Objects:
    """The n objects of all images of a set, sorted by image.

    Attributes:
      image: [n] int64, the number of each object's image.
      boxes: [n, 4] float32, in pixels of the image.
      classes: [n] int32, from 0.
      crowd: [n] bool.
      names: of the objects, for messages.
      segments: n shapes, whatever `shapes.rasterized` takes; empty if there are none.
      keypoints: [n, J, 3] float32: y, x in pixels, and 0 not labelled, 1 hidden or 2 visible; None
        if there are none.
      filled: [n] float32, the share of its box that each object fills; None if it is unknown.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    names: Sequence[str]
    segments: Sequence[Any] = ()
    keypoints: np.ndarray | None = None
    filled: np.ndarray | None = None

    def take(self, places: np.ndarray) -> "Objects":
        """Those of some places [m], integers."""
        places = np.asarray(places, np.int64)
        numbers: list[int] = places.tolist()
        return Objects(
            self.image[places],
            self.boxes[places],
            self.classes[places],
            self.crowd[places],
            [self.names[i] for i in numbers],
            [self.segments[i] for i in numbers] if self.segments else (),
            None if self.keypoints is None else self.keypoints[places],
            None if self.filled is None else self.filled[places],
        )

    def of(self, i: int) -> slice:
        """The places of the objects of image i."""
        return slice(*np.searchsorted(self.image, [i, i + 1]))

    def in_order(self) -> "Objects":
        """Sorted by image and, in an image, by area, the largest first."""
        return self.take(np.lexsort((-areas(self.boxes), self.image)))


def as_bits(masks: np.ndarray, most: int) -> np.ndarray:
    """Masks [n, H, W] of n objects as bits [H, W, ceil(most / 8)] uint8.

    Bit m % 8 of byte m // 8 is object m; those beyond `most` are left out.
    """
    masks = np.asarray(masks, bool)[:most]
    packed = np.packbits(masks, axis=0, bitorder="little")
    room = -(-most // 8) - len(packed)
    return np.moveaxis(np.pad(packed, ((0, room), (0, 0), (0, 0))), 0, -1)


def of_bits(bits: np.ndarray, objects: int) -> np.ndarray:
    """The masks [objects, H, W] bool in bits, see `as_bits`."""
    planes = np.unpackbits(np.asarray(bits), axis=-1, count=objects, bitorder="little")
    return np.moveaxis(planes, -1, 0).astype(bool)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Areas [...] of boxes [..., 4], in pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def common_areas(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas [...] of what boxes [..., 4], which broadcast, have in common, in pixels."""
    sides = np.minimum(some[..., 2:], others[..., 2:]) - np.maximum(some[..., :2], others[..., :2])
    return np.maximum(sides, 0).prod(axis=-1)


def mended(objects: Objects, sizes: np.ndarray, faults: Faults) -> Objects:
    """Objects with their boxes clipped to their images, and without those that have no good one.

    Args:
      objects: any.
      sizes: [N, 2], height and width of every image.
      faults: what is wrong is added; if they are to be kept, it is only counted.

    Raises:
      UserError: something is wrong, and faults are refused.
    """
    finite = np.isfinite(objects.boxes).all(axis=1)
    faults.add("boxes whose numbers are not finite, left out", _named(objects, ~finite))
    objects = objects.take(np.flatnonzero(finite))
    boxes, limit = objects.boxes, np.tile(sizes, 2)[objects.image].astype(np.float32)
    clipped = np.clip(boxes, 0, limit)
    inverted = (boxes[:, :2] > boxes[:, 2:]).any(axis=1)
    empty = ~inverted & (areas(boxes) <= 0)
    outside = ~inverted & ~empty & (areas(clipped) <= 0)
    good = ~(inverted | empty | outside)
    partly = good & (np.abs(boxes - clipped).max(axis=1, initial=0) > _SLACK)
    keep = faults.way == "keep"
    for why, done, which in (
        ("boxes that end before they begin", "left out", inverted),
        ("boxes without area", "left out", empty),
        ("boxes outside of their image", "left out", outside),
        ("boxes partly outside of their image", "clipped", partly),
    ):
        faults.add(f"{why}, {'kept' if keep else done}", _named(objects, which))
    if keep:
        return objects
    return dataclasses.replace(objects, boxes=clipped).take(np.flatnonzero(good))


def count_objects(
    boxes: np.ndarray, classes: np.ndarray, image: np.ndarray, images: int, names: Sequence[str]
) -> dict[str, Any]:
    """How many objects there are, for JSON: `count`, `classes` and `sizes` {name: count}, images
    `without` any, and the `most` of an image.

    Args:
      boxes: [n, 4] in pixels of the files.
      classes, image: [n] of the objects.
      images: how many there are.
      names: of the classes.
    """
    of_image = np.bincount(image, minlength=images)
    size = np.digitize(areas(boxes), [side**2 for side in SIZES.values()][:-1])
    return {
        "count": len(boxes),
        "classes": dict(
            zip(names, np.bincount(classes, minlength=len(names)).tolist(), strict=True)
        ),
        "sizes": dict(zip(SIZES, np.bincount(size, minlength=len(SIZES)).tolist(), strict=True)),
        "without": int((of_image == 0).sum()),
        "most": int(of_image.max(initial=0)),
    }


def _named(objects: Objects, which: Any) -> list[str]:
    return [objects.names[i] for i in np.flatnonzero(which).tolist()]
