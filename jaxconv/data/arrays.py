"""Sources from existing arrays: .npz files, idx files of MNIST's family, and Python sequences.

    FILE.npz   `<split>_images` and `<split>_labels`, or `x_<split>` and `y_<split>`; optionally
               `class_names`
    FOLDER     `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and `t10k-...` for the split
               test, or the same with .gz (format: LeCun, Cortes and Burges, "The MNIST database of
               handwritten digits")

uint8 arrays [N, H, W] or [N, H, W, C] are images; everything else is a signal, with the channels on
the last axis.
"""

import contextlib
import gzip
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.interface import Arrays, DamagedError, Element
from jaxconv.data.stored import StoredSource
from jaxconv.errors import UserError, nearest
from jaxconv.files import at_home

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_arrays(path: str, split: str) -> Arrays:
    """Read one split of a .npz file, or of a folder of idx files, into memory.

    Raises:
      UserError: the file or the split does not exist or is damaged, or its arrays do not match.
    """
    place = at_home(path, "config.data.source")
    if place.is_dir():
        prefix = _IDX_PREFIX.get(split, split)
        images, labels = (
            read_idx(_find_idx(place, f"{prefix}-{what}", split))
            for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        names: tuple[str, ...] = ()
    else:
        images, labels, names = _read_npz(place, split)
    return from_arrays(images, labels, names, what=f"arrays:{path}")


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] = (),
    what: str = "the arrays",
) -> Arrays:
    """A source in memory.

    Args:
      images: [N, H, W] or [N, H, W, C] uint8, or a signal [N, ..., C] of uint8 or floating-point
        numbers.
      labels: [N] integers from 0.
      class_names: one per class; by default the numbers.
      what: the name of the source in messages.

    Raises:
      UserError: the arrays do not match, or have a wrong type or shape.
    """
    if images.dtype == np.uint8 and images.ndim == 3:
        images = images[..., None]
    if images.ndim < 3 or (
        images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating)
    ):
        raise UserError(
            f"{what}: the examples are {images.dtype} {images.shape}; they must be uint8 or "
            "float32 [N, ..., C]",
            exit_code=1,
        )
    if not len(labels):
        raise UserError(f"{what}: holds no examples", exit_code=1)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if (
        labels.ndim != 1
        or not np.issubdtype(labels.dtype, np.integer)
        or len(labels) != len(images)
    ):
        raise UserError(
            f"{what}: the labels are {labels.dtype} {labels.shape}; they must be integers "
            f"[{len(images)}], one per example",
            exit_code=1,
        )
    names = tuple(map(str, class_names)) or tuple(map(str, range(max(2, int(labels.max()) + 1))))
    if labels.min() < 0 or labels.max() >= len(names):
        raise UserError(
            f"{what}: the labels go from {labels.min()} to {labels.max()}, but there are "
            f"{len(names)} classes",
            exit_code=1,
        )
    kind = "image" if images.dtype == np.uint8 and images.ndim == 4 else "signal"
    images = images if images.dtype == np.uint8 else images.astype(np.float32)
    return Arrays(images, labels.astype(np.int32), names, kind)


def _read_npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    try:
        with open(path, "rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is not a .npz file")
            for images, labels in (
                (f"{split}_images", f"{split}_labels"),
                (f"x_{split}", f"y_{split}"),
            ):
                if images in file and labels in file:
                    names = tuple(map(str, file["class_names"])) if "class_names" in file else ()
                    return file[images], file[labels], names
            found = ", ".join(sorted(file))
    except FileNotFoundError as error:
        raise UserError(
            f"arrays:{path}: file not found; set --config.data.source=arrays:FILE.npz",
            exit_code=1,
        ) from error
    except (
        OSError,
        ValueError,
        EOFError,
        AttributeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"arrays:{path}: cannot be read ({' '.join(str(error).split())})", exit_code=1
        ) from error
    raise UserError(
        f"arrays:{path}: has no split {split!r}{nearest(f'{split}_images', found.split(', '))}; it "
        f"needs {split}_images and {split}_labels "
        f"(or x_{split} and y_{split}), and has {found}: set --config.data.train_split and "
        "--config.data.eval_split",
        exit_code=1,
    )


