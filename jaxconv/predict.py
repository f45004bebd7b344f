"""Predictions for files, with a run's network or an exported one.

Files are decoded, resized and cropped by the same code as in evaluation; what has a place in an
image, such as a box, is given in the pixels of the file. A run's network with an output for each
pixel sees the whole image, of any shape; an exported one only the crop.

    image    .jpg, .png, .webp ...
    signal   .wav, .npy; of a network of clips, folders of frames (see data/folder.py)
    text     .txt: one text per line

A folder stands for all such files below it, sorted by path, by the rules of training (see
data/listing.py); `-` for one file on standard input.
"""

import dataclasses
import io
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxconv import lazy, moved
from jaxconv.data.canvas import eval_part
from jaxconv.data.decode import upright_size
from jaxconv.data.folder import clip_folders, read_clip, read_content
from jaxconv.data.geometry import crop, inverse
from jaxconv.data.interface import DamagedError
from jaxconv.data.listing import list_files, suffixes_of
from jaxconv.data.loading import Reader
from jaxconv.data.signals import to_unit
from jaxconv.data.sources import open_given
from jaxconv.errors import UserError
from jaxconv.evaluation.whole import open_whole
from jaxconv.train.other_data import Overrides
from jaxconv.weights.as_run import as_run
from jaxconv.weights.export import Predictor, load_run

log = logging.getLogger(__name__)

# The kinds of files that a network of each kind takes.
_FILES = {"image": ("image",), "signal": ("sound", "volume"), "text": ("text",)}

# The most elements in a batch.
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Item:
    """Something to predict.

    Attributes:
      file: its name, as given or found.
      content: its content, a path that is read when it is needed, or an element as the network
        takes it.
      line: of a text, from 1; otherwise 0.
      frames: how many are read of a clip, whose content is its folder; otherwise 0.
    """

    file: str
    content: Path | bytes | np.ndarray = dataclasses.field(repr=False)
    line: int = 0
    frames: int = 0

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}" if self.line else self.file


