"""Image folders: PATH/<split>/<class>/*.{jpg,jpeg,png}, or PATH/<class>/*.{jpg,jpeg,png}, which is split here by a seeded draw.

Everything that could stop a training is looked for before it begins: unreadable and empty files, folders without a class, splits with
different classes, images of different sizes. `data.skip_unreadable=True` leaves unreadable files out instead, and says which.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.interface import Source, generator
from jaxconv.errors import UserError, nearest

SUFFIXES = (".jpg", ".jpeg", ".png")

log = logging.getLogger(__name__)


def read_split(path: str, split: str, config: Any, channels: int = 0) -> Source:
    """Read one split of the folder into memory.

    Args:
      path: the folder.
      split: the split's name; `train` or `test` where the folder is one unsplit tree.
      config: `config.data`: `skip_unreadable`, `image_size` and `folder` are used.
      channels: 1 for grey, 3 for colour, 0 for grey if every file of the split is grey.

    Raises:
      UserError: whatever the module's docstring names, with the path and what to do.
    """
    classes, files, labels = list_split(path, split, config.folder.test_fraction, config.folder.seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = list(pool.map(lambda file: _try_to_read(file, config.image_size, channels), files, chunksize=256))
    broken = [(file, result) for file, result in zip(files, read, strict=True) if isinstance(result, str)]
    if broken and not config.skip_unreadable:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(
            f"{broken[0][0]}: {broken[0][1]}{more}; mend or remove it, or leave such files out by --config.data.skip_unreadable=True",
            exit_code=1,
        )
    if len(broken) == len(files):
        raise UserError(f"{path}: none of the {len(files)} images of split {split!r} can be read; the first: {broken[0][1]}", exit_code=1)
    if broken:
        log.warning("%s: left out %d unreadable of %d images of split %r:", path, len(broken), len(files), split)
        for file, why in broken:
            log.warning("  %s: %s", file, why)
    for label, name in enumerate(classes):
        if broken and not any(found == label and not isinstance(image, str) for image, found in zip(read, labels, strict=True)):
            raise UserError(
                f"{path}: no image of class {name!r} in split {split!r} can be read; mend some, or remove the folder", exit_code=1
            )
    good = [(file, image, label) for file, image, label in zip(files, read, labels, strict=True) if not isinstance(image, str)]
    images = _same_channels([image for _, image, _ in good])
    _check_sizes([file for file, _, _ in good], images)
    return Source(np.stack(images), np.array([label for _, _, label in good], np.int32), classes)


def list_split(path: str, split: str, test_fraction: float, seed: int) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Class names, files and labels of one split; classes and files are sorted by name.

    An unsplit tree is drawn apart class by class: a share `test_fraction` of each, rounded, goes to `test`.

    Raises:
      UserError: the folder, the split or its classes are not there, or differ between splits.
    """
    root = Path(os.path.expanduser(path))
    if not path or not root.is_dir():
        raise UserError(f"folder:{path}: there is no such folder; give --config.data.source=folder:PATH", exit_code=1)
    top = _subfolders(root)
    if not top:
        raise UserError(f"{root}: has no folders; it must hold <split>/<class>/ or <class>/ with {_suffixes()} files", exit_code=1)
    splits = [folder for folder in top if _subfolders(folder)]
    if not splits:
        classes, files, labels = _list_classes(root)
        return (classes, *_draw_apart(root, files, labels, split, test_fraction, seed))
    for folder in top:
        if folder not in splits:
            raise UserError(
                f"{folder}: has no class folders, where {splits[0]} has; give every split a folder for each class, or move it away",
                exit_code=1,
            )
    names = [folder.name for folder in splits]
    if split not in names:
        raise UserError(
            f"{root}: has no split {split!r}{nearest(split, names)}; it has {', '.join(names)}: "
            "set --config.data.train_split and --config.data.eval_split",
            exit_code=1,
        )
    listed = {folder.name: _list_classes(folder) for folder in splits}
    for name, (classes, _, _) in listed.items():
        if classes != listed[split][0]:
            differing = sorted(set(classes) ^ set(listed[split][0]))
            raise UserError(
                f"{root}: splits {split!r} and {name!r} have different classes; only one has {', '.join(differing[:5])}"
                f"{' ...' if len(differing) > 5 else ''}: give both the same class folders",
                exit_code=1,
            )
    return listed[split]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _suffixes() -> str:
    return ", ".join(SUFFIXES)


