"""COCO's annotations: `coco:DIR`, instances or panoptic (cocodataset.org, format-data).

    DIR/annotations/instances_<split>.json   and the other names in `FILES`
    DIR/<split>/NAME.jpg                     and the other folders in `FOLDERS`

Instances become masks with the class of each pixel, 0 for the background; pixels of objects of two
classes are ignored, and those of a crowd count as its class. A panoptic file has PNG files beside
it, in a folder of its name, whose colour is the number of a segment; every category is a class, and
pixels of no segment are ignored. Boxes and classes need instances.

Objects' own masks, for Mask R-CNN, are those of their segmentations; objects without one are left
out. Keypoints are those of a file such as annotations/person_keypoints_<split>.json: the categories
name them, and `left_x` and `right_x` change places where an image is mirrored.

Polygons and run lengths become masks by pycocotools, the reference (the extra `coco`).
"""

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from jaxconv.data.objects import Faults, Objects, mended
from jaxconv.data.pictures import upright_size
from jaxconv.data.shapes import checked_shape, merged, panoptic_masks, panoptic_segments, rasterized
from jaxconv.errors import UserError, short, some

# Where the annotations of a split may be, and then its images; the first that is there is taken.
FILES = (
    "annotations/instances_{split}.json",
    "{split}/instances.json",
    "{split}/annotations.json",
    "{split}/_annotations.coco.json",
    "annotations/{split}.json",
    "{split}.json",
    "annotations/panoptic_{split}.json",
    "{split}/panoptic.json",
    "{split}/boxes.json",
)
# Looked at first where keypoints are asked for.
_OF_KEYPOINTS = ("annotations/person_keypoints_{split}.json",)
FOLDERS = ("{split}/images", "{split}", "images/{split}", "images", ".")
# What content of another form raises; a number may be too large, and brackets too many.
_OTHER_FORMS = (
    DamagedError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip
# Classes that a mask of 8 bits can tell apart, with the ignored index.
_MOST = 255


@dataclasses.dataclass(frozen=True)
class Annotations:
    """A file of annotations, checked.

    Attributes:
      path: of the file.
      pictures: the images.
      class_names: of the categories, in the order of their ids.
      objects: of the images; none in a panoptic file.
      segments: of a panoptic file, by image: the name of its PNG, and {number: class}.
      checksum: of the file.
      keypoints: the names of the objects' keypoints.
    """

    path: Path
    pictures: Pictures
    class_names: tuple[str, ...]
    objects: Objects
    segments: Sequence[tuple[str, Mapping[int, int]]] | None
    checksum: int
    keypoints: tuple[str, ...] = ()


def open_coco(
    folder: str, split: str, settings: Any, needs: Sequence[str], size: Size | None
) -> AnnotatedFiles:
    """The records of a split.

    Args:
      folder: DIR.
      split: the split's name.
      settings: `config.data`; `coco`, `annotations` and `max_boxes` are used.
      needs: the targets that the task needs; empty for masks or, without any, label and boxes.
      size: (height, width) of the masks in an example; None for those of the files.

    Raises:
      UserError: there is no such split, the annotations cannot be read, or are faulty and that is
        refused, or pycocotools is not installed.
    """
    root = Path(folder).expanduser()
    path = find(root, split, settings.coco.file, "keypoints" in needs)
    faults = Faults(str(path), settings.annotations)
    with_shapes = not needs or "segmentation" in needs or "masks" in needs
    found = read(path, root, split, settings.coco.images, faults, with_shapes)
    shapes = found.segments is not None or any(s is not None for s in found.objects.segments)
    offered = OFFERED if found.segments is None else OFFERED[:1]
    if not shapes:
        offered = tuple(name for name in OFFERED if name not in ("segmentation", "masks"))
    if not found.keypoints:
        offered = tuple(name for name in offered if name != "keypoints")
    wanted = wanted_of(needs, offered, ("segmentation",) if shapes else ("label", "boxes"))
    if needs and not wanted:
        raise UserError(
            f"{path}: has {'no shapes of its objects' if not shapes else 'panoptic segments'}, and "
            f"the task needs {', '.join(needs)}; name another file in {root} with "
            "--config.data.coco.file",
            exit_code=1,
        )
    names, mask, objects = found.class_names, None, found.objects
    if "segmentation" in wanted:
        names, mask = _masks(found, faults)
    else:
        if "masks" in wanted:
            objects = _with_shapes(objects, faults)
        objects = mended(objects, found.pictures.sizes, faults)
    return AnnotatedFiles(
        found.pictures, objects, names, wanted, settings.max_boxes, size, mask, found.checksum,
        faults, moves=_moves(found.keypoints),
    )  # fmt: skip


def _moves(names: Sequence[str]) -> str:
    """The kind of keypoints of these names: which are left and right of another."""
    places = {name: n for n, name in enumerate(names)}
    pairs = [
        f"{n}-{places[other]}"
        for name, n in places.items()
        if name.startswith("left") and (other := f"right{name.removeprefix('left')}") in places
    ]
    return "keypoints:" + ",".join(pairs) if pairs else "keypoints"


def _with_shapes(objects: Objects, faults: Faults) -> Objects:
    """The objects with a segmentation that can become a mask."""
    none = [i for i, shape in enumerate(objects.segments) if shape is None]
    faults.add("objects without a usable segmentation, left out", [objects.names[i] for i in none])
    # Whether pycocotools is there is asked before training, not while examples are read.
    rasterized([np.zeros(6)], 1, 1)
    return objects.take(np.setdiff1d(np.arange(len(objects.names)), none))


def find(root: Path, split: str, named: str, keypoints: bool = False) -> Path:
    """The file of annotations of a split.

    Args:
      root: DIR.
      split: the split's name.
      named: `config.data.coco.file`; empty to look for those of `FILES`.
      keypoints: whether to look for a file of keypoints first.

    Raises:
      UserError: there is none.
    """
    usual = (*(_OF_KEYPOINTS if keypoints else ()), *FILES)
    tried = [name.replace("{split}", split) for name in ([named] if named else usual)]
    for name in tried:
        if (root / name).is_file():
            return root / name
    if not root.is_dir():
        raise UserError(f"coco:{root}: folder not found", exit_code=1)
    has = sorted(str(p.relative_to(root)) for p in (*root.glob("*.json"), *root.glob("*/*.json")))
    raise UserError(
        f"coco:{root}: has no annotations of the split {split!r}: none of {', '.join(tried)}; "
        f"there is {some(has) or 'no .json file'}: set --config.data.train_split, "
        "--config.data.eval_split, or --config.data.coco.file, such as {split}/labels.json",
        exit_code=1,
    )


def read(
    path: Path, root: Path, split: str, images: str, faults: Faults, with_shapes: bool = True
) -> Annotations:
    """Read a file of annotations, and find its images.

    Args:
      path: of the file.
      root, split: of the set.
      images: `config.data.coco.images`, the folder of the images; empty to look for it.
      faults: what is wrong is added.
      with_shapes: whether to keep the objects' segmentations.

    Raises:
      UserError: it is no such file, or has no images.
    """
    with _understood(path, "must have images, annotations and categories, as COCO's"):
        content = read_content(path)
        found = json.loads(content)
        categories = {int(one["id"]): str(one["name"]) for one in found["categories"]}
        points = _keypoint_names(found["categories"])
        entries = _unique(found["images"], "images with the id of another, left out", faults)
        why = "annotations with the id of another, left out"
        annotations = _unique(found["annotations"], why, faults)
        files = [str(one["file_name"]) for one in entries]
        numbers = {int(one["id"]): n for n, one in enumerate(entries)}
    order = {category: k for k, category in enumerate(sorted(categories))}
    class_names = tuple(categories[category] for category in order)
    if not class_names or len(set(class_names)) < len(class_names):
        raise UserError(
            f"{path}: has no categories, or two of one name: {some(class_names)}", exit_code=1
        )
    if not files:
        raise UserError(f"{path}: has no images", exit_code=1)
    folder = _folder(root, split, images, path, files[0])
    there = present(folder, files, faults)
    sizes = np.array([_size(entries[i], folder / files[i], path) for i in there], np.int64)
    pictures = Pictures(folder, [files[i] for i in there], sizes)
    place = {int(i): n for n, i in enumerate(there)}
    # The number of each image that is there, by its id; None of those that are not.
    by_id = {number: place.get(n) for number, n in numbers.items()}
    segments, panoptic = None, bool(annotations) and "segments_info" in annotations[0]
    if panoptic:
        with _understood(path, "must have image_id, file_name and segments_info of each image"):
            segments = panoptic_segments(annotations, by_id, order, len(there), faults)
    of_images = [] if panoptic else annotations
    with _understood(
        path,
        "must have image_id, category_id and bbox of each annotation, four "
        "numbers: left, top, width, height",
    ):
        objects = _objects(of_images, by_id, order, sizes, faults, with_shapes, len(points))
    checksum = zlib.crc32(content)
    return Annotations(path, pictures, class_names, objects, segments, checksum, points)


def _keypoint_names(categories: Sequence[Any]) -> tuple[str, ...]:
    """The names of the keypoints of the category with the most; empty if there are none."""
    named = [tuple(str(name) for name in one.get("keypoints") or ()) for one in categories]
    return max(named, key=len, default=())


def _keypoints(found: Any, count: int, name: str, faults: Faults) -> np.ndarray:
    """[count, 3] y, x and visibility of [x, y, v, x, y, v ...]; zeros of what is not there."""
    points, numbers = np.zeros((count, 3), np.float32), np.asarray(found or [], np.float32)
    if numbers.size % 3 or numbers.size > points.size or not np.isfinite(numbers).all():
        faults.add("keypoints that are not three numbers each, left out", [name])
        return points
    own = numbers.reshape(-1, 3)[:, [1, 0, 2]]
    points[: len(own)] = np.where(own[:, 2:] > 0, own, 0)
    return points


def numbers_of(
    folder: str, split: str, settings: Any, keypoints: bool = False
) -> tuple[dict[str, int], dict[str, int]]:
    """The numbers that the annotations of a split have: of images by path, of classes by name.

    Args:
      folder, split, settings: as for `open_coco`, which has read the same file.
      keypoints: whether it was asked for these.
    """
    root = Path(folder).expanduser()
    path = find(root, split, settings.coco.file, keypoints)
    found = json.loads(read_content(path))
    names = [str(one["file_name"]) for one in found["images"]]
    place = _folder(root, split, settings.coco.images, path, names[0])
    images: dict[str, int] = {}
    for name, one in zip(names, found["images"], strict=True):
        images.setdefault(os.path.join(place, name), int(one["id"]))
    return images, {str(one["name"]): int(one["id"]) for one in found["categories"]}


@contextlib.contextmanager
def _understood(path: Path, form: str) -> Iterator[None]:
    """Turn the errors of content that has another form into a UserError."""
    try:
        yield
    except UserError:
        raise
    except _OTHER_FORMS as error:
        raise UserError(
            f"{path}: {form} ({type(error).__name__}: {short(error)})", exit_code=1
        ) from error


def _folder(root: Path, split: str, images: str, path: Path, first: str) -> Path:
    """The folder of the images."""
    tried = [root / name.replace("{split}", split) for name in ([images] if images else FOLDERS)]
    tried += [] if images else [path.parent]
    found = next((folder for folder in tried if os.path.isfile(folder / first)), None)
    # Without the first image, a folder that has any is the best guess; `present` says what lacks.
    found = found or next((folder for folder in tried if folder.is_dir()), None)
    if found is None:
        raise UserError(
            f"{path}: its images are in none of {', '.join(str(folder) for folder in tried)}; set "
            "--config.data.coco.images",
            exit_code=1,
        )
    return found


def _size(entry: Mapping[str, Any], file: Path, path: Path) -> tuple[int, int]:
    """Height and width of an image, as stated or else from its file."""
    try:
        if "height" not in entry or "width" not in entry:
            return upright_size(read_content(file))
        height, width = int(entry["height"]), int(entry["width"])
        if not 0 < min(height, width) <= max(height, width) < 2**31:
            raise ValueError(f"{width} x {height}")
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path}: the size of {short(file.name)} is no number of pixels ({short(error)})",
            exit_code=1,
        ) from error
    except DamagedError as error:
        raise UserError(f"{file}: {error}", exit_code=1) from error
    return height, width