class GivenRecords:
    """Items as records: the label is the item's position."""

    has_labels = True

    def __init__(self, items: Sequence[Item]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[bytes | tuple[bytes, ...] | np.ndarray, int]:
        content, frames = self.items[i].content, self.items[i].frames
        if isinstance(content, Path) and frames and content.is_dir():
            return read_clip(content, frames), i
        content = read_content(content) if isinstance(content, Path) else content
        if not len(content):
            raise DamagedError("is empty")
        return content, i

    def labels_of_all(self) -> np.ndarray:
        """The positions [N] int32."""
        return np.arange(len(self), dtype=np.int32)

    def name(self, i: int) -> str:
        """The file, and the line of a text."""
        return str(self.items[i])

    def checksum(self) -> int:
        """Always 0: no checksum is needed."""
        return 0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for an item.

    Attributes:
      item: the item.
      lines: the prediction for people, see `Task.describe`.
      said: the prediction for JSON.
      served: the values that the task serves for it, by name, in the pixels of its file.
    """

    item: Item
    lines: tuple[str, ...]
    said: dict[str, Any]
    served: dict[str, np.ndarray] = dataclasses.field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The most probable classes first, as named in the run."""
        return tuple(one["class"] for one in self.said["top"])

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The probabilities of `classes`."""
        return tuple(one["probability"] for one in self.said["top"])

    def rows(self) -> str:
        """The item and its prediction, as lines for people."""
        return "\n".join([str(self.item), *self.lines])

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `file`, `line` of a text, and the task's answer, such as `top`."""
        line = {"line": self.item.line} if self.item.line else {}
        return {"file": self.item.file, **line, **self.said}


def find_items(names: Sequence[str], kind: str, frames: int = 0) -> list[Item]:
    """The items to predict, in the order of `names`: files, folders, or `-` for standard input.

    With `frames`, of clips, each folder of images is one item. What is left out of a folder is
    logged.

    Raises:
      UserError: a folder holds no file of this kind.
      OSError: a subfolder cannot be listed.
    """
    items: list[Item] = []
    for name in names:
        if name == "-":
            items += _items_of(Item("-", sys.stdin.buffer.read()), kind)
            continue
        for file in _files_below(name, kind, frames) if os.path.isdir(name) else [name]:
            items += _items_of(Item(file, Path(file), frames=frames), kind)
    return items


def _files_below(folder: str, kind: str, frames: int) -> list[str]:
    kinds = ("image",) if frames else _FILES[kind]
    suffixes = tuple(suffix for files in kinds for suffix in suffixes_of(files))
    listed = list_files(folder, suffixes)
    for note in listed.notes(folder):
        log.warning("%s", note)
    if not listed.names:
        raise UserError(
            f"{folder}: has no {', '.join(suffixes)} file; the network takes {kind}s from such "
            "files",
            exit_code=1,
        )
    names = clip_folders(listed.names) if frames else listed.names
    return [os.path.join(folder, name) if name else folder for name in names]


def _items_of(item: Item, kind: str) -> list[Item]:
    """The item itself, or the lines of a text; an empty file stays, and is reported when read."""
    content = item.content
    try:
        content = read_content(content) if kind == "text" and isinstance(content, Path) else content
    except DamagedError:
        return [item]
    if kind != "text" or not isinstance(content, bytes):
        return [item]
    lines = [(number, line.rstrip(b"\r")) for number, line in enumerate(content.split(b"\n"), 1)]
    return [Item(item.file, line, number) for number, line in lines if line.strip()] or [
        Item(item.file, b"")
    ]


def predict_items(network: Predictor, items: Sequence[Item], top: int = 5) -> Iterator[Prediction]:
    """Predict each readable item, in order; log a warning for each unreadable one.

    Args:
      network: see `weights.export`.
      items: see `find_items`.
      top: the most classes to give.

    Raises:
      UserError: the decoder is not installed.
    """
    records = GivenRecords(items)
    for number, served, size in _served(network, records):
        own = _in_file(network, records, number, served, size)
        lines, said = network.describe(own, top)
        yield Prediction(items[number], tuple(lines), said, own)


def _served(
    network: Predictor, records: GivenRecords
) -> Iterator[tuple[int, dict[str, np.ndarray], tuple[int, ...]]]:
    """For each readable record its number, what is served, and the size that the network saw."""
    reading = network.description["reading"]
    if network.step:
        scale = math.floor(reading["image_size"] / reading["crop_ratio"])
        channels = network.input_shape[-1]
        whole = open_whole(records, reading, channels, scale, network.step)
        for example in Reader(whole, damaged_share=1.0).examples():
            served = network.serve(example["image"][None])
            of_one = {name: values[0] for name, values in served.items()}
            yield int(example["label"]), of_one, example["image"].shape[:2]
        return
    source = open_given(records, reading, network.kind, network.input_shape)
    # All batches have one size, the last one padded, so that the network is compiled once.
    for batch in Reader(source, damaged_share=1.0).eval_batches(min(_BATCH, len(records))):
        served = network.serve(batch["image"])
        for row in np.flatnonzero(batch["mask"]):
            of_one = {name: values[row] for name, values in served.items()}
            yield int(batch["label"][row]), of_one, network.input_shape[:2]


def _in_file(
    network: Predictor,
    records: GivenRecords,
    number: int,
    served: dict[str, np.ndarray],
    size: tuple[int, ...],
) -> dict[str, np.ndarray]:
    """What is served of an image, in the pixels of its file."""
    content, _ = records[number]
    if not network.task.served_moves or network.kind != "image" or not isinstance(content, bytes):
        return served
    of_file, seen = upright_size(content), (size[0], size[1])
    box, reading = (0, 0, *of_file), {"canvas": (), **network.description["reading"]}
    if not network.step:
        box, fitted = eval_part(*of_file, reading, reading["image_size"])
        seen = fitted if reading["canvas"] else seen
    return network.task.in_file(served, inverse(crop(box, seen)), of_file)


def predict(
    workdir: str | os.PathLike[str] | None = None,
    images: Any = None,
    checkpoint: str = "latest",
    top: int = 5,
    overrides: Overrides = (),
    *,
    model: str = "",
    pretrained: str | bool | os.PathLike[str] = "",
) -> list[Prediction]:
    """Predict files or arrays with the network of a run, or with published weights;
    `jaxconv.predict` is this function.

    Args:
      workdir: of the run; None with `model`.
      images: a path, or several: files, or folders of files. Or arrays: images [N, H, W, C],
        [N, H, W] or one of them, uint8, which are resized and cropped like files; signals as the
        network takes them; for a network of texts, a string or several.
      checkpoint: `latest`, `best`, or a step.
      top: the most classes to give.
      overrides: `KEY=VALUE` each or values by key, on how files are read, see train/other_data.py.
      model, pretrained: instead of a run, a classifier and its weights, as `create_model` takes
        them.

    Returns:
      One for each array or text, in order; one for each file that can be read, with its name.

    Raises:
      UserError: there is no such run or file, or an array cannot be read as an image of the run.
    """
    if images is None:
        raise UserError("predict() needs images: a path, or an array")
    if (workdir is None) != bool(model) or bool(model) != bool(pretrained):
        raise UserError("predict() needs a workdir, or model= and pretrained=")
    if workdir is None and checkpoint != "latest":
        raise UserError(f"checkpoint={checkpoint}: is of a run, not of published weights")
    if workdir is None:
        with as_run(model, pretrained, overrides) as run:
            network = load_run(run.workdir)
    else:
        network = load_run(workdir, checkpoint, overrides)
    items, named = _given(images, network)
    found = list(predict_items(network, items, top)) if items else []
    if len(found) < len(items) and not named:
        raise UserError("not every array could be read; the log says which", exit_code=1)
    return found


def _given(images: Any, network: Predictor) -> tuple[list[Item], bool]:
    """The items to predict, and whether they are files."""
    each: list[Any] = [*images] if isinstance(images, (list, tuple)) else [images]
    if network.kind == "text" and all(isinstance(one, str) for one in each):
        return [Item(f"text {n}", one.encode()) for n, one in enumerate(each)], False
    if all(isinstance(one, (str, os.PathLike)) for one in each):
        return find_items([os.fspath(one) for one in each], network.kind, network.frames), True
    if network.kind == "text":
        raise UserError("the network takes texts: give strings, or paths of .txt files")
    elements = [element for one in each for element in _elements(np.asarray(one), network)]
    return [
        Item(f"{network.kind} {n}", _content(element, network))
        for n, element in enumerate(elements)
    ], False


def _elements(array: np.ndarray, network: Predictor) -> list[np.ndarray]:
    """The images or signals in an array of one or several."""
    shape = network.input_shape
    if network.kind == "image":
        one = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4, shape[-1]))
        several = array.ndim in (3, 4)
    else:
        one = array.shape in (shape, shape[:-1])
        several = array.shape[1:] in (shape, shape[:-1])
    if not (one or several):
        raise UserError(
            f"the array is {list(array.shape)}; the network takes {network.kind}s "
            f"{['N', *shape]}".replace("'", "")
        )
    return [array] if one else [*array]


def _content(element: np.ndarray, network: Predictor) -> np.ndarray | bytes:
    """An element as the network takes it, or as a file that is read like those of the run."""
    if network.kind == "signal":
        element = to_unit(element)
        return element if element.shape == network.input_shape else element[..., None]
    if element.dtype != np.uint8:
        raise UserError(f"the image is {element.dtype}; give uint8, from 0 to 255")
    channels = element.shape[2:]
    if channels not in ((), (1,), (3,), (4,)) or channels == network.input_shape[2:] == (4,):
        return element  # no file holds it, so it must be of the network's size
    file = io.BytesIO()
    Image.fromarray(element[..., 0] if channels == (1,) else element).save(file, "png")
    return file.getvalue()


# `jaxconv.predict` is this module, which can be called like its function.
lazy.make_callable(__name__, f"{__name__}:predict")
__getattr__ = moved.names_of(__name__)
