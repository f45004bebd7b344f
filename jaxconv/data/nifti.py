"""Volumes with a mask of class indices each, as NIfTI files: `nifti:DIR`.

    DIR/images/NAME.nii.gz    or imagesTr; a volume, or several with the channels as the last axis
    DIR/labels/NAME.nii.gz    or labelsTr; the class of each voxel
    DIR/<split>/images, ...   if the set is split; else a share is held out as the split `test`
    DIR/classes.json          names of the classes, see masks.py; or dataset.json, with its `labels`

A set that is not split is so by the names of its files alone: the share `data.nifti.test_fraction`
with the lowest CRC-32 of `seed name` is the split `test`, whichever other files there are.

Volumes are turned to the axes right, anterior, superior, standardised (each channel has mean 0 and
deviation 1 over the volume), and centred in `data.nifti.size` voxels. Where they are larger they
are cropped, where they are smaller they are padded: with 0, and in the mask with the ignored index.
Voxels are not resampled. nibabel reads the files (the extra `nifti`).
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.interface import DamagedError, Target
from jaxconv.data.listing import files_in
from jaxconv.data.masks import IGNORED, read_classes
from jaxconv.data.objects import Faults
from jaxconv.errors import UserError, in_words, missing, short, some

SUFFIXES = (".nii", ".nii.gz")
# The folders of images and masks, as here and in the Medical Segmentation Decathlon.
FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))


class VolumeFiles:
    """Records: a volume [D, H, W, C], and its `segmentation` at the size of an example.

    Args:
      images, masks: paths of the files.
      class_names: one name per class.
      ignored: the index that does not count, besides 255; -1 for none.
      size: (D, H, W) of an example; empty for the largest of each axis.
      notes: what was left out, one line each.
    """

    has_labels = False

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        class_names: tuple[str, ...],
        ignored: int,
        size: Sequence[int],
        notes: tuple[str, ...] = (),
    ):
        self._images, self._masks, self.class_names = images, masks, class_names
        self._ignored = ignored
        headers = [read_header(path) for path in images]
        shapes = np.array([shape[:3] for shape, _ in headers])
        self.size = tuple(int(side) for side in (size or shapes.max(axis=0)))
        self.targets = {"segmentation": Target(self.size, "uint8", f"mask:{IGNORED}")}
        larger = int((shapes > np.array(self.size)).any(axis=1).sum())
        if larger:
            notes += (f"volumes larger than {self.size}, cropped: {larger:,} of {len(images):,}",)
        spacings = {tuple(np.round(spacing, 2).tolist()) for _, spacing in headers}
        if len(spacings) > 1:
            notes += (
                f"voxels of {len(spacings):,} different sizes, from {min(spacings)} to "
                f"{max(spacings)}: they are not resampled",
            )
        self.notes = notes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        image, mask = read_nifti(self._images[i]), read_nifti(self._masks[i])
        if mask.shape != image.shape[:3]:
            raise UserError(
                f"{self._masks[i]}: is {_in_words(mask.shape)} voxels, but its image "
                f"{self._images[i]} is {_in_words(image.shape[:3])}; make them equal",
                exit_code=1,
            )
        image = image[..., None] if image.ndim == 3 else image
        indices = self._indices(mask, self._masks[i])
        return image, {"segmentation": centred(indices, self.size, IGNORED)}

    def _indices(self, mask: np.ndarray, path: Path) -> np.ndarray:
        """Class indices [D, H, W] uint8, 255 for the ignored ones."""
        whole = np.round(mask)
        ignored = np.isin(whole, (IGNORED, self._ignored))
        wrong = (mask != whole) | ~ignored & ((whole < 0) | (whole >= len(self.class_names)))
        if wrong.any():
            found = [f"{value:g}" for value in np.unique(mask[wrong])]
            raise UserError(
                f"{path}: has the index {some(found)}, but there are {len(self.class_names)} "
                f"classes, 0 to {len(self.class_names) - 1}; name all in classes.json, or set its "
                "ignore_index",
                exit_code=1,
            )
        return np.where(ignored, IGNORED, whole).astype(np.uint8)

    def labels_of_all(self) -> np.ndarray:
        """An example has no label."""
        raise UserError(f"{self._images[0].parent}: holds masks, and no label for each volume")

    def name(self, i: int) -> str:
        """The path of the volume."""
        return str(self._images[i])

    def checksum(self) -> int:
        """CRC-32 of names and sizes of volumes and masks."""
        value = zlib.crc32(repr((self.class_names, self._ignored)).encode())
        for image, mask in zip(self._images, self._masks, strict=True):
            sizes = [os.stat(path).st_size for path in (image, mask)]
            value = zlib.crc32(os.fsencode(f"{image.name} {sizes}\n"), value)
        return value


def _in_words(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _nibabel() -> Any:
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise missing("nifti:", "nibabel") from error
    return nibabel


def _opened(path: Path) -> Any:
    """nibabel's image, turned to the canonical axes, of which only the header has been read.

    Raises:
      DamagedError: it cannot be read, or is no volume.
    """
    nibabel = _nibabel()
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        shape = tuple(int(side) for side in image.shape)
    except Exception as error:  # any kind, of damaged bytes
        raise DamagedError(f"cannot be read as NIfTI ({in_words(error)})") from error
    if len(shape) not in (3, 4) or not all(shape):
        raise DamagedError(f"is {_in_words(shape)}; it must be a volume, with or without channels")
    return image


def read_header(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape (D, H, W) or (D, H, W, C) of a file, and the size of a voxel in its units.

    Raises:
      UserError: it cannot be read.
    """
    try:
        image = _opened(path)
    except DamagedError as error:
        raise UserError(f"{path}: {error}", exit_code=1) from error
    return tuple(map(int, image.shape)), tuple(map(float, image.header.get_zooms()[:3]))


