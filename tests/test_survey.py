"""`jaxconv data`: its report of a source."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxconv.data import DamagedError, from_sequence
from jaxconv.survey import show, survey
from tests.conftest import assert_one_line_error, command, tiny_config, write_images
from tests.data.test_canvas import write_rectangles


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("jaxconv.survey._SECONDS", 0.1)


def test_folder(tmp_path):
    write_images(tmp_path, count=5, size=(10, 8))
    (tmp_path / "train/cat/000.png").write_bytes(b"")
    config = tiny_config(
        data__source=f"folder:{tmp_path}",
        data__image_size=6,
        data__skip_unreadable=True,
        augment__flip=True,
    )
    rows, found = show(config, "train", 100, tmp_path / "out.png")
    assert (
        found["examples"] == 10
        and found["classes"] == {"cat": 5, "dog": 5}
        and found["sizes"] == {"10x8": 9}
    )
    assert list(found["damaged"]) == [str(tmp_path / "train/cat/000.png")]
    assert found["examples_per_second"] > 0 and dict(rows)["examples/s"].endswith(
        "resident, augmented"
    )
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 100


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path):
    images = [np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8) for i in range(6)]
    found = survey(from_sequence([(image, 0) for image in images], "ab"))
    np.testing.assert_allclose(found["mean"], np.mean(np.stack(images) / 255, axis=(0, 1, 2)))
    np.testing.assert_allclose(found["std"], np.std(np.stack(images) / 255, axis=(0, 1, 2)))
    assert found["classes"] == {"a": 6, "b": 0} and found["sizes"] == {"4x4": 6}
    assert survey(from_sequence([(image, 0) for image in images], "ab"), examples=2)["sample"] == 2


def test_sizes_that_make_no_batch(tmp_path):
    write_images(tmp_path, count=2, size=(10, 8))
    Image.new("RGB", (30, 20)).save(tmp_path / "train/dog/900.png")
    rows, found = show(
        tiny_config(data__source=f"folder:{tmp_path}"), "train", 100, tmp_path / "out.png"
    )
    assert (
        found["sizes"] == {"10x8": 4, "30x20": 1}
        and "--config.data.image_size=N" in dict(rows)["batches"]
    )
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("source", ["tones", "sentences", "solids", "xo_clips", "xo"])
@pytest.mark.parametrize("limit", [0, 10**9])
def test_every_kind_is_drawn(tmp_path, source, limit):
    config = tiny_config(
        data__source=source,
        data__resident_limit=limit,
        data__toy__train_examples=12,
        data__audio__rate=4000,
    )
    _, found = show(config, "train", 8, tmp_path / "out.png")
    assert sum(found["classes"].values()) == found["examples"] and (
        tmp_path / "out.png"
    ).read_bytes().startswith(b"\x89PNG")


def detection_config(tmp_path, **changes):
    root = write_rectangles(tmp_path / "set")
    return tiny_config(
        data__source=f"coco:{root}", task__name="detection", data__max_boxes=5, **changes
    )


def test_objects_of_images_of_several_sizes(tmp_path):
    """Sizes are those of the files; samples stand on a canvas, and the row says which."""
    config = detection_config(tmp_path)
    path = tmp_path / "set" / "train.json"
    truth = json.loads(path.read_text())
    # One is larger than 32 squared pixels, one image has two and one none.
    truth["annotations"][2]["bbox"] = [0, 0, 33, 32]
    truth["annotations"][3]["image_id"] = 2
    path.write_text(json.dumps(truth))
    rows, found = show(config, "train", 100, tmp_path / "out.png")
    assert found["objects"] == {
        "count": 4, "classes": {"red": 4}, "without": 1, "most": 2, "crowds": 0,
        "sizes": {"small": 3, "medium": 1, "large": 0},
    }  # fmt: skip
    shown = dict(rows)
    assert "targets" not in found and shown["  small < 32²"] == "3"
    assert shown["images without objects"] == "1" and shown["most of an image"] == "2"
    assert shown["samples on a canvas"].startswith("50,60; --config.data.canvas=50,60")
    assert (tmp_path / "out.png").is_file() and not config.data.canvas


def test_objects_on_the_canvas_of_the_config(tmp_path):
    jitter = {"augment__large_scale_jitter": (0.5, 2.0), "augment__mosaic": 0.5}
    config = detection_config(tmp_path, data__canvas=(32, 32), augment__flip=True, **jitter)
    rows, found = show(config, "train", 100, tmp_path / "out.png")
    assert "samples on a canvas" not in dict(rows) and found["examples_per_second"] > 0
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 100


def test_objects_by_reading(tmp_path):
    """Of scenes in memory: the objects of the sample."""
    config = tiny_config(
        data__source="xo_scenes", task__name="detection", data__scenes__train_examples=20
    )
    _, found = show(config, "train", 10, tmp_path / "out.png")
    objects = found["objects"]
    assert set(objects["classes"]) == {"o", "x"} and 20 <= objects["count"] <= 50
    assert objects["count"] == sum(objects["classes"].values()) == sum(objects["sizes"].values())
    assert 2 <= objects["most"] <= 5


def test_all_damaged():
    class Broken(list):
        def __getitem__(self, i):
            if self.gone:
                raise DamagedError("gone")
            return super().__getitem__(i)

    items = Broken([(np.zeros((4, 4, 3), np.uint8), 0)])
    items.gone = False
    source = from_sequence(items, "ab")
    items.gone = True
    assert survey(source)["damaged"] == {"item 0": "gone"}


@pytest.mark.slow
def test_command(tmp_path):
    write_images(tmp_path / "set", count=5)
    process = command(
        "data",
        f"folder:{tmp_path / 'set'}",
        "--split=test",
        f"--png={tmp_path / 'a.png'}",
        "--config.batch_size=4",
    )
    assert process.returncode == 0, process.stderr
    assert (
        json.loads(process.stdout.splitlines()[-1])["classes"] == {"cat": 5, "dog": 5}
        and (tmp_path / "a.png").exists()
    )
    assert_one_line_error(
        command("data", "xo", "--examples=0"),
        2,
        "--examples",
        "'0' is not a whole number of at least 1",
    )
