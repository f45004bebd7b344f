"""Pascal VOC's layout: `voc:DIR` (Everingham et al. 2010, doi:10.1007/s11263-009-0275-4).

    DIR/JPEGImages/NAME.jpg            DIR may also hold VOCdevkit/VOC2012 with these
    DIR/SegmentationClass/NAME.png     a palette: 0 background, 1 to 20, 255 ignored
    DIR/Annotations/NAME.xml           objects: name, difficult, bndbox
    DIR/ImageSets/Segmentation/<split>.txt, ImageSets/Main/<split>.txt     names, one a line
    DIR/classes.json                   other classes than VOC's 20: a list of names

The numbers of a box are pixels, counted from 1, of which xmax and ymax are inside. A difficult
object counts as a crowd: it is none to find.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from jaxconv.data.annotated import (
    OFFERED,
    AnnotatedFiles,
    Pictures,
    present,
    wanted_of,
)
from jaxconv.data.folder import read_content
from jaxconv.data.geometry import Size
from jaxconv.data.interface import DamagedError
from jaxconv.data.masks import read_classes, read_mask
from jaxconv.data.objects import Faults, Objects, mended
from jaxconv.data.pictures import size_or_zeros
from jaxconv.errors import UserError, short, some

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class Described(NamedTuple):
    """What an XML file says of an image.

    Attributes:
      size: height and width in pixels; zeros if it does not say.
      boxes: [n, 4] float32 as written: ymin, xmin, ymax, xmax.
      names: of the n objects' classes.
      difficult: [n] bool.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    names: list[str]
    difficult: np.ndarray


def read_xml(path: Path | str) -> Described:
    """The objects of an XML file of VOC or of ILSVRC.

    Raises:
      DamagedError: it cannot be read.
    """
    try:
        root = ElementTree.fromstring(read_content(path))
        size = root.find("size")
        height, width = (
            int(float(_text(size, side))) if size is not None else 0 for side in ("height", "width")
        )
        if max(height, width) >= 2**31 or min(height, width) < 0:
            raise ValueError(f"the size is {short(f'{width} x {height}')}")
        boxes, names, difficult = [], [], []
        for one in root.iter("object"):
            box = one.find("bndbox")
            boxes.append([float(_text(box, key)) for key in ("ymin", "xmin", "ymax", "xmax")])
            names.append(_text(one, "name"))
            hard = one.find("difficult")
            difficult.append(hard is not None and (hard.text or "").strip() == "1")
    except (ElementTree.ParseError, ValueError, LookupError, OverflowError) as error:
        raise DamagedError(f"cannot be read as annotations ({short(error)})") from error
    return Described(
        (height, width),
        np.array(boxes, np.float32).reshape(-1, 4),
        names,
        np.array(difficult, bool),
    )


def _text(element: Any, key: str) -> str:
    """The text of an element within another; raises ValueError."""
    inner = None if element is None else element.find(key)
    if inner is None or not (inner.text or "").strip():
        raise ValueError(f"there is no {key}")
    return inner.text.strip()


def open_voc(
    folder: str, split: str, settings: Any, needs: Sequence[str], size: Size | None
) -> AnnotatedFiles:
    """The records of a split.

    Args:
      folder: DIR.
      split: the split's name.
      settings: `config.data`; `annotations` and `max_boxes` are used.
      needs: the targets that the task needs; empty for masks.
      size: (height, width) of the masks in an example; None for those of the files.

    Raises:
      UserError: there is no such split, files are missing or damaged, or the annotations are faulty
        and that is refused.
    """
    root, wanted = find_root(folder), wanted_of(needs, OFFERED, ("segmentation",))
    names, listed = read_split(root, "Segmentation" if "segmentation" in wanted else "Main", split)
    faults = Faults(str(listed), settings.annotations)
    classes = CLASSES
    if (root / "classes.json").is_file():
        classes, _ = read_classes(root / "classes.json")
    files = [f"{name}.jpg" for name in names]
    there = present(root / "JPEGImages", files, faults)
    names, files = [names[i] for i in there], [files[i] for i in there]
    checksum = zlib.crc32(repr((names, classes)).encode())
    if "segmentation" not in wanted:
        sizes, objects = _read_all(root, names, classes, faults)
        pictures = Pictures(root / "JPEGImages", files, sizes)
        return AnnotatedFiles(
            pictures, mended(objects, sizes, faults), classes, wanted, settings.max_boxes, size,
            None, checksum, faults,
        )  # fmt: skip
    masks = [root / "SegmentationClass" / f"{name}.png" for name in names]
    lost = [i for i, path in enumerate(masks) if not path.is_file()]
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise UserError(
            f"{root / 'JPEGImages' / files[lost[0]]}: has no mask {masks[lost[0]]}{more}",
            exit_code=1,
        )
    sizes = np.array([size_or_zeros(root / "JPEGImages" / name) for name in files], np.int64)
    named = ("background", *classes)
    none = Objects(
        np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.int32),
        np.zeros(0, bool), [],
    )  # fmt: skip

    def mask(i: int) -> tuple[np.ndarray, str]:
        return read_mask(masks[i], len(named)), str(masks[i])

    return AnnotatedFiles(
        Pictures(root / "JPEGImages", files, sizes), none, named, wanted, settings.max_boxes, size,
        mask, checksum, faults,
    )  # fmt: skip


