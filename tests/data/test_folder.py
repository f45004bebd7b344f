"""Image folders, and everything that can be wrong with one."""

import logging
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from jaxconv.config import default_config
from jaxconv.data.decode import read_image
from jaxconv.data.folder import list_split, open_files
from jaxconv.data.interface import DamagedError, describe
from jaxconv.data.listing import suffixes_of
from jaxconv.data.loading import Reader
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.predict import find_items
from jaxconv.run import train
from tests.conftest import tiny_config, write_images


def settings(path, **changes):
    config = default_config().data
    config.source = f"folder:{path}"
    for key, value in changes.items():
        config[key] = value
    return config


def test_reads_splits_in_order(tmp_path):
    write_images(tmp_path, classes=("dog", "cat"), count=3)
    train = open_source(settings(tmp_path), "train")
    assert train.class_names == ("cat", "dog") and train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(
        train[3]["image"], np.asarray(Image.open(tmp_path / "train/dog/000.png"))
    )
    test = open_source(settings(tmp_path), "test", like=describe(train))
    assert test.image_shape == (8, 8, 3) and len(test) == 6


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG"])
def test_grey_images_have_one_channel(tmp_path, suffix):
    write_images(tmp_path, mode="L", suffix=suffix)
    assert open_source(settings(tmp_path), "train").image_shape == (8, 8, 1)


def test_one_coloured_image_makes_the_set_coloured(tmp_path):
    write_images(tmp_path, mode="L", count=2)
    grey = open_source(settings(tmp_path), "train")
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "train/cat/900.png")
    train = open_source(settings(tmp_path), "train")
    assert train.image_shape == (8, 8, 3)
    np.testing.assert_array_equal(train.images[0], np.repeat(grey.images[0], 3, axis=-1))
    # The test split has only grey files, and is read as the training split was.
    assert open_source(settings(tmp_path), "test", like=describe(train)).image_shape == (8, 8, 3)


def test_sizes(tmp_path):
    write_images(tmp_path, size=(12, 10), count=2)
    assert open_source(settings(tmp_path), "train").image_shape == (10, 12, 3)
    assert open_source(settings(tmp_path, image_size=6), "train").image_shape == (6, 6, 3)
    Image.new("RGB", (5, 7)).save(tmp_path / "train/dog/900.png")
    with pytest.raises(
        UserError,
        match=r"900.png: is 5x7 pixels, but .*cat/000.png is 12x10 pixels; "
        r".*--config.data.image_size=N",
    ):
        open_source(settings(tmp_path), "train")


def test_middle_is_kept(tmp_path):
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 200
    Image.fromarray(picture).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(read_image(tmp_path / "wide.png", 10), np.full((10, 10, 3), 200))


def test_sixteen_bits_become_eight(tmp_path):
    values = np.array([[0, 256, 30_000], [40_000, 65_535, 255]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 0], values >> 8)


