"""Masks and boxes of TensorFlow Datasets sets: small sets under the names of the public ones."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from jaxconv.config import default_config
from jaxconv.data.interface import describe
from jaxconv.data.sources import open_source
from jaxconv.data.tfds_targets import MASKS
from jaxconv.errors import UserError

LOCATION, MASK = ("label", "boxes"), ("segmentation",)

BUILDERS = """
import numpy as np
import tensorflow_datasets as tfds

LABEL = {"label": tfds.features.ClassLabel(names=["no", "yes"])}
PICTURE = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
ONE = tfds.features.Image(shape=(None, None, 1), encoding_format="png", use_colormap=True)
BOX = tfds.features.BBoxFeature()

def objects(crowd, names):
    of = {"bbox": BOX, "label": tfds.features.ClassLabel(names=names), crowd: np.bool_}
    return tfds.features.Sequence(of)

ANIMALS = ["cat", "dog", "cow"]
FEATURES = {
    "oxford_iiit_pet": {"image": PICTURE, **LABEL, "segmentation_mask": ONE, "head_bbox": BOX},
    "cityscapes": {"image_id": tfds.features.Text(), "image_left": PICTURE,
                   "segmentation_label": ONE},
    "caltech_birds2011": {"image": PICTURE, **LABEL, "bbox": BOX},
    "imagenet2012": {"image": PICTURE, **LABEL, "file_name": tfds.features.Text()},
    "coco": {"image": PICTURE, "image/filename": tfds.features.Text(),
             "objects": objects("is_crowd", ANIMALS)},
    "voc": {"image": PICTURE, "labels": tfds.features.Sequence(tfds.features.ClassLabel(
                names=ANIMALS)), "objects": objects("is_difficult", ANIMALS)},
}

def example(kind, i):
    image = np.full((8, 10 + i, 3), i, np.uint8)
    height, width = image.shape[:2]
    mask = np.zeros((height, width, 1), np.uint8)
    if kind == "oxford_iiit_pet":
        mask[:] = 2
        mask[2:6], mask[2] = 1, 3
        box = tfds.features.BBox(0.0, 0.0, 0.0, 0.0)
        return {"image": image, "label": i % 2, "segmentation_mask": mask, "head_bbox": box}
    if kind == "cityscapes":
        mask[0], mask[1], mask[2], mask[3] = 7, 33, 255, 34
        return {"image_id": f"city_{i}", "image_left": image, "segmentation_label": mask}
    if kind in ("coco", "voc"):
        crowd = "is_crowd" if kind == "coco" else "is_difficult"
        boxes = [(0.0, 0.0, 0.25, 0.25), (0.25, 0.5, 0.75, 1.0), (0.5, 0.5, 0.5, 0.9)]
        of = [{"bbox": tfds.features.BBox(*box), "label": n, crowd: n == 1}
              for n, box in enumerate(boxes)][: 3 * (i > 0)]
        found = {"image": image, "objects": of}
        return found | ({"image/filename": f"{i}.png"} if kind == "coco" else {"labels": [0]})
    if kind == "imagenet2012":
        return {"image": image, "label": i % 2, "file_name": f"n0{i % 2}_{i}.JPEG"}
    box = [tfds.features.BBox(0.25, 0.5, 0.75, 1.0), tfds.features.BBox(0.0, 0.0, 0.0, 0.0)][i % 2]
    return {"image": image, "label": i % 2, "bbox": box}

