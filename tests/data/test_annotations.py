"""COCO's and VOC's annotations, and ILSVRC's boxes: read, mended, and made into targets."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxconv.config import default_config
from jaxconv.data.interface import Target, describe
from jaxconv.data.objects import Faults, Objects, mended, of_bits
from jaxconv.data.shapes import checked_shape, merged, rasterized
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from tests.conftest import assert_one_line_error, command

LOCATION = ("label", "boxes")
DETECTION = ("boxes", "classes", "valid", "crowd")
HEIGHT, WIDTH = 20, 30


def data(source, **changes):
    config = default_config().data
    config.source = source
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        if inner:
            config[part][inner] = value
        else:
            config[part] = value
    return config


def runs_of(mask):
    """Uncompressed run lengths, column by column, of a mask: written down from COCO's format."""
    flat, counts, value = mask.T.ravel(), [], False
    place = 0
    while place < len(flat):
        end = place
        while end < len(flat) and flat[end] == value:
            end += 1
        counts.append(end - place)
        place, value = end, not value
    return {"size": [*mask.shape], "counts": counts}


def box_mask(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def thing(number, image, category, box, **more):
    top, left, bottom, right = box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": runs_of(box_mask(*box)),
        "iscrowd": 0,
        **more,
    }


def square(top, left, bottom, right):
    return [left, top, right, top, right, bottom, left, bottom]


THINGS = [
    thing(1, 7, 5, (2, 3, 8, 10)),  # a dog
    thing(2, 7, 2, (4, 6, 18, 25)),  # a larger cat, over it
    thing(3, 7, 2, (0, 0, 20, 30), iscrowd=1, segmentation=runs_of(box_mask(18, 0, 20, 30))),
    thing(4, 9, 5, (1, 1, 5, 9), segmentation=[square(1, 1, 5, 9)]),
]


def write_coco(root, things=THINGS, split="train", file="annotations/instances_{split}.json"):
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    images = [(7, "a.png"), (9, "b.png"), (4, "none.png")]
    for number, name in images:
        pixels = np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(folder / name)
    path = root / file.format(split=split)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "images": [
            {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for number, name in images
        ],
        # Categories are numbered with gaps, and not in order.
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": things,
    }
    path.write_text(json.dumps(found))
    return path


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_run_lengths_are_those_of_the_format(seed):
    random = np.random.default_rng(seed)
    mask = random.random((7, 5)) < random.random()
    shape = checked_shape(runs_of(mask), 7, 5)
    np.testing.assert_array_equal(rasterized(shape, 7, 5), mask)


def test_shapes_are_pycocotools_and_damaged_ones_are_none():
    from pycocotools import mask as tools

    polygon = [3.2, 1.1, 20.5, 4.0, 12.0, 17.3]
    run = tools.merge(tools.frPyObjects([polygon], HEIGHT, WIDTH))
    wanted = tools.decode(run).astype(bool)
    assert 50 < wanted.sum() < 200
    compressed = {"size": [HEIGHT, WIDTH], "counts": run["counts"].decode()}
    for shape in ([polygon], [polygon, [1, 2, 3, 4]], compressed):
        found = rasterized(checked_shape(shape, HEIGHT, WIDTH), HEIGHT, WIDTH)
        np.testing.assert_array_equal(found, wanted)
    short = {"size": [HEIGHT, WIDTH], "counts": [5, 5]}
    turned = {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}
    bad = (
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, float("nan")]],
        None,
        "x",
        short,
        turned,
        {},
        [["a"] * 6],
        {"size": [HEIGHT, WIDTH], "counts": ["a"]},
    )
    assert [checked_shape(one, HEIGHT, WIDTH) for one in bad] == [None] * len(bad)


def test_pixels_of_two_classes_are_ignored():
    shapes = [runs_of(box_mask(*box)) for box in ((0, 0, 4, 4), (2, 2, 6, 6), (3, 3, 5, 5))]
    checked = [checked_shape(shape, HEIGHT, WIDTH) for shape in shapes]
    found = merged(checked, [0, 1, 1], HEIGHT, WIDTH)
    assert found[0, 0] == 1 and found[5, 5] == 2 and found[10, 10] == 0
    assert set(found[2:4, 2:4].ravel()) == {255} and found[4, 4] == 2