def _find_idx(folder: Path, name: str, split: str) -> Path:
    # Some copies have a dot in place of a hyphen.
    for other in (name, name.replace("-idx", ".idx")):
        for path in (folder / other, folder / f"{other}.gz"):
            if path.is_file():
                return path
    raise UserError(
        f"arrays:{folder}: has no file {name} (or {name}.gz), which the split {split!r} needs",
        exit_code=1,
    )


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file, gzipped or not; raises UserError if it is damaged."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, rank = content[:2], content[2], content[3]
        if zeros != b"\0\0" or kind not in _IDX_TYPES:
            raise ValueError("it does not have the header of an idx file")
        shape = np.frombuffer(content, ">i4", rank, offset=4)
        values = np.frombuffer(content, _IDX_TYPES[kind], offset=4 + 4 * rank)
        return values.reshape(shape).astype(values.dtype.newbyteorder("="))
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read as an idx file ({error}); download it again", exit_code=1
        ) from error


class Items:
    """Records of a Python sequence of (element, label) or {"image": element, "label": label}."""

    has_labels = False

    def __init__(self, sequence: Sequence[Any]):
        self._sequence = sequence

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        item = self._sequence[i]
        element, label = (item["image"], item["label"]) if isinstance(item, dict) else item
        return np.asarray(element), int(label)

    def labels_of_all(self) -> np.ndarray:
        """The labels [N] int32; reads every item."""
        return np.array([self[i][1] for i in range(len(self))], np.int32)

    def name(self, i: int) -> str:
        """`item i`."""
        return f"item {i}"

    def checksum(self) -> int:
        """CRC-32 of the first item, the last item and the length."""
        return zlib.crc32(repr([*map(self._end, (0, len(self) - 1)), len(self)]).encode())

    def _end(self, i: int) -> tuple[int, int]:
        """CRC-32 and label of an item; two zeros for a damaged item, which has no checksum."""
        try:
            element, label = self[i]
        except DamagedError:
            return 0, 0
        return zlib.crc32(np.ascontiguousarray(element)), label


def _first_good(records: "Items") -> np.ndarray:
    """The first readable element."""
    for i in range(len(records)):
        with contextlib.suppress(DamagedError):
            return records[i][0]
    raise UserError(f"none of the sequence's {len(records)} items can be read", exit_code=1)


def from_sequence(sequence: Sequence[Any], class_names: Sequence[str]) -> StoredSource:
    """A source of any Python sequence; several threads read items at once, as batches need them.

    Args:
      sequence: `len` and `[i]`; an item is (element, label) or {"image": element, "label": label}.
        Elements are arrays of one shape: [H, W, C] uint8 images, or signals of uint8 or float32. An
        item that raises `jaxconv.data.DamagedError` is replaced by the next one.
      class_names: one name per class.

    Raises:
      UserError: the sequence is empty, none of its items can be read, or the first readable element
        is not of these types and shapes.
    """
    if not len(sequence):
        raise UserError("the sequence is empty")
    records = Items(sequence)
    first = _first_good(records)
    images = first.dtype == np.uint8 and first.ndim == 3
    if first.ndim < 2 or (first.dtype != np.uint8 and first.dtype != np.float32):
        raise UserError(
            f"the sequence's first element is {first.dtype} {first.shape}; it must be uint8 or "
            "float32 [..., C]"
        )

    def as_it_is(element: np.ndarray, key: tuple[int, int]) -> np.ndarray:
        return element

    return StoredSource(
        records,
        as_it_is,
        tuple(class_names),
        Element(first.shape, "image" if images else "signal", str(first.dtype)),
    )
