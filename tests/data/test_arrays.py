"""Arrays in memory and in files."""

import gzip
import re
import struct

import numpy as np
import pytest

from jaxconv.config import default_config
from jaxconv.data import from_arrays
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError

RANDOM = np.random.default_rng(0)
IMAGES, LABELS = (
    RANDOM.integers(0, 256, (7, 5, 6), np.uint8),
    np.array([0, 1, 2, 0, 1, 2, 0], np.uint8),
)


def settings(path):
    config = default_config().data
    config.source = f"arrays:{path}"
    return config


def idx(array, kind=8):
    return (
        bytes([0, 0, kind, array.ndim])
        + struct.pack(f">{array.ndim}i", *array.shape)
        + array.tobytes()
    )


@pytest.mark.parametrize(
    "names",
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, names, packed):
    for name, array in zip(names, (IMAGES, LABELS), strict=True):
        content = idx(array)
        (tmp_path / (name + ".gz" * packed)).write_bytes(
            gzip.compress(content) if packed else content
        )
    source = open_source(settings(tmp_path), "train")
    np.testing.assert_array_equal(source.images[..., 0], IMAGES)
    assert (
        source.labels.tolist() == LABELS.tolist()
        and source.class_names == ("0", "1", "2")
        and source.element.kind == "image"
    )
    with pytest.raises(
        UserError,
        match=r"has no file t10k-images-idx3-ubyte \(or t10k-images-idx3-ubyte.gz\), which the "
        r"split 'test' needs",
    ):
        open_source(settings(tmp_path), "test")


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", idx(IMAGES)[:50], b"\0\0\x77\x01\0\0\0\x01a", b"\x1f\x8b no gzip"]
)
def test_damaged_idx_files(tmp_path, content):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    with pytest.raises(UserError, match="train-images-idx3-ubyte: cannot be read as an idx file"):
        open_source(settings(tmp_path), "train")


def test_npz_files(tmp_path):
    np.savez(
        tmp_path / "keras.npz",
        x_train=IMAGES,
        y_train=LABELS,
        x_test=IMAGES[:2],
        y_test=LABELS[:2, None],
    )
    assert len(open_source(settings(tmp_path / "keras.npz"), "train")) == 7
    assert open_source(settings(tmp_path / "keras.npz"), "test").labels.tolist() == [0, 1]
    with pytest.raises(
        UserError,
        match="has no split 'val'.*it needs val_images and val_labels .*has x_test, x_train, "
        "y_test, "
        "y_train",
    ):
        open_source(settings(tmp_path / "keras.npz"), "val")
    waves = RANDOM.normal(size=(7, 100, 2))
    np.savez(
        tmp_path / "ours.npz", train_images=waves, train_labels=LABELS, class_names=["a", "b", "c"]
    )
    source = open_source(settings(tmp_path / "ours.npz"), "train")
    assert (
        source.class_names == ("a", "b", "c")
        and source.element.kind == "signal"
        and source.images.dtype == np.float32
    )
    (tmp_path / "broken.npz").write_bytes((tmp_path / "keras.npz").read_bytes()[:100])
    np.save(tmp_path / "one.npy", IMAGES)
    np.savez(tmp_path / "pickled.npz", train_images=np.array([{}]), train_labels=LABELS)
    for name in ("broken.npz", "one.npy", "pickled.npz"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            open_source(settings(tmp_path / name), "train")
    with pytest.raises(UserError, match="nowhere.npz: file not found"):
        open_source(settings(tmp_path / "nowhere.npz"), "train")


@pytest.mark.parametrize(
    ("images", "labels", "names", "words"),
    [
        (IMAGES, LABELS[:3], (), "the labels are uint8 (3,); they must be integers [7]"),
        (IMAGES, LABELS.astype(float), (), "make them integers, labels.astype(int)"),
        (IMAGES, LABELS + 0.5, (), "one per example: label 0 is 0.5"),
        (IMAGES, np.where(LABELS, 1.0, np.nan), (), "label 0 is nan"),
        (IMAGES, LABELS.astype(str), (), "number them by names, labels = numpy.unique("),
        (IMAGES, np.ones((7, 3)), (), "the rows are not one-hot"),
        (IMAGES, LABELS, ("a", "b"), "the labels go from 0 to 2, but there are 2 classes"),
        (IMAGES, LABELS + 1, ("a", "b", "c"), "3 classes: count from 0, or set first_label=1"),
        (IMAGES, LABELS + 1, (), "if 1 is the first class, set first_label=1"),
        (
            IMAGES,
            LABELS.astype(int) * 3000,
            (),
            "3 different numbers from 0 to 6,000, so",
        ),
        (IMAGES, [0, -1, 1, 0, 0, 0, 0], "ab", "0 to 1; leave out what has no class"),
        (IMAGES, LABELS.astype(int) - 1, (), "the labels go from -1 to 1"),
        (
            IMAGES.astype(np.int64),
            LABELS,
            (),
            "the examples are int64 (7, 5, 6); they must be uint8 or float32",
        ),
        (IMAGES[:, 0], LABELS, (), "the examples are uint8 (7, 6)"),
        (IMAGES[:0], LABELS[:0], (), "holds no examples"),
    ],
)
def test_arrays_that_do_not_fit(images, labels, names, words):
    with pytest.raises(UserError, match=re.escape(words)):
        from_arrays(images, labels, names)


@pytest.mark.parametrize("name", ["folders:x", "xo:3", "tfds", "arrays", "", "folder"])
def test_unknown_sources(name):
    config = default_config().data
    config.source = name
    with pytest.raises(
        UserError,
        match="unknown source .*; the sources are xo, xo_scenes, xo_boxes, tones, sentences,",
    ):
        open_source(config, "train")