def test_class_without_a_readable_image_stops(tmp_path):
    write_images(tmp_path, count=2)
    for file in (tmp_path / "train/cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="split 'train': no example of class 'cat' can be read"):
        open_source(settings(tmp_path, skip_unreadable=True), "train")


def test_exif_turns_the_image(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (6, 4, 3)


def test_unsplit_tree_is_drawn_apart(tmp_path):
    write_images(tmp_path, splits=("",), classes=("cat", "dog"), count=20)
    parts = {
        split: list_split(str(tmp_path), split, 0.25, seed=0).names for split in ("train", "test")
    }
    assert (
        len(parts["test"]) == 10
        and len(parts["train"]) == 30
        and not set(parts["test"]) & set(parts["train"])
    )
    assert sum(file.startswith("cat/") for file in parts["test"]) == 5
    assert parts["test"] == list_split(str(tmp_path), "test", 0.25, seed=0).names
    assert parts["test"] != list_split(str(tmp_path), "test", 0.25, seed=1).names
    with pytest.raises(UserError, match="it has no split 'val'"):
        list_split(str(tmp_path), "val", 0.25, seed=0)
    with pytest.raises(
        UserError, match="leaves the split 'test' empty; change --config.data.folder.test_fraction"
    ):
        list_split(str(tmp_path), "test", 0.01, seed=0)
    assert len(list_split(str(tmp_path), "test", 1.0, seed=0).names) == 40
    with pytest.raises(UserError, match="leaves the split 'train' empty"):
        list_split(str(tmp_path), "train", 1.0, seed=0)
    with pytest.raises(UserError, match="test_fraction is 1.5"):
        list_split(str(tmp_path), "test", 1.5, seed=0)


def test_unreadable_files_stop_or_are_left_out(tmp_path, caplog):
    write_images(tmp_path, count=3)
    (tmp_path / "train/cat/000.png").write_bytes(b"")
    (tmp_path / "train/dog/001.png").write_bytes(b"no image")
    whole = (tmp_path / "train/dog/002.png").read_bytes()
    (tmp_path / "train/dog/002.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError,
        match=r"cat/000.png: the file is empty \(and 2 more\); .*"
        r"--config.data.skip_unreadable=True",
    ):
        open_source(settings(tmp_path), "train")
    with caplog.at_level(logging.WARNING, logger="jaxconv"):
        source = open_source(settings(tmp_path, skip_unreadable=True), "train")
    assert source.labels.tolist() == [0, 0, 1]
    assert "left out 3 unreadable of 6 examples" in caplog.text
    for name in (
        "cat/000.png: the file is empty",
        "dog/001.png: cannot be read",
        "dog/002.png: cannot be read",
    ):
        assert name in caplog.text
    for file in (tmp_path / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 6 examples can be read"):
        open_source(settings(tmp_path, skip_unreadable=True), "train")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda root: root.joinpath("train/empty").mkdir(),
            "train/empty: has no .jpg, .jpeg, .*.wav, .npy file",
        ),
        (
            lambda root: root.joinpath("train").rename(root / "training"),
            "no split 'train', did you mean 'training'.*it has test, training",
        ),
        (
            lambda root: [f.unlink() for f in root.joinpath("train/cat").iterdir()],
            "train/cat: has no .jpg",
        ),
    ],
)
def test_wrong_trees_are_named(tmp_path, break_it, message):
    write_images(tmp_path)
    break_it(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source(settings(tmp_path), "train")


def test_no_folder_no_class_one_class(tmp_path):
    with pytest.raises(UserError, match="folder not found"):
        open_source(settings(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match="has no folders; it must hold"):
        open_source(settings(tmp_path), "train")
    write_images(tmp_path / "one", classes=("cat",))
    with pytest.raises(UserError, match="has one class folder, 'cat'"):
        open_source(settings(tmp_path / "one"), "train")


def test_other_classes_than_trained_with(tmp_path):
    write_images(tmp_path)
    source = open_source(settings(tmp_path), "train")
    with pytest.raises(
        UserError, match="class names of split 'test' are .*'cat', 'dog'.*trained with .*'o', 'x'"
    ):
        open_source(settings(tmp_path), "test", like=describe(source) | {"class_names": ["o", "x"]})
    with pytest.raises(UserError, match="unknown source 'folders:x', did you mean 'folder:PATH'"):
        config = settings(tmp_path)
        config.source = "folders:x"
        open_source(config, "train")


def test_evaluation_at_another_size(tmp_path):
    write_images(tmp_path / "images", size=(12, 10), count=3)
    config = tiny_config(
        data__source=f"folder:{tmp_path}/images",
        data__image_size=8,
        data__eval_image_size=10,
        model__name="resnet20_cifar",
        steps=3,
    )
    config.model.kwargs = {"units": (1, 1, 1), "width": 4}
    result = train(config, str(tmp_path / "run"), devices=jax.devices()[:1])
    assert result["examples"] == 6
    assert (
        evaluate_workdir(str(tmp_path / "run"), devices=jax.devices()[:1])["loss"] == result["loss"]
    )
    # A network that flattens its feature maps has weights for only one size.
    config = tiny_config(
        data__source=f"folder:{tmp_path}/images", data__image_size=8, data__eval_image_size=16
    )
    with pytest.raises(
        UserError, match="config.data.eval_image_size is 16: a network for 8x8x3 cannot take it"
    ):
        train(config, str(tmp_path / "other"), devices=jax.devices()[:1])


def test_streamed_files_that_are_not_there(tmp_path):
    """A broken link, and a name that is not UTF-8: the checksum covers them, and the batches leave
    out what cannot be read.
    """
    write_images(tmp_path, count=3)
    folder = os.fsencode(next((tmp_path / "train").iterdir()))
    os.symlink("nowhere", folder + b"/link.jpg")
    shutil.copy(folder + b"/000.png", folder + b"/caf\xe9.png")
    source = open_source(settings(tmp_path, resident_limit=0), "train")
    assert (
        source.checksum() == open_source(settings(tmp_path, resident_limit=0), "train").checksum()
    )
    reader = Reader(source, damaged_share=0.5)
    list(reader.train_batches(0, 0, 5, 4))
    assert [name.rpartition("/")[2] for name in reader.damaged] == ["link.jpg"]


def test_a_pipe_in_the_place_of_an_image_is_damaged_instead_of_waited_for(tmp_path):
    write_images(tmp_path)
    files, _ = open_files(str(tmp_path), "train", default_config().data)
    (tmp_path / files.name(0)).unlink()
    os.mkfifo(tmp_path / files.name(0))
    with pytest.raises(DamagedError, match="is not a file"):
        files[0]


def test_a_class_whose_name_cannot_be_shown_is_refused(tmp_path):
    write_images(tmp_path)
    os.rename(os.fsencode(tmp_path / "train" / "cat"), os.fsencode(tmp_path / "train") + b"/c\xff")
    with pytest.raises(UserError, match="is not printable; rename it"):
        open_files(str(tmp_path), "train", default_config().data)


def test_only_the_split_asked_for_is_looked_at(tmp_path):
    """Pictures without classes in `test`, and folders of a disk, are in nobody's way."""
    write_images(tmp_path, splits=("train", "val"))
    for name in ("test", "annotations", "lost+found", "System Volume Information"):
        (tmp_path / name).mkdir()
    shutil.copy(tmp_path / "train/cat/000.png", tmp_path / "test/1.png")
    assert len(open_source(settings(tmp_path), "train")) == 12
    with pytest.raises(UserError, match="/test: has no class folders, but train has"):
        open_source(settings(tmp_path), "test")
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(UserError, match="has no split 'val'; it has annotations, test, train: set"):
        open_source(settings(tmp_path), "val")


def test_splits_without_classes_are_not_taken_for_classes(tmp_path):
    write_images(tmp_path, splits=("",), classes=("train", "test"))
    with pytest.raises(UserError, match="/train: has no class folders; it must hold a folder of"):
        open_source(settings(tmp_path), "train")
    # Where trains are one of several things to be told apart, it is a class.
    write_images(tmp_path, splits=("",), classes=("bicycle",))
    assert open_source(settings(tmp_path), "train").class_names == ("bicycle", "test", "train")


def test_files_in_subfolders_of_a_class(tmp_path):
    """In a split tree, and in an unsplit one, where subfolders could be classes of a split."""
    for splits, path in ((("train", "test"), tmp_path / "split"), (("",), tmp_path / "unsplit")):
        write_images(path, splits=splits, count=10)
        write_images(path / splits[0] / "cat" / "2019", splits=("",), classes=("may",), count=10)
        found = list_split(str(path), "train", 0.5, seed=0)
        assert found.classes == ("cat", "dog") and found.notes == ()
        assert len(found.names) == (30 if splits[0] else 15)
        assert any("cat/2019/may/" in name for name in found.names)
    # Without a file directly in a class it cannot be told.
    for name in ("cat", "dog"):
        write_images(tmp_path / "deep" / name, splits=("",), classes=("2019", "2020"))
    with pytest.raises(UserError, match="no split 'train'.*if these are the classes, move them"):
        list_split(str(tmp_path / "deep"), "train", 0.1, seed=0)


def test_a_split_may_lack_classes(tmp_path):
    """Its labels are those of the training split, and a note says so."""
    write_images(tmp_path, classes=("cat", "cow", "dog"), count=2)
    train = open_source(settings(tmp_path), "train")
    shutil.rmtree(tmp_path / "test/cat")
    test = open_source(settings(tmp_path), "test", like=describe(train))
    assert test.class_names == train.class_names and test.labels.tolist() == [1, 1, 2, 2]
    assert test.notes == (
        f"{tmp_path}: split 'test' has no folder for 1 of 3 classes, such as cat",
    )
    files, classes = open_files(str(tmp_path), "test", settings(tmp_path), ("dog", "cow"))
    assert classes == ("dog", "cow") and files.labels_of_all().tolist() == [1, 1, 0, 0]
    (tmp_path / "test/cow").rename(tmp_path / "test/ox")
    with pytest.raises(UserError, match="; only one has cat, cow, ox$"):
        open_source(settings(tmp_path), "test", like=describe(train))


def test_what_is_left_out_is_noted(tmp_path):
    write_images(tmp_path, count=1)
    for name in ("dog/a.heic", "dog/b.HEIC", "cat/c", "cat/.DS_Store", "loose.png"):
        (tmp_path / "train" / name).write_bytes(b"x")
    source = open_source(settings(tmp_path), "train")
    assert len(source) == 2 and set(source.notes) == {
        f"{tmp_path}: left out files of other kinds: 3 (.heic 2, no suffix 1), such as train/cat/c",
        f"{tmp_path}: left out hidden or system files and folders: 1, such as train/cat/.DS_Store",
        f"{tmp_path}: left out files outside of the class folders: 1, such as train/loose.png",
    }


def test_all_kinds_of_pictures(tmp_path):
    """Training and predict read the same files, and the same pixels."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
    names = ["a.jpg", "b.JPEG", "c.jfif", "d.png", "e.bmp", "f.tif", "g.TIFF", "h.ppm", "i.gif"]
    names += [f"j{suffix}" for suffix in (".webp", ".avif") if suffix in suffixes_of("image")]
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for file in names:
            form = "JPEG" if file.endswith("jfif") else None
            options = {"lossless": True} if file.endswith("webp") else {}
            Image.fromarray(pixels).save(tmp_path / "train" / name / file, form, **options)
    source = open_source(settings(tmp_path), "train")
    assert len(source) == 2 * len(names) and source.notes == ()
    items = find_items([str(tmp_path)], "image")
    assert [item.file for item in items] == [source.name(i) for i in range(len(source))]
    for i, name in enumerate(sorted(names)):
        if name[-4:] in (".png", ".bmp", ".tif", "TIFF", ".ppm", "webp"):
            np.testing.assert_array_equal(source[i]["image"], pixels, err_msg=name)