def read_nifti(path: Path) -> np.ndarray:
    """The numbers [D, H, W] or [D, H, W, C] float32 of a file, scaled as its header says.

    Raises:
      DamagedError: it cannot be read, is no volume, or has numbers that are not finite.
    """
    image = _opened(path)
    try:
        values = image.get_fdata(dtype=np.float32)
    except Exception as error:  # any kind, of damaged bytes
        raise DamagedError(f"cannot be read as NIfTI ({in_words(error)})") from error
    if not np.isfinite(values).all():
        raise DamagedError("has numbers that are infinite or NaN")
    return values


def standardised(values: np.ndarray) -> np.ndarray:
    """[D, H, W, C] with mean 0 and deviation 1 of each channel; zeros where all are the same."""
    values = values.astype(np.float64)
    apart = values - values.mean(axis=(0, 1, 2))
    deviation = apart.std(axis=(0, 1, 2))
    return (apart / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def centred(values: np.ndarray, size: Sequence[int], fill: int = 0) -> np.ndarray:
    """The middle of values [D, H, W, ...], cropped and padded to a size of the first axes."""
    found = np.full((*size, *values.shape[len(size) :]), fill, values.dtype)
    inside, outside = [], []
    for have, want in zip(values.shape, size, strict=False):
        length = min(have, want)
        outside.append(slice((have - length) // 2, (have - length) // 2 + length))
        inside.append(slice((want - length) // 2, (want - length) // 2 + length))
    found[tuple(inside)] = values[tuple(outside)]
    return found


def held_out(names: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which names [N] bool are in the split `test`: the share with the lowest CRC-32.

    Raises:
      UserError: the share leaves a split empty.
    """
    count = round(share * len(names))
    if not 0 < count < len(names):
        raise UserError(
            f"config.data.nifti.test_fraction is {share}, {count} of {len(names)} volumes; both "
            "splits need some",
            exit_code=1,
        )
    order = sorted(range(len(names)), key=lambda i: zlib.crc32(f"{seed} {names[i]}".encode()))
    chosen = np.zeros(len(names), bool)
    chosen[order[:count]] = True
    return chosen


def open_nifti(
    folder: str, split: str, settings: Any, trained: Sequence[str], size: Sequence[int]
) -> VolumeFiles:
    """The records of a split.

    Args:
      folder: DIR.
      split: the split's name; `train` or `test` if the set is not split.
      settings: `config.data`; `nifti` and `annotations` are used.
      trained: the classes of the split that the network was trained with; empty if there is none.
      size: (D, H, W) of the training split; empty if there is none.

    Raises:
      UserError: there is no such split, no volume has a mask, or one has none and that is refused,
        or nibabel is not installed.
    """
    root = Path(folder).expanduser()
    places = [
        (root / part / images, root / part / masks)
        for part in (split, ".")
        for images, masks in FOLDERS
    ]
    place = next((place for place in places if place[0].is_dir()), None)
    if place is None:
        raise UserError(
            f"nifti:{folder}: has neither {places[0][0]} nor {places[2][0]}", exit_code=1
        )
    images, masks = place
    names = files_in(images, SUFFIXES)
    lost = [name for name in names if not (masks / name).is_file()]
    if not names:
        raise UserError(f"{images}: holds no {' or '.join(SUFFIXES)} file", exit_code=1)
    if len(lost) == len(names):
        raise UserError(f"{images / lost[0]}: has no mask {masks / lost[0]}", exit_code=1)
    faults = Faults(str(images), settings.annotations)
    faults.add("volumes without a mask, left out", lost)
    names = [name for name in names if name not in set(lost)]
    everything = names
    if images.parent == root:
        names = _of_split(names, split, settings.nifti, root)
    classes, ignored = tuple(trained), -1
    if (root / "classes.json").is_file():
        classes, ignored = read_classes(root / "classes.json")
    elif (root / "dataset.json").is_file():
        classes = _decathlon(root / "dataset.json")
    elif not classes:
        classes = _numbered(masks, everything)
    paths = [images / name for name in names]
    of_masks = [masks / name for name in names]
    # By all volumes of a set that is not split, so that the size does not depend on the share.
    chosen = settings.nifti.size or tuple(size) or _largest(images, everything)
    return VolumeFiles(paths, of_masks, classes, ignored, chosen, faults.notes())


def _of_split(names: Sequence[str], split: str, settings: Any, root: Path) -> list[str]:
    if split not in ("train", "test"):
        raise UserError(
            f"nifti:{root}: is not split, so its splits are train and test; it has no {split!r}",
            exit_code=1,
        )
    test = held_out(names, settings.test_fraction, settings.seed)
    return [name for name, held in zip(names, test, strict=True) if held == (split == "test")]


def _largest(images: Path, names: Sequence[str]) -> tuple[int, ...]:
    shapes = np.array([read_header(images / name)[0][:3] for name in names])
    return tuple(int(side) for side in shapes.max(axis=0))


def _decathlon(path: Path) -> tuple[str, ...]:
    """The classes of a dataset.json: {"labels": {"0": "background", ...}}, or names to numbers."""
    try:
        labels = json.loads(path.read_text("utf-8"))["labels"]
        # nnU-Net writes the names first.
        numbers_first = all(str(key).isdigit() for key in labels)
        pairs = labels.items() if numbers_first else [(v, k) for k, v in labels.items()]
        names = {int(number): str(name) for number, name in pairs}
        return tuple(names[k] for k in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: its labels must name the classes from 0 on ({short(error)})", exit_code=1
        ) from error


def _numbered(masks: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Numbers as names: up to the largest index in all masks."""
    largest = 0
    for name in names:
        try:
            values = read_nifti(masks / name)
        except DamagedError:
            continue
        largest = max(largest, int(values[values != IGNORED].max(initial=0)))
    if largest >= IGNORED:
        raise UserError(
            f"{masks}: has the index {largest}; there can be {IGNORED} classes, 0 to {IGNORED - 1}",
            exit_code=1,
        )
    return tuple(str(k) for k in range(largest + 1))
