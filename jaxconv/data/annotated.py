"""Images with annotated objects, and the targets made of them.

    segmentation   `segmentation` [H, W] uint8
    localization   `label`, the class of the largest object, and `boxes` [M, 4] of that class
    detection      `boxes` [M, 4] and `classes` [M] int32 of all objects, `valid` and `crowd` [M];
                   their `masks` [H, W, ceil(M / 8)] uint8, as bits, see `objects.as_bits`; their
                   `keypoints` [M, J, 3]: y, x and COCO's visibility, and `filled` [M], the share of
                   its box that each fills

Objects are sorted by area, the largest first; beyond M, `data.max_boxes`, the smallest are left
out. Rows without an object are boxes of zeros, of class -1.
"""

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
from jaxconv.data.objects import Faults, Objects, as_bits
from jaxconv.data.pictures import upright_size
from jaxconv.data.shapes import rasterized
from jaxconv.errors import UserError, short

# The targets that annotated images may have.
OFFERED = (
    *("segmentation", "label", "boxes", "classes", "valid", "crowd"),
    *("masks", "keypoints", "filled"),
)


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
      moves: the kind of `keypoints`, see geometry.py.

    Attributes:
      objects: of all images, also those beyond `most`; with `label`, without crowds.
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
        moves: str = "keypoints",
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
        self.objects = objects
        if "boxes" in wanted:
            notes += self._too_many(faults.place)
        forms = {
            "label": Target(),
            **detection_targets(most),
            "filled": Target((most,), "float32"),
        }
        shape = size or tuple(int(side) for side in pictures.sizes[0])
        forms["segmentation"] = Target(shape, "uint8", f"mask:{IGNORED}")
        forms["masks"] = Target((*shape, -(-most // 8)), "uint8", "mask")
        if objects.keypoints is not None:
            joints = objects.keypoints.shape[1]
            forms["keypoints"] = Target((most, joints, 3), "float32", moves)
        self.targets = {name: forms[name] for name in OFFERED if name in wanted}
        self.notes = notes

    def _too_many(self, place: str) -> tuple[str, ...]:
        counts = np.bincount(self.objects.image)
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
        if "masks" in self.targets:
            targets["masks"] = self._bits(place)
        return content, {key: targets[key] for key in self.targets}

    def _bits(self, place: int) -> np.ndarray:
        """The masks of an image's objects, as bits."""
        height, width = (int(side) for side in self._pictures.sizes[place])
        shapes = self.objects.segments[self.objects.of(place)][: self._most]
        masks = [rasterized(shape, height, width) for shape in shapes]
        return as_bits(np.array(masks).reshape(-1, height, width), self._most)

    def _of_objects(self, place: int) -> dict[str, Any]:
        of, targets = self.objects.of(place), {}
        boxes, classes, crowd = (
            value[of] for value in (self.objects.boxes, self.objects.classes, self.objects.crowd)
        )
        if self.has_labels:
            targets["label"] = np.int32(classes[0])
            boxes = boxes[classes == classes[0]]
        for name in ("keypoints", "filled"):
            if (values := getattr(self.objects, name)) is not None:
                targets[name] = padded(values[of], self._most)
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
        first = np.searchsorted(self.objects.image, self._places)
        return self.objects.classes[first]

    def name(self, i: int) -> str:
        """The path of the image."""
        return os.path.join(self._pictures.folder, self._pictures.names[int(self._places[i])])

    def checksum(self) -> int:
        """CRC-32 of the annotations, and of names and sizes of the images, whatever is wanted."""
        value = self._checksum
        for name, size in zip(self._pictures.names, self._pictures.sizes.tolist(), strict=True):
            value = zlib.crc32(os.fsencode(f"{name} {size}\n"), value)
        return value


def detection_targets(most: int) -> dict[str, Target]:
    """The targets of detection, with M = `most` rows."""
    return {
        "boxes": Target((most, 4), "float32", "boxes"),
        "classes": Target((most,), "int32"),
        "valid": Target((most,), "bool"),
        "crowd": Target((most,), "bool"),
    }


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
            f"{short(names[0])}",
            exit_code=1,
        )
    missing = [str(folder / names[i]) for i in np.flatnonzero(~there).tolist()]
    faults.add(f"{what} that are not there, left out", missing)
    return np.flatnonzero(there)