def test_instances_become_masks(tmp_path):
    """Streamed and in memory alike, moved with their images; the background is a class."""
    pytest.importorskip("pycocotools")
    write_coco(tmp_path)
    source = open_source(data(f"coco:{tmp_path}"), "train")
    assert source.class_names == ("background", "cat", "dog") and len(source) == 3
    mask = source.read(0)["segmentation"]
    assert mask[3, 4] == 2 and mask[10, 20] == 1 and mask[5, 7] == 255 and mask[19, 0] == 1
    assert source.read(2)["segmentation"].max() == 0
    # pycocotools' polygons contain the pixels whose middle is inside.
    np.testing.assert_array_equal(source.read(1)["segmentation"], 2 * box_mask(1, 1, 5, 9))
    streamed = open_source(data(f"coco:{tmp_path}", resident_limit=0), "train")
    np.testing.assert_array_equal(streamed.read(0)["segmentation"], mask)
    half = open_source(data(f"coco:{tmp_path}", image_size=10), "train").read(0)
    np.testing.assert_array_equal(half["segmentation"], mask[1::2, 6:25:2])


def test_location_is_the_largest_object_and_its_class(tmp_path):
    write_coco(tmp_path)
    source = open_source(data(f"coco:{tmp_path}", max_boxes=3), "train", needs=LOCATION)
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0, 1]
    # The crowd is larger, but no object; the image without objects is left out.
    assert source.read(0)["boxes"].tolist() == [[4, 6, 18, 25], [0] * 4, [0] * 4]
    assert "images without an object, left out: 1" in " ".join(source.notes)
    half = open_source(data(f"coco:{tmp_path}", image_size=10), "train", needs=LOCATION)
    assert half.read(0)["boxes"][0].tolist() == [2, 0.5, 9, 10]
    again = open_source(data(f"coco:{tmp_path}", max_boxes=3), "train", like=describe(source))
    assert dict(again.targets) == dict(source.targets)
    assert again.checksum() == source.checksum()


def test_all_objects_with_their_crowds(tmp_path):
    write_coco(tmp_path)
    config = data(f"coco:{tmp_path}", max_boxes=2, resident_limit=0)
    source = open_source(config, "train", needs=DETECTION)
    first, second, third = (source.read(i) for i in range(3))
    assert first["boxes"].tolist() == [[0, 0, 20, 30], [4, 6, 18, 25]]
    assert first["crowd"].tolist() == [True, False] and first["classes"].tolist() == [0, 0]
    assert second["classes"].tolist() == [1, -1] and second["valid"].tolist() == [True, False]
    assert not third["valid"].any()
    assert "more than 2, left out: 1; --config.data.max_boxes=3" in " ".join(source.notes)
    for name, target in source.targets.items():
        assert first[name].shape == target.shape and first[name].dtype == target.dtype


FAULTY = [
    *THINGS,
    thing(1, 7, 2, (0, 0, 5, 5)),
    thing(10, 7, 2, (2, 2, 12, 12), bbox=[-8, 2, 20, 10]),
    thing(11, 7, 2, (2, 2, 12, 12), bbox=[100, 2, 20, 10]),
    thing(12, 7, 2, (2, 2, 12, 12), bbox=[9, 2, -5, 10]),
    thing(13, 7, 2, (2, 2, 12, 12), bbox=[9, 2, 0, 10]),
    thing(14, 7, 2, (2, 2, 12, 12), bbox=[9, 2, float("nan"), 10]),
    thing(15, 7, 77, (2, 2, 12, 12)),
    thing(16, 1234, 2, (2, 2, 12, 12)),
]
FAULTS = {
    "annotations with the id of another, left out: 1, such as id 1",
    "annotations of an unknown category, left out: 1, such as annotation 15 of category 77",
    "annotations of an image that is not listed, left out: 1, such as annotation 16",
    "boxes partly outside of their image, clipped: 1, such as annotation 10",
    "boxes outside of their image, left out: 1, such as annotation 11",
    "boxes that end before they begin, left out: 1, such as annotation 12",
    "boxes without area, left out: 1, such as annotation 13",
    "boxes whose numbers are not finite, left out: 1, such as annotation 14",
    "images that are not there, left out: 1, such as",
}


