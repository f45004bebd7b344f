"""What a training says of its data before it begins."""

import logging

import numpy as np
import pytest

from jaxconv.config import default_config
from jaxconv.data import Arrays, from_arrays, from_sequence
from jaxconv.data.reading import notes_of, read_as
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.run import train
from jaxconv.survey import show
from tests.conftest import tiny_config

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 16, 16), np.uint8)
LABELS = np.arange(40) % 10


def settings(path, **changes):
    config = default_config().data
    config.source = f"arrays:{path}"
    config.arrays.update(changes)
    return config


def saved(path, test=slice(None), **arrays):
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS} | arrays
    arrays |= {f"{name}_test": arrays[f"{name}_test"][test] for name in "xy"}
    np.savez(path, **arrays)
    return path


def test_lines():
    source = from_arrays(IMAGES, LABELS)
    assert read_as(source, "train") == (
        f"train: 40 images of 16x16 pixels with 1 channel, uint8 from {IMAGES.min()} to "
        f"{IMAGES.max()}, 10 classes of 4 examples"
    )
    assert notes_of(source, "train") == ()
    waves = from_arrays(IMAGES[:, :, :2] / 255, LABELS // 5 * 2, "abcd")
    assert "40 signals of 16 with 2 channels, float32 from 0" in read_as(waves, "test")
    assert "4 classes of 0 to 20 examples" in read_as(waves, "test")
    assert notes_of(waves, "test") == ("test: no example of 2 of 4 classes: 'b', 'd'",)
    items = from_sequence([*zip(IMAGES, LABELS, strict=True)], map(str, range(10)))
    assert read_as(items, "train").endswith("with 1 channel, uint8, 10 classes")
    config = default_config().data
    config.source, config.toy.train_examples = "sentences", 6
    texts = read_as(open_source(config, "train"), "train")
    assert texts == "train: 6 texts of 256 codes, 256 different, 3 classes of 2 examples"


def test_notes():
    config = default_config().data
    far = from_arrays(300 * IMAGES[:, :, :3].astype(float), LABELS)
    assert "become as large as 1.53e+05 by config.data.mean" in notes_of(far, "x", config)[0]
    assert notes_of(far, "x") == ()
    same = from_arrays(np.full((4, 8, 8), 7, np.uint8), [0, 1, 0, 1])
    assert notes_of(same, "x") == ("x: every number of every example is the same",)
    each = from_arrays(IMAGES, np.arange(40))
    assert notes_of(each, "x") == ("x: 40 classes have an example, of 40 examples",)
    nan = Arrays(np.full((2, 4, 4, 1), np.nan, np.float32), np.array([0, 1]), ("a", "b"))
    with pytest.raises(UserError, match="split 'x': example 0 of 2 is nan"):
        notes_of(nan, "x")


def test_a_training_begins_with_them(tmp_path, caplog):
    """Its own sources as well; a class that the test lacks is no obstacle, and said."""
    source = f"arrays:{saved(tmp_path / 'd.npz', slice(9))}"
    with caplog.at_level(logging.INFO, logger="jaxconv"):
        train(tiny_config(data__source=source, steps=3), tmp_path / "a")
        splits = from_arrays(IMAGES, LABELS), from_arrays(IMAGES[:9], LABELS[:9])
        train(tiny_config(steps=3), tmp_path / "b", sources=splits)
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if line.startswith("train: 40 images of 16x16")]) == 2
    assert len([line for line in told if line.startswith("test: 9 images of 16x16")]) == 2
    notes = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert notes == ["test: no example of 1 of 10 classes: '9'"]


def test_jaxconv_data_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxconv.survey._SECONDS", 0.1)
    source = f"arrays:{saved(tmp_path / 'd.npz', slice(1, 9))}"
    config = tiny_config(data__source=source)
    rows, found = show(config, "test", 100, tmp_path / "out.png")
    assert dict(rows)["read as"] == found["read_as"]
    assert found["read_as"].endswith("10 classes of 0 to 1 examples")
    assert (
        dict(rows)["note"] == found["notes"][0] == "test: no example of 2 of 10 classes: '0', '9'"
    )


def test_a_test_split_is_read_as_the_training_split(tmp_path):
    path = saved(tmp_path / "d.npz", x_test=IMAGES / 255)
    like = {"kind": "image", "image_shape": [16, 16, 1], "class_names": [*"0123456789"]}
    found = open_source(settings(path), "test", like=like)
    assert found.element.kind == "image" and found.images.max() <= 1
    saved(path, y_test=LABELS + 5)
    with pytest.raises(
        UserError,
        match="split 'test': the labels go from 5 to 14, but there are 10 "
        "classes in the training split, 0 to 9; add examples of the others",
    ):
        open_source(settings(path), "test", like=like)


def test_settings_of_arrays(tmp_path):
    path = saved(tmp_path / "d.npz", x_train=255.0 * IMAGES[:, None] / 255, y_train=LABELS + 1)
    with pytest.raises(UserError, match="set --config.data.arrays.first_label=1"):
        open_source(settings(path, layout="NCHW", scale=255.0), "train")
    source = open_source(settings(path, layout="NCHW", scale=255.0, first_label=1), "train")
    np.testing.assert_allclose(source.images[..., 0], IMAGES / 255, atol=1e-6)
    assert source.labels.tolist() == LABELS.tolist()
    with pytest.raises(UserError, match="if so, set --config.data.arrays.layout=NCHW"):
        open_source(settings(path), "train")
    config = settings(saved(path))
    config.image_size = 8
    with pytest.raises(UserError, match="image_size is 8, and the arrays .* 16 x 16 x 1"):
        open_source(config, "train")


def test_settings_that_would_do_nothing(tmp_path):
    for changes, words in (
        ({"data__arrays__layout": "NHW"}, "data.arrays.layout is 'NHW'; it is for arrays:PATH"),
        ({"data__text__header": "yes"}, "data.text.header is 'yes'; it is for text:PATH"),
        ({"data__arrays__layout": "NXY"}, "data.arrays.layout is 'NXY'"),
        ({"data__arrays__scale": -1.0}, "data.arrays.scale is -1"),
    ):
        with pytest.raises(UserError, match=words):
            train(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
