"""The annotated objects of images: boxes, classes, crowds; checked, and made into targets.

    segmentation   `segmentation` [H, W] uint8
    localization   `label`, the class of the largest object, and `boxes` [M, 4] of that class
    detection      `boxes` [M, 4] and `classes` [M] int32 of all objects, `valid` and `crowd` [M]

Objects are sorted by area, the largest first; beyond M, `data.max_boxes`, the smallest are left
out. Rows without an object are boxes of zeros, of class -1. A crowd is a region of many objects, or
one that is too difficult to count: it is no object to find, and none that is wrong to find.

What is wrong with annotations is counted, and said before training: see `Faults`.
"""

import collections
import dataclasses
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.folder import read_content
from jaxconv.data.interface import Target
from jaxconv.data.masks import IGNORED, check_size
from jaxconv.data.pictures import upright_size
from jaxconv.errors import UserError, nearest, some

# What to do with faulty annotations.
WAYS = ("mend", "keep", "refuse")
# The targets that annotated images may have.
OFFERED = ("segmentation", "label", "boxes", "classes", "valid", "crowd")
# Boxes are stored in hundredths of a pixel: this far outside of its image, one is not faulty.
_SLACK = 1.0


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
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    names: Sequence[str]
    segments: Sequence[Any] = ()

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
        )

    def of(self, i: int) -> slice:
        """The places of the objects of image i."""
        return slice(*np.searchsorted(self.image, [i, i + 1]))

    def in_order(self) -> "Objects":
        """Sorted by image and, in an image, by area, the largest first."""
        return self.take(np.lexsort((-areas(self.boxes), self.image)))


def areas(boxes: np.ndarray) -> np.ndarray:
    """Areas [n] of boxes [n, 4], in pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


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


def _named(objects: Objects, which: Any) -> list[str]:
    return [objects.names[i] for i in np.flatnonzero(which).tolist()]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The images of a set.

    Attributes:
      folder: of the files.
      names: N paths below it.
      sizes: [N, 2], height and width in pixels, turned upright.
    """

    folder: Path
    names: Sequence[str]
    sizes: np.ndarray