def find_root(folder: str) -> Path:
    """The folder with JPEGImages; raises UserError if there is none, or several."""
    given = Path(folder).expanduser()
    found = [
        root
        for root in (given, *sorted(given.glob("VOC*")), *sorted(given.glob("VOCdevkit/VOC*")))
        if (root / "JPEGImages").is_dir()
    ]
    if not found:
        raise UserError(
            f"voc:{folder}: has no folder JPEGImages, and neither has VOCdevkit/VOC2012 in it",
            exit_code=1,
        )
    if len(found) > 1 and found[0] != given:
        raise UserError(
            f"voc:{folder}: has {', '.join(str(root) for root in found)}; name one of them",
            exit_code=1,
        )
    return found[0]


def read_split(root: Path, kind: str, split: str) -> tuple[list[str], Path]:
    """The names of a split's images, and the file that lists them.

    Args:
      root: the folder with JPEGImages.
      kind: `Segmentation` or `Main`.
      split: the split's name.

    Raises:
      UserError: there is no such file, or it names no image or one twice.
    """
    path = root / "ImageSets" / kind / f"{split}.txt"
    if not path.is_file():
        has = sorted(other.stem for other in path.parent.glob("*.txt"))
        raise UserError(
            f"voc:{root}: has no {path.relative_to(root)}; there is {some(has) or 'none'}: set "
            "--config.data.train_split and --config.data.eval_split",
            exit_code=1,
        )
    try:
        # The files of a single class have 1 or -1 behind the name.
        names = [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({short(error)})", exit_code=1) from error
    twice = (
        [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if (len(set(names)) < len(names))
        else []
    )
    if not names or twice:
        raise UserError(f"{path}: names no image, or one twice: {some(twice)}", exit_code=1)
    return names, path


def _read_all(
    root: Path, names: Sequence[str], classes: Sequence[str], faults: Faults
) -> tuple[np.ndarray, Objects]:
    """Sizes [N, 2] of all images, and their objects."""
    order = {name: k for k, name in enumerate(classes)}
    image, boxes, found, crowd, named, sizes, unknown = [], [], [], [], [], [], []
    for i, name in enumerate(names):
        path = root / "Annotations" / f"{name}.xml"
        try:
            said = read_xml(path)
        except DamagedError as error:
            raise UserError(f"{path}: {error}", exit_code=1) from error
        file = root / "JPEGImages" / f"{name}.jpg"
        sizes.append(said.size if all(said.size) else size_or_zeros(file))
        for n, one in enumerate(said.names):
            if one not in order:
                unknown.append(f"{one} in {path.name}")
                continue
            image.append(i)
            # Counted from 1, and the last pixel is inside.
            boxes.append(said.boxes[n] - np.array([1, 1, 0, 0], np.float32))
            found.append(order[one])
            crowd.append(said.difficult[n])
            named.append(f"{one} in {path.name}")
    faults.add("objects of an unknown class, left out", unknown)
    objects = Objects(
        np.array(image, np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(found, np.int32),
        np.array(crowd, bool),
        named,
    )
    return np.array(sizes, np.int64), objects