def test_faults_are_counted_kept_or_refused(tmp_path):
    write_coco(tmp_path, FAULTY)
    (tmp_path / "train" / "none.png").unlink()
    config = data(f"coco:{tmp_path}", max_boxes=8)
    source = open_source(config, "train", needs=DETECTION)
    notes = "\n".join(source.notes)
    assert all(fault in notes for fault in FAULTS), notes
    boxes = source.read(0)["boxes"]
    assert boxes[:4].tolist() == [[0, 0, 20, 30], [4, 6, 18, 25], [2, 0, 12, 12], [2, 3, 8, 10]]
    assert source.read(0)["valid"].sum() == 4
    kept = open_source(data(f"coco:{tmp_path}", annotations="keep"), "train", needs=DETECTION)
    assert kept.read(0)["valid"].sum() == 7 and "kept: 1" in " ".join(kept.notes)
    with pytest.raises(
        UserError, match=r"id 1: annotations with the id of another.*annotations=mend"
    ):
        open_source(data(f"coco:{tmp_path}", annotations="refuse"), "train", needs=DETECTION)
    with pytest.raises(UserError, match="'mended'.*did you mean 'mend'"):
        Faults("here", "mended")


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(-200, 320)] * 4), min_size=1, max_size=6))
def test_mended_boxes_are_inside_and_have_an_area(rows):
    count, faults = len(rows), Faults("here", "mend")
    none = np.zeros(count, np.int64)
    boxes = np.array(rows, np.float32) / 4
    objects = Objects(none, boxes, none.astype(np.int32), none > 0, ["x"] * count)
    found = mended(objects, np.array([[40, 60]]), faults).boxes
    assert (found[:, :2] >= 0).all() and (found[:, 2:] <= [40, 60]).all()
    assert (found[:, :2] < found[:, 2:]).all()
    good = (boxes[:, :2] < boxes[:, 2:]).all(1) & (boxes[:, :2] < [40, 60]).all(1)
    good &= (boxes[:, 2:] > 0).all(1)
    assert len(found) == good.sum()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda one: one.pop("categories"), "must have images, annotations and categories"),
        (lambda one: one.update(images=[]), "has no images"),
        (lambda one: one["annotations"][0].pop("image_id"), "must have image_id, category_id"),
        (
            lambda one: one["annotations"][0].update(bbox=[1, 2, 3]),
            "must have image_id, category_id",
        ),
        (lambda one: one.update(annotations=["x"]), "must have images, annotations and"),
        (lambda one: one.update(annotations={"a": 1}), "must have images, annotations and"),
        (
            lambda one: one.update(annotations=[{"segments_info": 3, "image_id": 7}]),
            "must have image_id, file_name and segments_info",
        ),
        (lambda one: one["images"][0].update(width=31), "a.png: is 30x20 pixels, but .* 31x20"),
        (lambda one: one["categories"].append({"id": 9, "name": "cat"}), "two of one name"),
        (lambda one: one["images"][0].update(height="tall"), "the size of a.png is no number"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, change, words):
    path = write_coco(tmp_path)
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=words):
        open_source(data(f"coco:{tmp_path}"), "train", needs=DETECTION)


