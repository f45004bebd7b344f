"""Sources from existing arrays: in Python, in .npz files, and in idx files of MNIST's family.

    FILE.npz   `<split>_images` and `<split>_labels`, or `x_<split>` and `y_<split>`; optionally
               `class_names`
    FOLDER     `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and `t10k-...` for the split
               test, or the same with .gz (format: LeCun, Cortes and Burges, "The MNIST database of
               handwritten digits")

Which axis is what, and the scale, is in data/layout.py; the labels in data/classes.py.
"""

import gzip
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv import moved
from jaxconv.data.classes import read_labels
from jaxconv.data.interface import Arrays
from jaxconv.data.layout import Reading, as_array, read_elements
from jaxconv.errors import UserError, nearest
from jaxconv.files import at_home

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_arrays(
    path: str, split: str, config: Any, like: Mapping[str, Any] | None = None
) -> Arrays:
    """Read one split of a .npz file, or of a folder of idx files, into memory.

    Args:
      path: of the file or the folder.
      split: the split's name.
      config: `config.data`; `arrays` is used.
      like: description of what the network was trained with, see `layout.Reading`.

    Raises:
      UserError: the file or the split does not exist or is damaged, or `from_arrays` refuses its
        arrays.
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
    what, form = f"arrays:{path}, split {split!r}", "--config.data.arrays.{}={}"
    source = _from_arrays(
        images, labels, names, Reading(what, **config.arrays, like=like, form=form)
    )
    shape = source.image_shape
    for key in ("image_size", "eval_image_size"):
        if config[key] and tuple(shape[:2]) != (config[key], config[key]):
            raise UserError(
                f"config.data.{key} is {config[key]}, and the arrays of {config.source} are "
                f"{' x '.join(map(str, shape))} and are not resized; leave it at 0"
            )
    return source


def from_arrays(
    images: Any,
    labels: Any,
    class_names: Sequence[str] = (),
    what: str = "the arrays",
    layout: str = "",
    scale: float = 0.0,
    first_label: int = 0,
) -> Arrays:
    """A source in memory.

    Args:
      images: [N, H, W] or [N, H, W, C] uint8, or floating-point numbers from 0 to 1; or signals
        [N, ..., C] of either. Lists, PyTorch tensors and lists of PIL images are converted.
      labels: [N] or [N, 1] integers from 0, or one-hot rows [N, K].
      class_names: one per class; by default the numbers.
      what: the name of the source in messages.
      layout: which axis is what, if the shape is ambiguous, see data/layout.py: `NCHW` for
        images as PyTorch has them, `NHW` for grey ones.
      scale: the value of white, which all numbers are divided by; 0 for 255 of uint8, and 1 of
        floating-point numbers.
      first_label: the label of the first class.

    Raises:
      UserError: the arrays do not match, are of a wrong type or shape, or can be read in several
        ways; the message has the setting that says which.
    """
    reading = Reading(what, layout, scale, first_label)
    return _from_arrays(images, labels, class_names, reading)


def _from_arrays(images: Any, labels: Any, class_names: Sequence[str], reading: Reading) -> Arrays:
    images = as_array(images, reading)
    if not images.size:
        raise reading.error("holds no examples")
    elements = read_elements(images, reading)
    labels, names = read_labels(labels, class_names, len(images), reading)
    return Arrays(elements.values, {"label": labels}, names, elements.kind, notes=elements.notes)


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


__getattr__ = moved.names_of(__name__)
