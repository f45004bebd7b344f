"""Masks and boxes of TensorFlow Datasets sets: which features hold them, and what they mean.

oxford_iiit_pet   segmentation_mask 1 to 3: pet, background, border
cityscapes        segmentation_label: labelIds, as the 19 classes that are evaluated (trainIds);
                  all others are ignored
caltech_birds2011 and others with a BBoxFeature: one box, relative to the image
coco, voc and others with a sequence of objects, each with a BBoxFeature and a label: detection;
                  is_crowd, is_difficult or is_group_of makes an object a crowd
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxconv.data.annotated import padded
from jaxconv.data.interface import DamagedError
from jaxconv.data.masks import IGNORED, check_size, read_indices
from jaxconv.data.objects import areas
from jaxconv.data.pictures import upright_size
from jaxconv.errors import UserError, some


class MaskedSet(NamedTuple):
    """How a set holds masks.

    Attributes:
      image, mask: names of the features.
      class_names: one name per class.
      classes: {stored index: class}.
      others: what other stored indices are; None if there must be none.
    """

    image: str
    mask: str
    class_names: tuple[str, ...]
    classes: Mapping[int, int]
    others: int | None = None


# github.com/mcordts/cityscapesScripts, helpers/labels.py: labelId by class, in the order of
# trainIds.
_CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip

MASKS = {
    "oxford_iiit_pet": MaskedSet(
        "image", "segmentation_mask", ("pet", "background", "border"), {1: 0, 2: 1, 3: 2}
    ),
    "cityscapes": MaskedSet(
        "image_left",
        "segmentation_label",
        tuple(_CITYSCAPES),
        {number: k for k, number in enumerate(_CITYSCAPES.values())},
        IGNORED,
    ),
}


def masked_set(name: str, features: Mapping[str, Any]) -> MaskedSet:
    """How a set holds masks; raises UserError if that is not known, or it has none."""
    found = MASKS.get(name)
    if found is None:
        raise UserError(
            f"tfds:{name}: has no masks whose classes are known here; those of {some([*MASKS])} "
            "are. Read it by a source of your own, FILE.py:NAME, or write its masks for masks:DIR",
            exit_code=1,
        )
    for feature in (found.image, found.mask):
        if feature not in features:
            raise UserError(
                f"tfds:{name}: is prepared without the feature {feature!r}; it has "
                f"{', '.join(features)}: prepare another config or version",
                exit_code=1,
            )
    return found


def read_stored_mask(content: bytes, image: bytes, how: MaskedSet, name: str) -> np.ndarray:
    """The classes [H, W] uint8 of a stored mask, 255 for the ignored ones.

    Args:
      content, image: of the mask's and the image's files.
      how: the set holds masks.
      name: of the example.

    Raises:
      DamagedError: one of them cannot be read.
      UserError: they differ in size, or an index is none of the set's.
    """
    indices = read_indices(content, f"{name}, {how.mask}")
    check_size(indices, image, f"{name}: its {how.mask}", how.image)
    table = np.full(256, -1 if how.others is None else how.others, np.int16)
    table[list(how.classes)] = [*how.classes.values()]
    mask = table[indices]
    if mask.min() < 0:
        raise UserError(
            f"{name}: its {how.mask} has the index "
            f"{some([str(k) for k in np.unique(indices[mask < 0])])}; it must be one of "
            f"{', '.join(map(str, how.classes))}",
            exit_code=1,
        )
    return mask.astype(np.uint8)


def box_feature(name: str, features: Mapping[str, Any]) -> str:
    """The name of the feature with one box; raises UserError unless there is exactly one."""
    import tensorflow_datasets as tfds

    found = [key for key, each in features.items() if isinstance(each, tfds.features.BBoxFeature)]
    if len(found) != 1:
        raise UserError(
            f"tfds:{name}: has {some(found) or 'no feature'} with a box for each image; set "
            "--config.data.boxes=DIR, the folder of ILSVRC's XML files for imagenet2012",
            exit_code=1,
        )
    return found[0]


class ObjectFeature(NamedTuple):
    """How a set holds objects: names of the sequence, and of the features within, with "" for no
    `crowd`; and one name per class."""

    objects: str
    box: str
    label: str
    crowd: str
    class_names: tuple[str, ...]


# What makes an object a crowd, or too difficult to count.
_CROWDS = ("is_crowd", "is_difficult", "is_group_of")


def object_feature(name: str, features: Mapping[str, Any]) -> ObjectFeature:
    """How a set holds objects with boxes and labels; raises UserError unless there is one way."""
    import tensorflow_datasets as tfds

    found = []
    for key, each in features.items():
        inner = getattr(each, "feature", None)
        if not isinstance(inner, tfds.features.FeaturesDict):
            continue
        boxes = [k for k, one in inner.items() if isinstance(one, tfds.features.BBoxFeature)]
        labels = [k for k, one in inner.items() if hasattr(one, "num_classes")]
        label = "label" if "label" in labels else next(iter(labels), "")
        if len(boxes) == 1 and label:
            crowd = next((k for k in _CROWDS if k in inner), "")
            kind: Any = inner[label]
            names = tuple(kind.names or map(str, range(kind.num_classes)))
            found.append(ObjectFeature(key, boxes[0], label, crowd, names))
    if len(found) != 1:
        raise UserError(
            f"tfds:{name}: has {some([one.objects for one in found]) or 'no feature'} with boxes "
            f"and classes of objects, and detection needs one; it has {', '.join(features)}",
            exit_code=1,
        )
    return found[0]


def stored_objects(
    record: Mapping[str, Any], how: ObjectFeature, image: bytes, most: int
) -> dict[str, np.ndarray]:
    """The targets of detection of a record, see annotated.py: the largest objects come first.

    Boxes are clipped to the image; objects whose box has no area are left out.

    Args:
      record: of the set.
      how: the set holds objects.
      image: content of the image's file.
      most: M.

    Raises:
      DamagedError: the image cannot be read, or the numbers of a box are not finite.
    """
    stored = record[how.objects]
    relative = np.asarray(stored[how.box], np.float32).reshape(-1, 4)
    if not np.isfinite(relative).all():
        raise DamagedError("has a box whose numbers are not finite")
    boxes = np.clip(relative, 0, 1) * np.array(upright_size(image) * 2, np.float32)
    classes = np.asarray(stored[how.label], np.int32)
    crowd = np.asarray(stored[how.crowd], bool) if how.crowd else np.zeros(len(boxes), bool)
    good = (boxes[:, :2] < boxes[:, 2:]).all(axis=1) & (classes >= 0)
    order = np.argsort(-areas(boxes), kind="stable")
    order = order[good[order]]
    return {
        "boxes": padded(boxes[order], most),
        "classes": padded(classes[order], most, -1),
        "valid": np.arange(most) < len(order),
        "crowd": padded(crowd[order], most),
    }


def stored_box(box: Any, image: bytes, most: int) -> np.ndarray:
    """A relative box (top, left, bottom, right) in pixels of its image: [most, 4] float32.

    It is clipped to the image. Of one without area, as TFDS writes for none, nothing is left.

    Raises:
      DamagedError: the image cannot be read, or the numbers are not finite.
    """
    relative = np.asarray(box, np.float32)
    if not np.isfinite(relative).all():
        raise DamagedError(f"has the box {relative.tolist()}")
    sides = np.array(upright_size(image) * 2, np.float32)
    inside = np.clip(relative, 0, 1) * sides
    good = inside[0] < inside[2] and inside[1] < inside[3]
    return padded(inside[None] if good else np.zeros((0, 4), np.float32), most)