class Set(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    name = KIND
    def _info(self):
        keys = ("image", "label") if "label" in FEATURES[KIND] else None
        features = tfds.features.FeaturesDict(FEATURES[KIND])
        return self.dataset_info_from_configs(features=features, supervised_keys=keys)
    def _split_generators(self, manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(4):
            yield i, example(KIND, i)
"""
KINDS = ("oxford_iiit_pet", "cityscapes", "caltech_birds2011", "imagenet2012", "coco", "voc")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with small sets under the names of the public ones."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    root = tmp_path_factory.mktemp("tfds")
    script = "import sys; sys.path.insert(0, sys.argv[1])\n"
    for kind in KINDS:
        folder = root / "code" / f"my_{kind}"
        folder.mkdir(parents=True)
        (folder / f"my_{kind}_dataset_builder.py").write_text(f"KIND = {kind!r}\n" + BUILDERS)
        script += f"from my_{kind}.my_{kind}_dataset_builder import Set\n"
        script += "Set(data_dir=sys.argv[2], file_format='array_record').download_and_prepare()\n"
    process = subprocess.run(
        [sys.executable, "-c", script, str(root / "code"), str(root / "data")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return root / "data"


def opened(folder, name, needs, **changes):
    config = default_config().data
    config.source, config.tfds.data_dir = f"tfds:{name}", str(folder)
    config.image_size, config.max_boxes = 8, 2
    for key, value in changes.items():
        config[key] = value
    return open_source(config, "train", needs=needs)


def test_masks_of_pets(prepared):
    """1 to 3 become 0 to 2, cropped as the image; without the task, the set has labels."""
    source = opened(prepared, "oxford_iiit_pet", MASK)
    assert source.class_names == ("pet", "background", "border") and len(source) == 4
    for i in range(4):
        mask = source.read(i)["segmentation"]
        assert mask.shape == (8, 8) and mask[:, 0].tolist() == [1, 1, 2, 0, 0, 0, 1, 1]
    streamed = opened(prepared, "oxford_iiit_pet", MASK, resident_limit=0)
    np.testing.assert_array_equal(streamed.read(1)["segmentation"], source.read(1)["segmentation"])
    labels = opened(prepared, "oxford_iiit_pet", ())
    assert list(labels.targets) == ["label"] and labels.class_names == ("no", "yes")
    again = open_source(default_with(prepared, "oxford_iiit_pet"), "train", like=describe(source))
    assert again.checksum() == source.checksum()
    # Head boxes of the test split are zeros: no box.
    assert not opened(prepared, "oxford_iiit_pet", LOCATION).read(0)["boxes"].any()


def default_with(folder, name):
    config = default_config().data
    config.source, config.tfds.data_dir, config.image_size = f"tfds:{name}", str(folder), 8
    return config


def test_masks_of_cityscapes_are_the_nineteen_classes(prepared):
    """By labelIds; the other ids are ignored, such as 0 and those of no meaning."""
    source = opened(prepared, "cityscapes", MASK)
    assert len(source.class_names) == 19
    assert source.class_names[0] == "road" and source.class_names[18] == "bicycle"
    assert source.read(0)["segmentation"][:, 0].tolist() == [0, 18, 255, 255] + [255] * 4
    streamed = opened(prepared, "cityscapes", MASK, resident_limit=0)
    assert "(city_" in streamed.name(0)
    ids = [*MASKS["cityscapes"].classes]
    assert ids == sorted(ids) and len(ids) == 19


def test_boxes_are_pixels_of_the_crop(prepared):
    source = opened(prepared, "caltech_birds2011", LOCATION)
    for i in range(4):
        example = source.read(i)
        if example["label"]:
            assert not example["boxes"].any()  # as TFDS writes of none
            continue
        width = 10 + int(example["image"][0, 0, 0])
        left = (width - 8) // 2
        wanted = [2, np.clip(width / 2 - left, 0, 8), 6, 8]
        np.testing.assert_allclose(example["boxes"][0], wanted, atol=1e-4)
        assert not example["boxes"][1].any()


def test_boxes_of_imagenet_are_joined_by_file_name(prepared, tmp_path):
    from tests.data.test_annotations import xml

    (tmp_path / "n00_2.xml").write_text(xml(("n00", 0, 2, 3, 6, 9), height=8, width=12))
    source = opened(prepared, "imagenet2012", LOCATION, boxes=str(tmp_path), resident_limit=0)
    found = {source.name(i)[-10:-6]: source.read(i) for i in range(4)}
    boxes = next(one for one in found.values() if one["image"][0, 0, 0] == 2)["boxes"]
    np.testing.assert_allclose(boxes, [[2, 1, 6, 7], [0] * 4], atol=1e-4)
    assert sum(one["boxes"].any() for one in found.values()) == 1


@pytest.mark.parametrize(
    "name, needs, words",
    [
        ("imagenet2012", MASK, "imagenet2012: has no masks whose classes are known here"),
        ("imagenet2012", LOCATION, "no feature with a box for each image; set --config.data.boxes"),
        ("cityscapes", LOCATION, "has no feature '' to use as the input"),
    ],
)
def test_what_a_set_lacks(prepared, name, needs, words):
    with pytest.raises(UserError, match=words):
        opened(prepared, name, needs)


@pytest.mark.parametrize("name", ["coco", "voc"])
@pytest.mark.parametrize("limit", [0, 10**9])
def test_objects_are_detection_targets(prepared, name, limit):
    """The largest first, in pixels of the canvas; crowds and difficult ones; none at all."""
    needs = ("boxes", "classes", "valid", "crowd", "size", "seen")
    more = {"image_size": 0, "canvas": (16, 16), "max_boxes": 3, "resident_limit": limit}
    source = opened(prepared, name, needs, **more)
    assert source.class_names == ("cat", "dog", "cow") and "label" not in source.targets
    sizes = set()
    for i in range(4):
        example = source.read(i)
        width = int(example["size"][1])
        assert example["size"].tolist() == [8, width] and 10 <= width < 14
        sizes.add(width)
        high, wide = example["seen"].tolist()
        assert wide == 16 and high == 8 * 16 // width
        if width == 10:
            assert not example["valid"].any() and not example["boxes"].any()
            continue
        # The third has no area.
        assert example["valid"].tolist() == [True, True, False]
        assert example["classes"].tolist() == [1, 0, -1]
        assert example["crowd"].tolist() == [True, False, False]
        wanted = [high / 4, wide / 2, high * 3 / 4, wide]
        np.testing.assert_allclose(example["boxes"][0], wanted, atol=1e-4)
        np.testing.assert_allclose(example["boxes"][1], [0, 0, high / 4, wide / 4], atol=1e-4)
    assert len(sizes) == 4
    fewer = opened(prepared, name, needs, image_size=0, canvas=(16, 16), max_boxes=1)
    assert sum(fewer.read(i)["valid"].sum() for i in range(4)) == 3


def test_sets_without_objects_are_refused(prepared):
    with pytest.raises(UserError, match="no feature with boxes and classes of objects"):
        opened(prepared, "oxford_iiit_pet", ("boxes", "classes", "valid"))
