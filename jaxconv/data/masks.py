"""Images with a mask of class indices each: `masks:DIR`.

    DIR/<split>/images/NAME.jpg    any image file
    DIR/<split>/masks/NAME.png     8 bits, grey or with a palette: the class of each pixel
    DIR/classes.json               names of the classes: a list, or {"classes": [...],
                                   "ignore_index": 11}; without it, classes are numbered

Pixels of the ignored index, and of 255, do not count: they are 255 in `segmentation`. If the
ignored index is that of the last name, that name is no class. Files may lie in subfolders, the same
for images and masks.
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.folder import read_content
from jaxconv.data.interface import DamagedError, Target
from jaxconv.data.listing import list_files, suffixes_of
from jaxconv.data.pictures import opened, upright_size
from jaxconv.errors import UserError, in_words, some

IGNORED = 255


class MaskedFiles:
    """Records: the content of an image file, and its `segmentation` [H, W] uint8.

    Args:
      root: DIR/<split>.
      names: of the images below `images`.
      class_names: one name per class.
      ignored: the index that does not count, besides 255; -1 for none.
      size: of the masks in an example, (height, width); None for that of the first mask.
      notes: what was left out, one line each.
    """

    has_labels = False

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        class_names: tuple[str, ...],
        ignored: int,
        size: tuple[int, int] | None,
        notes: tuple[str, ...] = (),
    ):
        self._root, self._names, self.class_names, self.notes = root, names, class_names, notes
        self._ignored = ignored
        shape = size or self._mask(0).shape
        self.targets = {"segmentation": Target(shape, "uint8", f"mask:{IGNORED}")}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> tuple[bytes, dict[str, np.ndarray]]:
        content, mask = read_content(self.name(i)), self._mask(i)
        check_size(mask, content, str(self._mask_of(i)), self.name(i))
        return content, {"segmentation": mask}

    def _mask_of(self, i: int) -> Path:
        return self._root / "masks" / Path(self._names[i]).with_suffix(".png")

    def _mask(self, i: int) -> np.ndarray:
        return read_mask(self._mask_of(i), len(self.class_names), self._ignored)

    def labels_of_all(self) -> np.ndarray:
        """An example has no label."""
        raise UserError(f"{self._root}: holds masks, and no label for each image")

    def name(self, i: int) -> str:
        """The path of the image."""
        return os.path.join(self._root, "images", self._names[i])

    def checksum(self) -> int:
        """CRC-32 of names and sizes of images and masks."""
        value = zlib.crc32(repr((self.class_names, self._ignored)).encode())
        for i, name in enumerate(self._names):
            sizes = [os.stat(path).st_size for path in (self.name(i), self._mask_of(i))]
            value = zlib.crc32(os.fsencode(f"{name} {sizes}\n"), value)
        return value


def check_size(mask: np.ndarray, content: bytes, name: str, image: str) -> None:
    """Raise UserError unless a mask [H, W] has the size of its image, turned upright.

    Args:
      mask: of any type.
      content: of the image file.
      name, image: of the mask and of the image, for the message.
    """
    height, width = upright_size(content)
    if mask.shape != (height, width):
        raise UserError(
            f"{name}: is {mask.shape[1]}x{mask.shape[0]} pixels, but its image {image} is "
            f"{width}x{height}; make them equal",
            exit_code=1,
        )


def read_indices(content: bytes, name: str) -> np.ndarray:
    """The indices [H, W] uint8 of a mask file's content, as stored.

    Raises:
      DamagedError: it cannot be read.
      UserError: it has colours or 16 bits instead of indices; `name` is that of the file.
    """
    with opened(content) as image:
        mode, mask = image.mode, np.array(image)
    if mode not in ("L", "P", "1"):
        raise UserError(
            f"{name}: has the mode {mode}; a mask is 8-bit grey or has a palette, with the class "
            "of each pixel",
            exit_code=1,
        )
    return mask.astype(np.uint8)


def read_mask(path: Path, classes: int, ignored: int = -1) -> np.ndarray:
    """A mask file's class indices [H, W] uint8, 255 for the ignored ones.

    Raises:
      DamagedError: it cannot be read.
      UserError: as `read_indices`; or it has an index beyond the classes.
    """
    mask = read_indices(read_content(path), str(path))
    if ignored >= 0:
        mask[mask == ignored] = IGNORED
    beyond = np.unique(mask[(mask >= classes) & (mask != IGNORED)])
    if len(beyond):
        raise UserError(
            f"{path}: has the index {some([str(k) for k in beyond])}, but there are {classes} "
            f"classes, 0 to {classes - 1}; name all in classes.json, or set its ignore_index",
            exit_code=1,
        )
    return mask


def read_classes(path: Path) -> tuple[tuple[str, ...], int]:
    """Names of the classes and the ignored index, -1 for none, of a classes.json.

    Raises:
      UserError: it is not such a file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = found if isinstance(found, dict) else {"classes": found}
        names, ignored = (
            [str(name) for name in found["classes"]],
            int(found.get("ignore_index", -1)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: must be a list of names, or "
            f'{{"classes": [...], "ignore_index": 11}}: {in_words(error)}',
            exit_code=1,
        ) from error
    if len(set(names)) != len(names) or not names:
        raise UserError(f"{path}: has no name or one twice: {some(names)}", exit_code=1)
    return tuple(names[:-1] if ignored == len(names) - 1 else names), ignored


def open_masks(
    folder: str, split: str, size: tuple[int, int] | None, trained: Sequence[str]
) -> MaskedFiles:
    """The records of DIR/<split>.

    Args:
      folder: DIR.
      split: the split's name.
      size: (height, width) of the masks in an example; None for those of the files.
      trained: the classes of the split that the network was trained with; empty if there is none.

    Raises:
      UserError: there is no such split, an image has no mask, or the classes are not readable.
    """
    root = Path(folder).expanduser()
    images = root / split / "images"
    if not images.is_dir():
        has = sorted(path.parent.name for path in root.glob("*/images")) if root.is_dir() else []
        raise UserError(
            f"masks:{folder}: has no folder {split}/images; there is {some(has) or 'none'}",
            exit_code=1,
        )
    listed = list_files(str(images), suffixes_of("image"))
    if not listed.names:
        raise UserError(f"{images}: holds no image", exit_code=1)
    masks = root / split / "masks"
    lost = [n for n in listed.names if not (masks / Path(n).with_suffix(".png")).is_file()]
    if lost:
        raise UserError(
            f"{images / lost[0]}: has no mask {masks / Path(lost[0]).with_suffix('.png')}"
            + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""),
            exit_code=1,
        )
    names, ignored = tuple(trained), -1
    if (root / "classes.json").is_file():
        names, ignored = read_classes(root / "classes.json")
    elif not names:
        names = _numbered(masks, listed.names)
    notes = tuple(listed.notes(str(images)))
    return MaskedFiles(root / split, listed.names, names, ignored, size, notes)


def _numbered(masks: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Numbers as names: up to the largest index in the masks."""
    largest = 0
    for name in names:
        try:
            mask: Any = read_mask(masks / Path(name).with_suffix(".png"), IGNORED)
        except DamagedError:
            continue
        largest = max(largest, int(mask[mask != IGNORED].max(initial=0)))
    return tuple(str(k) for k in range(largest + 1))