class AnnotatedFiles:
    """Records: the content of an image file, and targets made of its objects.

    Args:
      pictures: the images.
      objects: of all images, in order.
      class_names: one name per class; the first is `background` where there are masks only.
      wanted: names of `OFFERED`. With `label`, `boxes` are those of its class, and images without
        an object are left out.
      most: M, `config.data.max_boxes`.
      size: of the masks in an example, (height, width); None for that of the first.
      mask: number of an image -> its classes [H, W] uint8, and the name of the mask.
      checksum: of the annotations.
      faults: what was wrong.
    """

    def __init__(
        self,
        pictures: Pictures,
        objects: Objects,
        class_names: tuple[str, ...],
        wanted: Sequence[str],
        most: int,
        size: tuple[int, int] | None,
        mask: Callable[[int], tuple[np.ndarray, str]] | None,
        checksum: int,
        faults: Faults,
        notes: tuple[str, ...] = (),
    ):
        objects = objects.in_order()
        self._places = np.arange(len(pictures.names))
        self.class_names, self._most, self._mask = class_names, most, mask
        self._pictures, self._checksum, self.has_labels = pictures, checksum, "label" in wanted
        notes = (*notes, *faults.notes())
        if self.has_labels:
            # A crowd is no object.
            objects = objects.take(np.flatnonzero(~objects.crowd))
            self._places = np.unique(objects.image)
            left = len(pictures.names) - len(self._places)
            if not len(self._places):
                raise UserError(f"{faults.place}: no image has an object", exit_code=1)
            if left:
                notes += (f"{faults.place}: images without an object, left out: {left:,}",)
        self._objects = objects
        if "boxes" in wanted:
            notes += self._too_many(faults.place)
        forms = {
            "label": Target(),
            "boxes": Target((most, 4), "float32", "boxes"),
            "classes": Target((most,), "int32"),
            "valid": Target((most,), "bool"),
            "crowd": Target((most,), "bool"),
        }
        if "segmentation" in wanted:
            shape = size or tuple(int(side) for side in pictures.sizes[0])
            forms["segmentation"] = Target(shape, "uint8", f"mask:{IGNORED}")
        self.targets = {name: forms[name] for name in OFFERED if name in wanted}
        self.notes = notes

    def _too_many(self, place: str) -> tuple[str, ...]:
        counts = np.bincount(self._objects.image)
        over = np.maximum(counts - self._most, 0)
        if not over.any() or self.has_labels:
            return ()
        return (
            f"{place}: the smallest objects of images with more than {self._most}, left out: "
            f"{int(over.sum()):,}; --config.data.max_boxes={int(counts.max())} keeps all",
        )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> tuple[bytes, dict[str, Any]]:
        place, name = int(self._places[i]), self.name(i)
        content = read_content(name)
        size = upright_size(content)
        stated = tuple(int(side) for side in self._pictures.sizes[place])
        if size != stated:
            raise UserError(
                f"{name}: is {size[1]}x{size[0]} pixels, but its annotations say "
                f"{stated[1]}x{stated[0]}; make them equal",
                exit_code=1,
            )
        targets = self._of_objects(place)
        if "segmentation" in self.targets and self._mask is not None:
            mask, named = self._mask(place)
            check_size(mask, content, named, name)
            targets["segmentation"] = mask
        return content, {key: targets[key] for key in self.targets}

    def _of_objects(self, place: int) -> dict[str, Any]:
        of, targets = self._objects.of(place), {}
        boxes, classes, crowd = (
            value[of] for value in (self._objects.boxes, self._objects.classes, self._objects.crowd)
        )
        if self.has_labels:
            targets["label"] = np.int32(classes[0])
            boxes = boxes[classes == classes[0]]
        return targets | {
            "boxes": padded(boxes, self._most),
            "classes": padded(classes, self._most, -1),
            "valid": np.arange(self._most) < len(classes),
            "crowd": padded(crowd, self._most),
        }

    def labels_of_all(self) -> np.ndarray:
        """The classes [N] int32 of the largest objects."""
        if not self.has_labels:
            raise UserError(f"{self._pictures.folder}: holds no label for each image")
        first = np.searchsorted(self._objects.image, self._places)
        return self._objects.classes[first]

    def name(self, i: int) -> str:
        """The path of the image."""
        return os.path.join(self._pictures.folder, self._pictures.names[int(self._places[i])])

    def checksum(self) -> int:
        """CRC-32 of the annotations, and of names and sizes of the images, whatever is wanted."""
        value = self._checksum
        for name, size in zip(self._pictures.names, self._pictures.sizes.tolist(), strict=True):
            value = zlib.crc32(os.fsencode(f"{name} {size}\n"), value)
        return value


def padded(values: np.ndarray, most: int, fill: int = 0) -> np.ndarray:
    """The first `most` rows of values [n, ...], filled up: [most, ...]."""
    found = np.full((most, *values.shape[1:]), fill, values.dtype)
    found[: min(len(values), most)] = values[:most]
    return found


def wanted_of(
    needs: Sequence[str], offered: Sequence[str], default: Sequence[str]
) -> tuple[str, ...]:
    """The targets of a task that a source has: `needs`, or the default if nothing is asked for.

    What it does not have is left out: the task says what it lacks.
    """
    return tuple(name for name in offered if name in (needs or default))


def present(folder: Path, names: Sequence[str], faults: Faults, what: str = "images") -> np.ndarray:
    """The places of those files that are there.

    Raises:
      UserError: there is none, or one is missing and faults are refused.
    """
    there = np.array([os.path.isfile(folder / name) for name in names], bool)
    if not there.any():
        raise UserError(
            f"{faults.place}: none of its {len(names):,} {what} is in {folder}, such as "
            f"{some(list(names[:1]))}",
            exit_code=1,
        )
    missing = [str(folder / names[i]) for i in np.flatnonzero(~there).tolist()]
    faults.add(f"{what} that are not there, left out", missing)
    return np.flatnonzero(there)
