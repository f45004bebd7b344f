"""Clips whose frames are image files: which are read, how, and what can be wrong."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxconv.config import default_config
from jaxconv.data.folder import open_files, read_clip
from jaxconv.data.interface import DamagedError, describe
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.look.opened import open_run
from jaxconv.predict import find_items, predict, predict_items
from jaxconv.run import train
from jaxconv.weights.export import export_workdir, load_exported
from tests.conftest import tiny_config


def write_clip(folder, values, size=(8, 8)):
    """Frames of one grey value each, under names whose numbers have no leading zeros."""
    folder.mkdir(parents=True)
    for n, value in enumerate(values, 1):
        Image.new("L", size, int(value)).save(folder / f"frame_{n}.png")


def write_clips(root, splits=("train/", "test/"), clips=6, frames=12):
    """Brighter and darker in time."""
    for split in splits:
        for n in range(clips):
            values = np.linspace(20 + n, 200 + n, frames)
            write_clip(root / f"{split}rise" / f"take {n}", values)
            write_clip(root / f"{split}fall" / f"take {n}", values[::-1])


def settings(root, **changes):
    config = default_config().data
    config.source, config.frames = f"folder:{root}", 4
    for key, value in changes.items():
        config[key] = value
    return config


def test_frames_are_the_middles_of_equal_parts_in_numeric_order(tmp_path):
    write_clip(tmp_path / "train/a/clip", range(1, 13))
    write_clip(tmp_path / "train/b/clip", [7, 9])
    source = open_source(settings(tmp_path), "train")
    assert (source.kind, source.image_shape) == ("signal", (4, 8, 8, 1))
    assert source.images.dtype == np.uint8 and source.labels.tolist() == [0, 1]
    # Of 12 frames in parts of three, the second of each; of two frames, each twice.
    assert source.images[0, :, 0, 0, 0].tolist() == [2, 5, 8, 11]
    assert source.images[1, :, 0, 0, 0].tolist() == [7, 7, 9, 9]


@given(count=st.integers(1, 40), frames=st.integers(1, 20))
def test_frames_are_in_order_and_spread_evenly(tmp_path_factory, count, frames):
    folder = tmp_path_factory.mktemp("clip")
    for n in range(count):
        (folder / f"{n}.jpg").write_bytes(str(n).encode())
    found = [int(content) for content in read_clip(folder, frames)]
    assert len(found) == frames and found == sorted(found)
    assert set(np.diff(found)) <= {count // frames, -(-count // frames)}
    assert abs(sum(found) / frames - (count - 1) / 2) <= 0.5


def test_frames_are_resized_and_cropped_like_images(tmp_path):
    left = np.zeros((10, 30, 3), np.uint8)
    left[:, 10:20] = (200, 100, 50)
    for name in "ab":
        (tmp_path / "train" / name / "clip").mkdir(parents=True)
        Image.fromarray(left).save(tmp_path / "train" / name / "clip/1.png")
    source = open_source(settings(tmp_path, image_size=10), "train")
    assert source.image_shape == (4, 10, 10, 3)
    assert np.unique(source.images[0].reshape(-1, 3), axis=0).tolist() == [[200, 100, 50]]
    assert open_source(settings(tmp_path), "train").image_shape == (4, 10, 30, 3)


def test_an_unsplit_tree_is_drawn_apart_by_clips(tmp_path):
    write_clips(tmp_path, splits=("",), clips=8)
    names = {}
    for split in ("train", "test"):
        files, classes = open_files(str(tmp_path), split, settings(tmp_path))
        names[split] = {files.name(i) for i in range(len(files))}
        assert classes == ("fall", "rise")
    assert not names["train"] & names["test"]
    assert (len(names["train"]), len(names["test"])) == (14, 2)
    assert str(tmp_path / "fall" / "take 0") in names["train"] | names["test"]


def test_the_checksum_depends_on_the_frames(tmp_path):
    write_clips(tmp_path)
    checksum = lambda: open_files(str(tmp_path), "train", settings(tmp_path))[0].checksum()  # noqa: E731
    before = checksum()
    assert before == checksum()
    frame = tmp_path / "train/rise/take 0/frame_3.png"
    frame.rename(frame.with_name("frame_13.png"))
    assert checksum() != before


def test_faults(tmp_path):
    write_clips(tmp_path, clips=1)
    with pytest.raises(UserError, match="data.frames is 4, which is for folder:PATH"):
        open_source(settings(tmp_path, source="xo_clips"), "train")
    with pytest.raises(UserError, match="fields in braces; leave one of them out"):
        open_source(settings(tmp_path, source=f"folder:{tmp_path}/{{class}}.jpg"), "train")
    with pytest.raises(UserError, match="canvas is .* not for clips"):
        open_source(settings(tmp_path, canvas=(8, 8)), "train")
    loose = tmp_path / "train/rise/1.png"
    Image.new("L", (8, 8)).save(loose)
    with pytest.raises(UserError, match="rise/1.png lies in the folder of its class: move it into"):
        open_source(settings(tmp_path), "train")
    loose.unlink()
    np.save(tmp_path / "train/rise/take 0/0.npy", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(UserError, match=r"0.npy is none; for clips in .npy files leave it at 0"):
        open_source(settings(tmp_path), "train")


def test_damaged_frames(tmp_path):
    write_clip(tmp_path / "odd", [1] * 4)
    Image.new("L", (5, 8)).save(tmp_path / "odd/frame_3.png")
    write_clip(tmp_path / "train/a/clip", [1] * 4)
    write_clip(tmp_path / "train/b/clip", [1] * 4)
    (tmp_path / "odd").rename(tmp_path / "train/a/odd")
    with pytest.raises(UserError, match="odd: has frames of 5 x 8 and 8 x 8 pixels; set .*_size"):
        open_source(settings(tmp_path), "train")
    assert open_source(settings(tmp_path, image_size=8), "train").image_shape == (4, 8, 8, 1)
    (tmp_path / "train/a/odd/frame_3.png").write_bytes(b"")
    with pytest.raises(UserError, match="odd: the file is empty"):
        open_source(settings(tmp_path, image_size=8), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DamagedError, match="holds no images"):
        read_clip(tmp_path / "empty", 4)
    with pytest.raises(DamagedError, match="No such file"):
        read_clip(tmp_path / "none", 4)


def test_a_run_on_clips_is_used_on_clips(tmp_path):
    write_clips(tmp_path / "data", clips=8)
    config = tiny_config(
        data__source=f"folder:{tmp_path / 'data'}", data__frames=4, data__image_size=8,
        model__name="text:conv3-8 relu globalpool fc",
    )  # fmt: skip
    config.steps, config.optimizer.learning_rate = 60, 0.05
    train(config, tmp_path / "run")
    assert evaluate_workdir(tmp_path / "run")["top1"] == 1.0
    # The clip alone, and all clips of a folder.
    one = predict(tmp_path / "run", tmp_path / "data/test/rise/take 1")
    assert [p.classes[0] for p in one] == ["rise"]
    all_of_it = predict(tmp_path / "run", [tmp_path / "data/test"])
    assert [p.classes[0] for p in all_of_it] == ["fall"] * 8 + ["rise"] * 8
    export_workdir(tmp_path / "run", tmp_path / "exported")
    exported = load_exported(tmp_path / "exported")
    assert json.loads((tmp_path / "exported/model.json").read_text())["reading"]["frames"] == 4
    items = find_items([str(tmp_path / "data/test")], exported.kind, exported.frames)
    for ours, theirs in zip(all_of_it, predict_items(exported, items), strict=True):
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-4)
    # An array of it gives the same.
    source = open_source(settings(tmp_path / "data", image_size=8), "test")
    arrays = predict(tmp_path / "run", source.images)
    np.testing.assert_allclose(
        [p.probabilities for p in arrays], [p.probabilities for p in all_of_it], rtol=1e-4
    )
    with pytest.raises(UserError, match="holds 8 clips; give one, such as .*take 0"):
        open_run(tmp_path / "run").read(str(tmp_path / "data/test/rise"))
    assert describe(source)["kind"] == "signal"