def _list_classes(folder: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    files, labels = [], []
    classes = _subfolders(folder)
    for label, class_folder in enumerate(classes):
        with os.scandir(class_folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."))
        if not names:
            raise UserError(f"{class_folder}: has no {_suffixes()} file; put images of the class there, or remove the folder", exit_code=1)
        files += [class_folder / name for name in names]
        labels += [label] * len(names)
    if len(classes) < 2:
        raise UserError(f"{folder}: has one class folder, {classes[0].name!r}; a network needs at least two classes", exit_code=1)
    return tuple(folder.name for folder in classes), files, labels


def _draw_apart(
    root: Path, files: Sequence[Path], labels: Sequence[int], split: str, test_fraction: float, seed: int
) -> tuple[list[Path], list[int]]:
    if split not in ("train", "test"):
        raise UserError(f"{root}: is one unsplit tree, drawn apart into train and test; it has no split {split!r}", exit_code=1)
    if not 0 < test_fraction < 1:
        raise UserError(f"data.folder.test_fraction is {test_fraction}; it must lie between 0 and 1")
    in_test = np.zeros(len(files), bool)
    for label in range(max(labels) + 1):
        members = np.flatnonzero(np.equal(labels, label))
        # The draw depends on the class's name and size alone, so that a class added later leaves the others as they were.
        name = files[members[0]].parent.name
        order = generator(seed, name).permutation(len(members))
        in_test[members[order[: round(test_fraction * len(members))]]] = True
    chosen = np.flatnonzero(in_test == (split == "test"))
    if not len(chosen):
        raise UserError(
            f"{root}: a share of {test_fraction} of each class leaves the split {split!r} empty; change --config.data.folder.test_fraction",
            exit_code=1,
        )
    return [files[i] for i in chosen], [labels[i] for i in chosen]


def _try_to_read(file: Path, image_size: int, channels: int) -> np.ndarray | str:
    """The image, or why it cannot be read."""
    from PIL import Image

    try:
        if file.stat().st_size == 0:
            return "the file is empty"
        return read_image(file, image_size, channels)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        return f"cannot be read as an image ({' '.join(str(error).split()) or type(error).__name__})"


def read_image(file: Path | str, image_size: int = 0, channels: int = 0) -> np.ndarray:
    """Decode one image file to [H, W, C] uint8, turned as its EXIF data says.

    Args:
      file: a file that Pillow reads.
      image_size: the shorter side is resized to this and the middle square kept; 0 leaves the image as it is.
      channels: 1 for grey, 3 for colour, 0 for what the file has.

    Raises:
      OSError: it is no image, or a damaged one.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("its pixels are floating point numbers; save it with 8 or 16 bits")
        if image.mode.startswith("I"):  # 16 bits, of which Pillow would cut off all but white
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        grey = channels == 1 or (channels == 0 and image.mode in ("1", "L", "LA"))
        image = image.convert("L" if grey else "RGB")
        if image_size:
            image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _same_channels(images: list[np.ndarray]) -> list[np.ndarray]:
    """Grey images among coloured ones get their channel three times."""
    most = max(image.shape[-1] for image in images)
    return [image if image.shape[-1] == most else np.repeat(image, most, axis=-1) for image in images]


def _check_sizes(files: Sequence[Path], images: Sequence[np.ndarray]) -> None:
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            (h, w), (first_h, first_w) = image.shape[:2], images[0].shape[:2]
            raise UserError(
                f"{file}: is {w}x{h} pixels, where {files[0]} is {first_w}x{first_h}; give one size to all by --config.data.image_size=N",
                exit_code=1,
            )
