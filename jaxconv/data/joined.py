"""Boxes from another folder for the images of a classification set: `config.data.boxes=DIR`.

ILSVRC's boxes are XML files below DIR, named as the images: n01440764_10040.xml for
n01440764_10040.JPEG (image-net.org, CLS-LOC). Their numbers are pixels of an image of the size that
the file states, which is not always that of the image. All objects of an image are of its class. Of
ImageNet's training images, 42% have boxes; the others have none, and teach only the class.
"""

import collections
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.annotated import padded
from jaxconv.data.folder import Files
from jaxconv.data.interface import DamagedError, Target, evenly
from jaxconv.data.listing import list_files
from jaxconv.data.objects import Faults, Objects, mended
from jaxconv.data.pictures import upright_size
from jaxconv.data.voc import read_xml
from jaxconv.errors import UserError, some
from jaxconv.files import at_home

# How many files are read before training, to say what is wrong with them.
_LOOKED_AT = 2_000


class BoxFiles:
    """XML files of boxes by the name of the image.

    Args:
      folder: DIR.
      most: M, `config.data.max_boxes`.
      way: `config.data.annotations`.

    Attributes:
      target: the boxes of an example.
      notes: what is wrong with some of the files.

    Raises:
      UserError: there is no XML file, two have one name, or files are faulty and that is refused.
    """

    def __init__(self, folder: str, most: int, way: str):
        self._root, self._most, self._way = at_home(folder, "config.data.boxes"), most, way
        names = list_files(self._root, (".xml",)).names if self._root.is_dir() else []
        if not names:
            raise UserError(f"config.data.boxes is {folder!r}: there is no .xml file", exit_code=1)
        stems = [Path(name).stem for name in names]
        self._files = dict(zip(stems, names, strict=True))
        if len(self._files) < len(names):
            twice = [name for name, count in collections.Counter(stems).items() if count > 1]
            raise UserError(
                f"config.data.boxes is {folder!r}: several files are named {some(twice)}",
                exit_code=1,
            )
        self.target = Target((most, 4), "float32", "boxes")
        sample = [stems[i] for i in evenly(len(stems), _LOOKED_AT)]
        faults = Faults(f"{self._root}, {len(sample):,} of {len(stems):,} files", way)
        found = [self._read(stem, faults) for stem in sample]
        self._mended(found, faults)
        self.notes = faults.notes()

    def __contains__(self, stem: str) -> bool:
        return stem in self._files

    def _read(self, stem: str, faults: Faults) -> tuple[str, np.ndarray]:
        """The boxes [n, 4] of an image of 1 x 1."""
        try:
            said = read_xml(self._root / self._files[stem])
        except DamagedError as error:
            faults.add(f"files that cannot be read, left out ({error})", [self._files[stem]])
            return stem, np.zeros((0, 4), np.float32)
        if not all(said.size):
            faults.add("files without the size of the image, left out", [self._files[stem]])
            return stem, np.zeros((0, 4), np.float32)
        return stem, said.boxes / np.tile(np.array(said.size, np.float32), 2)

    def _mended(self, found: list[tuple[str, np.ndarray]], faults: Faults) -> np.ndarray:
        """Good boxes [n, 4] of images of 1000 x 1000."""
        counts = [len(boxes) for _, boxes in found]
        image = np.repeat(np.arange(len(found)), counts)
        boxes = np.concatenate([1000 * boxes for _, boxes in found])
        none = np.zeros(len(image), np.int32)
        names = [self._files[stem] for stem, boxes in found for _ in boxes]
        objects = Objects(image, boxes.astype(np.float32), none, none > 0, names)
        sizes = np.full((len(found), 2), 1000)
        return mended(objects, sizes, faults).in_order().boxes

    def of(self, stem: str, height: int, width: int) -> np.ndarray:
        """The boxes [M, 4] of an image, in its pixels; zeros if it has none."""
        if stem not in self._files:
            return np.zeros((self._most, 4), np.float32)
        # What is wrong was said, or refused, of a sample before training.
        faults = Faults(str(self._root), self._way if self._way == "keep" else "mend")
        boxes = self._mended([self._read(stem, faults)], faults) / 1000
        sides = np.array([height, width] * 2, np.float32)
        return padded((boxes * sides).astype(np.float32), self._most)

    def checksum(self, value: int) -> int:
        """CRC-32 of the names and sizes of the files, continued from `value`."""
        for name in sorted(self._files.values()):
            size = os.stat(self._root / name).st_size
            value = zlib.crc32(os.fsencode(f"{name} {size}\n"), value)
        return value


class FilesWithBoxes:
    """Records of image files with `label` and `boxes` [M, 4].

    Args:
      files: the images.
      boxes: theirs.
    """

    has_labels = True

    def __init__(self, files: Files, boxes: BoxFiles):
        self._files, self._boxes = files, boxes
        self.targets = {"label": Target(), "boxes": boxes.target}
        without = sum(Path(files.name(i)).stem not in boxes for i in range(len(files)))
        self.notes = (*files.notes, *boxes.notes)
        if without == len(files):
            raise UserError(
                f"config.data.boxes: no file has the name of an image, such as {files.name(0)}",
                exit_code=1,
            )
        if without:
            self.notes += (f"images without boxes: {without:,} of {len(files):,}",)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> tuple[bytes, dict[str, Any]]:
        content, label = self._files[i]
        boxes = self._boxes.of(Path(self.name(i)).stem, *upright_size(content))
        return content, {"label": np.int32(label), "boxes": boxes}

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32."""
        return self._files.labels_of_all()

    def name(self, i: int) -> str:
        """The path of the image."""
        return self._files.name(i)

    def checksum(self) -> int:
        """CRC-32 of names, labels and sizes of the images and of the files of boxes."""
        return self._boxes.checksum(self._files.checksum())