def test_shapes_need_the_extra_and_boxes_do_not(tmp_path, monkeypatch):
    write_coco(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert len(open_source(data(f"coco:{tmp_path}"), "train", needs=LOCATION)) == 2
    with pytest.raises(UserError, match=r"pip install 'jaxconv\[coco\]'"):
        open_source(data(f"coco:{tmp_path}"), "train")


def test_where_annotations_and_images_are(tmp_path):
    write_coco(tmp_path / "one", file="{split}/_annotations.coco.json")
    assert len(open_source(data(f"coco:{tmp_path}/one"), "train", needs=DETECTION)) == 3
    with pytest.raises(UserError, match=r"split 'val'.*there is train/_annotations.coco.json"):
        open_source(data(f"coco:{tmp_path}/one"), "val")
    write_coco(tmp_path / "two", file="odd/{split}_x.json")
    config = data(f"coco:{tmp_path}/two", coco__file="odd/{split}_x.json")
    assert len(open_source(config, "train", needs=DETECTION)) == 3
    config = data(f"coco:{tmp_path}/two", coco__file="odd/{split}_x.json", coco__images="odd")
    with pytest.raises(UserError, match="none of its 3 images is in"):
        open_source(config, "train", needs=DETECTION)
    with pytest.raises(UserError, match="folder not found"):
        open_source(data(f"coco:{tmp_path}/none"), "train")
    without = [{key: one[key] for key in one if key != "segmentation"} for one in THINGS]
    write_coco(tmp_path / "boxes", without)
    assert "boxes" in open_source(data(f"coco:{tmp_path}/boxes"), "train").targets
    with pytest.raises(UserError, match="no shapes of its objects.*config.data.coco.file"):
        open_source(data(f"coco:{tmp_path}/boxes"), "train", needs=("segmentation",))


def test_panoptic_segments_become_masks(tmp_path):
    write_coco(tmp_path)
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[5:10], colours[10:] = (1, 2, 0), (0, 0, 1)
    folder = tmp_path / "annotations" / "panoptic_train"
    folder.mkdir()
    Image.fromarray(colours).save(folder / "a.png")
    segments = [{"id": 513, "category_id": 5}, {"id": 65536, "category_id": 2}]
    found = {
        "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 5, "name": "grass"}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": segments}],
    }
    path = tmp_path / "annotations" / "panoptic_train.json"
    path.write_text(json.dumps(found))
    config = data(f"coco:{tmp_path}", coco__file="annotations/panoptic_{split}.json")
    source = open_source(config, "train")
    assert source.class_names == ("cat", "grass")
    assert source.read(0)["segmentation"][:, 0].tolist() == [255] * 5 + [1] * 5 + [0] * 10
    with pytest.raises(UserError, match="panoptic segments, and the task needs label, boxes"):
        open_source(config, "train", needs=LOCATION)
    (folder / "a.png").unlink()
    with pytest.raises(UserError, match="its mask a.png is in none of"):
        open_source(config, "train")


def test_photographs_of_coco(coco256):
    """Counts of the archive's README; masks are those of its PNG files, made by others."""
    config = data(f"coco:{coco256}", resident_limit=0, coco__file="{split}/boxes.json")
    found = open_source(config, "val2017", needs=DETECTION)
    assert len(found) == 128 and len(found.class_names) == 80
    config = data(f"coco:{coco256}", resident_limit=0)
    source = open_source(config, "val2017", needs=("segmentation",))
    names = json.loads((coco256 / "semantic_classes.json").read_text())["classes"]
    right = total = 0
    for i in range(0, 100, 9):
        payload, targets = source.records[i]
        name = source.name(i).rpartition("/")[2].replace(".jpg", ".png")
        theirs = np.asarray(Image.open(coco256 / "val2017" / "semantic" / name))
        ours = targets["segmentation"]
        for k in np.unique(ours[(ours > 0) & (ours < 255)]).tolist():
            same = theirs == names.index(source.class_names[k])
            right += (same & (ours == k)).sum()
            total += (ours == k).sum()
    assert total > 100_000 and right / total > 0.97