def _unique(entries: Sequence[Any], why: str, faults: Faults) -> list[Any]:
    """Entries without those whose id another has; an entry without an id has none."""
    seen: set[Any] = set()
    kept, twice = [], []
    for entry in entries:
        number = entry.get("id")
        if number is not None and number in seen:
            twice.append(f"id {number}")
            continue
        seen.add(number)
        kept.append(entry)
    faults.add(why, twice)
    return kept


def _objects(
    annotations: Sequence[Mapping[str, Any]],
    by_id: Mapping[int, int | None],
    order: Mapping[int, int],
    sizes: np.ndarray,
    faults: Faults,
    with_shapes: bool,
    keypoints: int = 0,
) -> Objects:
    """The annotations of those images that are there, and of known categories."""
    kept, nowhere, unknown = [], [], []
    for n, one in enumerate(annotations):
        name = f"annotation {one.get('id', n)}"
        if int(one["image_id"]) not in by_id:
            nowhere.append(name)
        elif int(one["category_id"]) not in order:
            unknown.append(f"{name} of category {one['category_id']}")
        elif by_id[int(one["image_id"])] is not None:
            kept.append((name, one))
    # [left, top, width, height]; shapes may stand without a box.
    boxes = np.array([one.get("bbox") or [0, 0, 0, 0] for _, one in kept], np.float32)
    boxes = boxes.reshape(len(kept), 4)
    objects = Objects(
        np.array([by_id[int(one["image_id"])] for _, one in kept], np.int64),
        np.stack(
            [boxes[:, 1], boxes[:, 0], boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]],
            axis=1,
        ),
        np.array([order[int(one["category_id"])] for _, one in kept], np.int32),
        np.array([bool(one.get("iscrowd", 0)) for _, one in kept], bool),
        [name for name, _ in kept],
    )
    faults.add("annotations of an image that is not listed, left out", nowhere)
    faults.add("annotations of an unknown category, left out", unknown)
    if with_shapes:
        shapes = [
            checked_shape(one.get("segmentation"), *sizes[i])
            for (_, one), i in zip(kept, objects.image, strict=True)
        ]
        objects = dataclasses.replace(objects, segments=shapes)
    if keypoints:
        points = [_keypoints(one.get("keypoints"), keypoints, name, faults) for name, one in kept]
        found = np.array(points, np.float32).reshape(-1, keypoints, 3)
        objects = dataclasses.replace(objects, keypoints=found)
    around = boxes[:, 2] * boxes[:, 3]
    inside = np.array([one.get("area", np.nan) for _, one in kept], np.float32)
    filled = np.where((inside > 0) & (around > 0), inside / np.maximum(around, 1e-9), 1)
    return dataclasses.replace(objects, filled=np.minimum(filled, 1).astype(np.float32))


def _masks(found: Annotations, faults: Faults) -> tuple[tuple[str, ...], Any]:
    """The names of the classes of masks, and the function that makes the mask of an image."""
    panoptic = found.segments is not None
    names = found.class_names if panoptic else ("background", *found.class_names)
    if len(names) > _MOST:
        raise UserError(
            f"{found.path}: has {len(found.class_names):,} categories; a mask of 8 bits has at "
            f"most {_MOST} classes",
            exit_code=1,
        )
    if found.segments is not None:
        return names, panoptic_masks(found.path, found.segments)
    objects = _with_shapes(found.objects, faults).in_order()

    def mask(i: int) -> tuple[np.ndarray, str]:
        of = objects.of(i)
        height, width = (int(side) for side in found.pictures.sizes[i])
        classes = objects.classes[of].tolist()
        return merged(objects.segments[of], classes, height, width), str(found.path)

    return names, mask
