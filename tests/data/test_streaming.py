"""Streamed batches: equal to resident ones for any number of threads and processes, and from any
first step; damaged examples.
"""

import errno
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from jaxconv.config import default_config
from jaxconv.data import DamagedError, from_arrays, from_sequence
from jaxconv.data.interface import describe, generator
from jaxconv.data.loading import Order, Reader, ResidentLoader, StreamedLoader, take, train_indices
from jaxconv.data.sources import open_source
from jaxconv.data.stored import StoredSource, load
from jaxconv.errors import UserError
from jaxconv.evaluation.evaluation import evaluate_workdir
from jaxconv.run import train
from jaxconv.train.parallel import make_parallel
from jaxconv.train.workdir import read_metrics
from tests.conftest import tiny_config, write_images

CROPS = {"augment__random_resized_crop__scale": (0.2, 1.0)}


def folder_config(path, **changes):
    config = tiny_config(
        **{"data__source": f"folder:{path}", "data__image_size": 8, "data__mean": (0.5,), **changes}
    )
    config.augment.pad_crop = 0
    return config


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """23 images of many sizes for training, 8 for evaluation."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split, counts in {"train": (12, 11), "test": (4, 4)}.items():
        for name, count in zip(("cat", "dog"), counts, strict=True):
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                high, wide = random.integers(3, 9, 2)
                pixels = np.kron(
                    random.integers(0, 256, (4, 5, 3), np.uint8), np.ones((high, wide, 1), np.uint8)
                )
                Image.fromarray(pixels).save(
                    root / split / name / f"{n:03}.{'jpg' if n % 2 else 'png'}", quality=90
                )
    return root


def batches(source, first=0, last=9, batch_size=4, seed=3, **settings):
    return list(Reader(source, **settings).train_batches(seed, first, last, batch_size))


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_streamed_batches_are_the_resident_ones(photographs, decoder):
    if decoder == "simplejpeg":
        pytest.importorskip("simplejpeg")
        pytest.importorskip("cv2")
    config = folder_config(photographs, data__decoder=decoder)
    parallel = make_parallel("jit", jax.devices()[:1])
    resident = ResidentLoader(open_source(config.data, "train", augment=config.augment), parallel)
    config.data.resident_limit = 0
    streamed = StreamedLoader(
        open_source(config.data, "train", augment=config.augment), parallel, config.data
    )
    pairs = list(
        zip(
            resident.train_batches(Order((3,), 4, mirrors=True), 5, 25),
            streamed.train_batches(Order((3,), 4, mirrors=True), 5, 25),
            strict=True,
        )
    )
    assert len(pairs) == 20
    for indices, sent in pairs:
        gathered = take(resident.data, indices)
        for name in ("image", "label", "position", "mirrored"):
            np.testing.assert_array_equal(gathered[name], sent[name])
    np.testing.assert_array_equal(resident.some_images(7), streamed.some_images(7))
    for indices, sent in zip(resident.eval_batches(3), streamed.eval_batches(3), strict=True):
        seen = np.asarray(indices["mask"]) > 0
        np.testing.assert_array_equal(indices["mask"], sent["mask"])
        np.testing.assert_array_equal(
            take(resident.data, indices)["image"][seen], sent["image"][seen]
        )


def test_any_number_of_threads_processes_and_any_start(photographs):
    """With random crops, over more than one epoch: 23 examples, 9 steps of 4."""
    config = folder_config(photographs, **CROPS)
    source = open_source(config.data, "train", augment=config.augment)
    whole = batches(source, threads=1)
    assert_same(batches(source, threads=7), whole)
    assert_same(batches(source, first=4), whole[4:])
    for processes in (2, 4):
        parts = [batches(source, process=(i, processes)) for i in range(processes)]
        joined = [
            {name: np.concatenate([part[name] for part in step]) for name in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_same(joined, whole)
    labels = source.labels_of_all()
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(batch["label"], labels[train_indices(3, step, 4, 23)])
    with pytest.raises(UserError, match="4 examples per batch / 3 processes = 1.33 is not a whole"):
        batches(source, process=(0, 3))


def test_repeats_are_cropped_apart(photographs):
    """Repeated augmentation: each example twice in a batch, with the resident loader's indices and
    different crops.
    """
    config = folder_config(photographs, **CROPS)
    source = open_source(config.data, "train", augment=config.augment)
    (batch,) = Reader(source).train_batches(3, 2, 3, 8, repeats=2)
    np.testing.assert_array_equal(
        batch["label"], source.labels_of_all()[train_indices(3, 2, 8, 23, repeats=2)]
    )
    assert not np.array_equal(batch["image"][:4], batch["image"][4:])


def test_images_of_one_size_are_cropped_on_the_device(tmp_path):
    """They are whole and in memory; resized images are cropped while they are read."""
    write_images(tmp_path, count=3)
    for size, cropped in ((0, False), (6, True)):
        config = folder_config(tmp_path, data__image_size=size, **CROPS)
        source = open_source(config.data, "train", augment=config.augment)
        assert describe(source)["cropped"] == cropped == isinstance(source, StoredSource)


def test_every_pass_crops_anew(photographs):
    config = folder_config(photographs, **CROPS)
    source = open_source(config.data, "train", augment=config.augment)
    index = {
        epoch: np.flatnonzero(train_indices(3, 0, 46, 23)[23 * epoch : 23 * (epoch + 1)] == 7)[0]
        + 23 * epoch
        for epoch in (0, 1)
    }
    (both,) = batches(source, last=1, batch_size=46)
    assert not np.array_equal(both["image"][index[0]], both["image"][index[1]])
    np.testing.assert_array_equal(both["image"][index[1]], source.read(7, (3, index[1]))["image"])


def test_evaluation_is_split_among_processes(photographs):
    config = folder_config(photographs, data__resident_limit=0)
    source = open_source(config.data, "test")
    parts = [list(Reader(source, process=(i, 2)).eval_batches(6)) for i in range(2)]
    joined = [
        np.concatenate([part[name] for part in step])
        for name in ("mask", "label")
        for step in zip(*parts, strict=True)
    ]
    assert np.concatenate(joined[:2]).tolist() == [1] * 8 + [0] * 4
    assert np.concatenate(joined[2:])[:8].tolist() == [0] * 4 + [1] * 4


class Counting:
    """A sequence that counts its reads, with some damaged items."""

    def __init__(self, examples, damaged=()):
        self.examples, self.damaged, self.read = examples, damaged, []

    def __len__(self):
        return self.examples

    def __getitem__(self, i):
        self.read.append(i)
        if i in self.damaged:
            raise DamagedError("cut in two")
        return {"image": np.full((8, 8, 1), i, np.uint8), "label": i % 2}


def test_start_skips_what_came_before():
    items = Counting(100)
    source = from_sequence(items, ("even", "odd"))
    items.read.clear()
    (batch,) = batches(source, first=20, last=21, batch_size=4)
    assert (
        sorted(items.read)
        == sorted(batch["image"][:, 0, 0, 0])
        == sorted(train_indices(3, 20, 4, 100))
    )


def test_damaged_example_is_replaced_counted_and_named_once(caplog):
    source = from_sequence(Counting(10, damaged=(4, 5)), ("even", "odd"))
    with caplog.at_level(logging.WARNING, logger="jaxconv"):
        reader = Reader(source, threads=4, damaged_share=0.2)
        batch = [b["image"][:, 0, 0, 0] for b in reader.train_batches(3, 0, 10, 5)]
    expected = np.concatenate([train_indices(3, step, 5, 10) for step in range(10)])
    np.testing.assert_array_equal(
        np.concatenate(batch), np.where(np.isin(expected, (4, 5)), 6, expected)
    )
    assert reader.damaged == {"item 4", "item 5"}
    assert sorted(record.args[1:] for record in caplog.records) == [
        ("item 4", "cut in two"),
        ("item 5", "cut in two"),
    ]
    with pytest.raises(
        UserError,
        match=r"2 of 10 examples are damaged, more than a share of 0.1; the last: item \d: cut in "
        r"two",
    ):
        list(Reader(source, damaged_share=0.1).train_batches(3, 0, 10, 5))
    items = Counting(4)
    source = from_sequence(items, ("even", "odd"))
    items.damaged = range(4)
    with pytest.raises(UserError, match="no example can be read"):
        list(Reader(source, damaged_share=1.0).train_batches(0, 0, 1, 4))


def test_evaluation_leaves_damaged_examples_out():
    source = from_sequence(Counting(10, damaged=(4,)), ("even", "odd"))
    streamed = StreamedLoader(
        source, make_parallel("jit", jax.devices()[:1]), tiny_config(data__damaged_share=0.1).data
    )
    for _ in range(2):
        mask = np.concatenate([batch["mask"] for batch in streamed.eval_batches(4)])
        assert mask.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0] and streamed.left_out == 1


class Busy(Counting):
    """Items that cannot be read the first few times."""

    def __init__(self, examples, error, times, busy):
        super().__init__(examples)
        self.error, self.times, self.busy = error, times, busy
        self.left = dict.fromkeys(busy, 0)

    def begin(self):
        self.left = dict.fromkeys(self.busy, self.times)

    def __getitem__(self, i):
        if self.left.get(i):
            self.left[i] -= 1
            raise self.error
        return super().__getitem__(i)


def damaged_from(cause):
    error = DamagedError("cannot be read")
    error.__cause__ = cause
    return error


@pytest.fixture
def pauses(monkeypatch):
    slept = []
    monkeypatch.setattr("jaxconv.data.stored.time.sleep", slept.append)
    return slept


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        TimeoutError(),
        damaged_from(OSError(errno.ESTALE, "Stale file handle")),
    ],
)
def test_an_error_that_passes_is_waited_out(error, pauses):
    items = Busy(8, error, 3, (2, 5))
    source = from_sequence(items, "ab")
    items.begin()
    mask = [batch["mask"].tolist() for batch in Reader(source).eval_batches(4)]
    assert mask == [[1] * 4] * 2 and sorted(pauses) == [0.1, 0.1, 1.0, 1.0, 5.0, 5.0]
    items.begin()
    assert len(load(source)) == 8


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        DamagedError("cut in two"),
        OSError("image file is truncated"),
    ],
)
def test_an_error_that_stays_is_not_waited_for(error, pauses):
    items = Busy(8, error, 99, (2,))
    source = from_sequence(items, "ab")
    items.begin()
    reader = Reader(source, damaged_share=0.2)
    assert sum(batch["mask"].sum() for batch in reader.eval_batches(4)) == 7 and not pauses
    with pytest.raises(UserError, match=f"item 2: .*{error.args[-1]}"):
        load(source)


def test_every_evaluation_counts_afresh(pauses):
    """More examples than may be damaged are unreadable in turn, and never too many at once."""
    items = Busy(10, OSError(errno.EIO, "Input/output error"), 9, ())
    source = from_sequence(items, "ab")
    streamed = StreamedLoader(
        source, make_parallel("jit", jax.devices()[:1]), tiny_config(data__damaged_share=0.1).data
    )
    for busy in ((3,), (), (7,), (1,)):
        items.busy = busy
        items.begin()
        seen = sum(batch["mask"].sum() for batch in streamed.eval_batches(4))
        assert seen == 10 - len(busy) and streamed.left_out == len(busy)
    reader = Reader(source, damaged_share=0.2)
    for step, busy in enumerate(((3,), (7,), (1,))):
        items.busy = busy
        items.begin()
        list(reader.train_batches(0, step, step + 1, 10))
        assert reader.damaged == {f"item {busy[0]}"}


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_streamed_training_is_the_resident_one(photographs, tmp_path, mode):
    """All numbers are bit-identical, on four devices, also after stopping and resuming."""
    config = folder_config(
        photographs, steps=6, parallel=mode, optimizer__schedule__name="constant"
    )
    resident = train(config, tmp_path / "resident")
    streamed_config = folder_config(
        photographs,
        steps=6,
        parallel=mode,
        optimizer__schedule__name="constant",
        data__resident_limit=0,
    )
    streamed = train(streamed_config, tmp_path / "streamed")
    assert streamed == resident and resident["examples"] == 8
    streamed_config.steps = 3
    train(streamed_config, tmp_path / "resumed")
    streamed_config.steps = 6
    streamed_config.data.threads = 3
    assert train(streamed_config, tmp_path / "resumed") == resident
    evaluated = evaluate_workdir(tmp_path / "resumed")
    assert evaluated.pop("step") == 6 and evaluated == resident

    def losses(run):
        return [row["train/loss"] for row in read_metrics(tmp_path / run) if "train/loss" in row]

    assert losses("streamed") == losses("resident")


def test_resume_asks_for_the_same_decoder(photographs, tmp_path, monkeypatch):
    config = folder_config(photographs, steps=3, **CROPS)
    train(config, tmp_path / "run")
    monkeypatch.setattr("jaxconv.data.decode.decoder_versions", lambda name: "pillow 1.0")
    with pytest.raises(UserError, match="train_decoder was .*, now it is pillow 1.0; restore it"):
        train(config, tmp_path / "run")


def test_training_on_a_sequence(tmp_path):
    config = tiny_config(steps=3, data__damaged_share=0.1)
    result = train(
        config,
        tmp_path,
        sources=(from_sequence(Counting(16, damaged=(3,)), "ab"), from_sequence(Counting(6), "ab")),
    )
    assert result["examples"] == 6
    other = from_arrays(np.zeros((5, 8, 8, 1), np.uint8), np.zeros(5, np.int64), "ab")
    assert evaluate_workdir(tmp_path, source=other)["examples"] == 5


def test_scale_jitter_is_no_smaller_than_the_image(photographs):
    config = folder_config(photographs, augment__scale_jitter=(6, 9))
    with pytest.raises(
        UserError, match="scale_jitter starts at 6; it must be at least data.image_size, 8"
    ):
        open_source(config.data, "train", augment=config.augment)


def test_evaluation_keeps_the_middle(photographs):
    """At a crop ratio of 1/2, the middle quarter: the same as an image of only that quarter."""
    config = default_config().data
    config.source, config.image_size, config.decoder, config.crop_ratio = (
        f"folder:{photographs}",
        4,
        "pillow",
        0.5,
    )
    source = open_source(config, "test")
    with Image.open(photographs / "test/cat/000.png") as image:
        side = round(min(image.size) / 2)
        left, top = ((length - side) // 2 for length in image.size)
        expected = image.crop((left, top, left + side, top + side)).resize(
            (4, 4), Image.Resampling.BILINEAR
        )
    np.testing.assert_array_equal(source[0]["image"], expected)


def test_generator_is_a_function_of_seed_and_position():
    assert generator(1, "crop", 5).integers(1 << 60) != generator(1, "crop", 6).integers(1 << 60)