XML = """<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = """<object><name>{0}</name><difficult>{1}</difficult><bndbox><xmin>{3}</xmin>
<ymin>{2}</ymin><xmax>{5}</xmax><ymax>{4}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>
</part></object>"""


def xml(*objects, height=HEIGHT, width=WIDTH):
    return XML.format(
        height=height, width=width, objects="".join(OBJECT.format(*one) for one in objects)
    )


def write_voc(root):
    folder = root / "VOCdevkit" / "VOC2012"
    for inner in ("JPEGImages", "SegmentationClass", "Annotations"):
        (folder / inner).mkdir(parents=True)
    for kind in ("Segmentation", "Main"):
        (folder / "ImageSets" / kind).mkdir(parents=True)
        (folder / "ImageSets" / kind / "train.txt").write_text("2007_1\n2007_2\n")
    for name in ("2007_1", "2007_2"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[5:], mask[15:] = 20, 255
        image = Image.fromarray(mask)
        image.putpalette([k % 256 for k in range(768)])
        assert image.mode == "P"
        image.save(folder / "SegmentationClass" / f"{name}.png")
    objects = [("dog", 0, 3, 5, 10, 20), ("cat", 1, 1, 1, 20, 30), ("unicorn", 0, 1, 1, 5, 5)]
    (folder / "Annotations" / "2007_1.xml").write_text(xml(*objects))
    (folder / "Annotations" / "2007_2.xml").write_text(xml(("dog", 0, 1, 1, 2, 2)))
    return folder


def test_voc(tmp_path):
    """Its palette's masks, and its boxes, counted from 1 with both ends inside."""
    folder = write_voc(tmp_path)
    source = open_source(data(f"voc:{tmp_path}"), "train")
    assert source.class_names[0] == "background" and source.class_names[20] == "tvmonitor"
    assert source.read(0)["segmentation"][:, 0].tolist() == [0] * 5 + [20] * 10 + [255] * 5
    boxes = open_source(data(f"voc:{folder}", max_boxes=2), "train", needs=DETECTION)
    first = boxes.read(0)
    assert first["boxes"].tolist() == [[0, 0, 20, 30], [2, 4, 10, 20]]
    assert first["crowd"].tolist() == [True, False]
    assert [boxes.class_names[k] for k in first["classes"]] == ["cat", "dog"]
    assert "objects of an unknown class, left out: 1, such as unicorn" in " ".join(boxes.notes)
    located = open_source(data(f"voc:{tmp_path}", max_boxes=2), "train", needs=LOCATION)
    assert [located.class_names[k] for k in located.labels] == ["dog", "dog"]
    with pytest.raises(UserError, match=r"has no ImageSets/Segmentation/val.txt; there is train"):
        open_source(data(f"voc:{tmp_path}"), "val")
    (folder / "classes.json").write_text('["unicorn"]')
    own = open_source(data(f"voc:{tmp_path}", max_boxes=2), "train", needs=DETECTION)
    assert own.class_names == ("unicorn",) and own.read(0)["valid"].tolist() == [True, False]
    with pytest.raises(UserError, match=r"2007_1.png: has the index 20, but there are 2 classes"):
        open_source(data(f"voc:{tmp_path}"), "train")
    (folder / "SegmentationClass" / "2007_2.png").unlink()
    with pytest.raises(UserError, match=r"2007_2.jpg: has no mask .*2007_2.png"):
        open_source(data(f"voc:{tmp_path}"), "train")
    (folder / "Annotations" / "2007_2.xml").write_text("<annotation><object></annotation>")
    with pytest.raises(UserError, match=r"2007_2.xml: cannot be read as annotations"):
        open_source(data(f"voc:{tmp_path}"), "train", needs=LOCATION)
    with pytest.raises(UserError, match="has no folder JPEGImages"):
        open_source(data(f"voc:{tmp_path}/nowhere"), "train")


def write_imagenet(root):
    """Two classes of three images; one has no boxes, one is stated at twice its size."""
    boxes = root / "boxes" / "train"
    boxes.mkdir(parents=True)
    for name in ("n01", "n02"):
        folder = root / "images" / "train" / name
        folder.mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}_{k}.JPEG", "JPEG")
            Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}_{k}.jpg")
            (folder / f"{name}_{k}.JPEG").unlink()
        (boxes / f"{name}_0.xml").write_text(xml((name, 0, 2, 3, 10, 12), (name, 0, 0, 0, 19, 30)))
        far = (name, 0, 20, 30, 90, 300)
        (boxes / f"{name}_1.xml").write_text(xml(far, height=2 * HEIGHT, width=2 * WIDTH))


def test_boxes_are_joined_by_name(tmp_path):
    write_imagenet(tmp_path)
    config = data(f"folder:{tmp_path}/images", boxes=f"{tmp_path}/boxes", max_boxes=3)
    source = open_source(config, "train", needs=LOCATION)
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    found = source.read(0)["boxes"]
    np.testing.assert_allclose(found, [[0, 0, 19, 30], [2, 3, 10, 12], [0] * 4], atol=1e-4)
    np.testing.assert_allclose(source.read(4)["boxes"][0], [10, 15, 20, 30], atol=1e-4)
    assert not source.read(2)["boxes"].any()
    notes = " ".join(source.notes)
    assert "images without boxes: 2 of 6" in notes
    assert "boxes partly outside of their image, clipped: 2" in notes
    streamed = open_source(
        data(config.source, boxes=config.boxes, max_boxes=3, resident_limit=0, image_size=10),
        "train",
        like=None,
        needs=LOCATION,
    )
    np.testing.assert_allclose(streamed.read(0)["boxes"][1], [1, 0, 5, 3.5], atol=1e-4)
    with pytest.raises(UserError, match=r"config.data.boxes is .*the task needs label"):
        open_source(config, "train", needs=("label",))
    with pytest.raises(UserError, match=r"there is no .xml file"):
        open_source(data(config.source, boxes=f"{tmp_path}/none"), "train", needs=LOCATION)
    wrong = data(config.source, boxes=config.boxes, annotations="refuse")
    with pytest.raises(UserError, match=r"n01_1.xml: boxes partly outside of their image"):
        open_source(wrong, "train", needs=LOCATION)


@pytest.mark.full
def test_a_run_on_coco_from_command_to_evaluation(tmp_path):
    """The task chooses the targets, in training, in evaluation and in `jaxconv data`."""
    for split in ("train", "test"):
        write_coco(tmp_path / "set", split=split)
    run = tmp_path / "run"
    flags = ("--config.data.image_size=32", "--config.log.tensorboard=False")
    process = command(
        "train",
        "--config=experiments/xo_localization.py:small",
        f"--config.data.source=coco:{tmp_path / 'set'}",
        *flags,
        "--config.log.report=False",
        f"--workdir={run}",
        "--config.data.max_boxes=4",
        "--config.batch_size=2",
        "--config.eval.batch_size=2",
    )
    assert process.returncode == 0, process.stderr
    assert "images without an object, left out: 1" in process.stderr
    trained = json.loads(process.stdout.splitlines()[-1])
    process = command("evaluate", f"--workdir={run}")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1])["loss"] == trained["loss"]
    process = command("data", f"coco:{tmp_path / 'set'}", f"--png={tmp_path / 's.png'}", flags[0])
    assert process.returncode == 0 and "pixels of the sample" in process.stdout, process.stderr
    assert (tmp_path / "s.png").stat().st_size > 10_000
    process = command("data", f"coco:{tmp_path / 'set'}", "--config.data.annotations=mnd")
    assert_one_line_error(process, 2, "config.data.annotations is 'mnd', did you mean 'mend'")
    process = command("data", f"coco:{tmp_path / 'set'}", "--split=val")
    assert_one_line_error(process, 1, "has no annotations of the split 'val'")


INSTANCES = (*DETECTION, "masks")


def test_instances_have_their_own_masks(tmp_path):
    """Streamed and in memory alike, moved with their images; of the largest first, crowds too."""
    pytest.importorskip("pycocotools")
    lost = thing(5, 9, 5, (2, 2, 6, 9), segmentation=None)
    write_coco(tmp_path, [*THINGS, lost])
    config = data(f"coco:{tmp_path}", max_boxes=9)
    source = open_source(config, "train", needs=INSTANCES)
    assert source.targets["masks"].shape == (HEIGHT, WIDTH, 2)
    assert "objects without a usable segmentation, left out: 1" in " ".join(source.notes)
    first, second, third = (source.read(i) for i in range(3))
    found = of_bits(first["masks"], 9)
    wanted = [box_mask(18, 0, 20, 30), box_mask(4, 6, 18, 25), box_mask(2, 3, 8, 10)]
    assert first["crowd"].tolist()[:3] == [True, False, False]
    np.testing.assert_array_equal(found, [*wanted, *[box_mask(0, 0, 0, 0)] * 6])
    np.testing.assert_array_equal(of_bits(second["masks"], 9)[0], box_mask(1, 1, 5, 9))
    assert second["valid"].sum() == 1 and not third["masks"].any()
    few = data(f"coco:{tmp_path}", max_boxes=2, resident_limit=0, image_size=10)
    streamed = open_source(few, "train", needs=INSTANCES)
    half = of_bits(streamed.read(0)["masks"], 2)
    np.testing.assert_array_equal(half, [mask[1::2, 6:25:2] for mask in wanted[:2]])
    again = open_source(config, "train", like=describe(source))
    np.testing.assert_array_equal(again.read(0)["masks"], first["masks"])
    # Without masks nothing is left out, and no mask is made.
    assert "masks" not in open_source(config, "train", needs=DETECTION).targets


def test_a_file_without_shapes_has_no_masks(tmp_path):
    without = [
        {key: value for key, value in one.items() if key != "segmentation"} for one in THINGS
    ]
    write_coco(tmp_path, without)
    assert "masks" not in open_source(data(f"coco:{tmp_path}"), "train", needs=INSTANCES).targets


NAMES = ["nose", "left_eye", "right_eye", "tail"]


def write_keypoints(root, things):
    path = write_coco(root, things, file="annotations/person_keypoints_{split}.json")
    found = json.loads(path.read_text())
    for one in found["categories"]:
        one["keypoints"] = NAMES if one["name"] == "cat" else []
    path.write_text(json.dumps(found))
    return path


def test_keypoints_are_those_of_their_own_file(tmp_path):
    """[x, y, v, ...] becomes y, x, v; left and right change places in a mirrored image."""
    points = [5, 4, 2, 6, 5, 1, 7, 5, 0, 8, 9, 2]
    cat = thing(2, 7, 2, (4, 6, 18, 25), keypoints=points, area=133)
    write_keypoints(tmp_path, [THINGS[0], cat, thing(6, 9, 2, (1, 1, 5, 9), keypoints=[1, 2])])
    write_coco(tmp_path)
    config = data(f"coco:{tmp_path}", max_boxes=2)
    source = open_source(config, "train", needs=(*DETECTION, "keypoints", "filled"))
    assert source.targets["keypoints"] == Target((2, 4, 3), "float32", "keypoints:1-2")
    found = source.read(0)["keypoints"]
    assert found[0].tolist() == [[4, 5, 2], [5, 6, 1], [0, 0, 0], [9, 8, 2]]
    assert not found[1].any() and not source.read(1)["keypoints"].any()
    assert source.read(0)["filled"].tolist() == [0.5, 1.0]
    assert "keypoints that are not three numbers each, left out: 1" in " ".join(source.notes)
    half = open_source(
        data(f"coco:{tmp_path}", max_boxes=2, image_size=10), "train", needs=("keypoints",)
    )
    np.testing.assert_array_equal(half.read(0)["keypoints"][0, 0], [2, 0, 2])
    # A detector without that head reads the instances.
    assert len(open_source(config, "train", needs=DETECTION).read(0)["boxes"]) == 2
    assert "keypoints" not in open_source(config, "train", needs=DETECTION).targets


def test_masks_of_photographs_have_their_areas(coco256):
    """Those that COCO's own file states, as shares of the boxes."""
    config = data(f"coco:{coco256}", resident_limit=0)
    source = open_source(config, "val2017", needs=(*INSTANCES, "filled"))
    for i in range(8):
        found = source.records[i][1]
        boxes, areas = found["boxes"], of_bits(found["masks"], 100).sum(axis=(1, 2))
        around = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        assert found["valid"].any() and not areas[~found["valid"]].any()
        np.testing.assert_allclose(areas, found["filled"] * around, rtol=1e-2, atol=1)
