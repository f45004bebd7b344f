"""Batches for other loops are those that a training sees."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxconv.data import batches, from_arrays, from_sequence
from jaxconv.data.loading import ResidentLoader, StreamedLoader, take
from jaxconv.errors import UserError
from jaxconv.run import train
from tests.conftest import tiny_config

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 16, 16, 1), np.uint8)
LABELS = np.arange(23) % 3
RESIDENT = from_arrays(IMAGES, LABELS)
STREAMED = from_sequence([*zip(IMAGES, LABELS, strict=True)], "012")
SOURCES = pytest.mark.parametrize("source", [RESIDENT, STREAMED], ids=["resident", "streamed"])


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
            assert one[name].dtype == other[name].dtype


@SOURCES
def test_they_are_what_a_training_sees(tmp_path, monkeypatch, source):
    seen, loader = [], ResidentLoader if source is RESIDENT else StreamedLoader
    plain = loader.train_batches

    def recorded(self, *arguments):
        for batch in plain(self, *arguments):
            taken = take(self.data, batch)
            seen.append({name: np.asarray(taken[name]) for name in ("image", "label", "position")})
            yield batch

    monkeypatch.setattr(loader, "train_batches", recorded)
    config = tiny_config(steps=7, seed=5, log__report=False)
    train(config, tmp_path, devices=jax.devices()[:1], sources=(source, RESIDENT))
    assert len(seen) == 7
    found = list(batches(source, config.batch_size, seed=5, steps=7))
    assert_same(found, seen)
    assert_same(batches(source, config.batch_size, seed=5, start=4, steps=3), seen[4:])
    assert_same(batches(source, config.batch_size, seed=5, start=1, epochs=2), seen[1:6])


def test_both_kinds_of_sources_give_the_same():
    for settings in ({"steps": 9}, {"steps": 5, "repeats": 2}):
        assert_same(batches(RESIDENT, 8, **settings), batches(STREAMED, 8, **settings))
    pairs = [[*batches(source, 8, train=False)] for source in (RESIDENT, STREAMED)]
    for pair in zip(*pairs, strict=True):
        # What fills up the last batch differs, and is masked.
        assert_same(*[[{k: v[b["mask"] > 0] for k, v in b.items()}] for b in pair])


@SOURCES
def test_an_evaluation_has_every_example_once(source):
    found = list(batches(source, 10, train=False))
    assert [batch["image"].shape for batch in found] == [(10, 16, 16, 1)] * 3
    seen = np.concatenate([batch["mask"] for batch in found]) > 0
    index = np.concatenate([batch["index"] for batch in found])[seen]
    np.testing.assert_array_equal(index, np.arange(23))
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in found])[seen], IMAGES)
    whole = list(batches(source, 10, train=False, drop_remainder=True))
    assert_same(whole, found[:2])
    assert_same(batches(source, 10, train=False, start=1), found[1:])
    assert_same(batches(source, 10, train=False, start=1, steps=1), found[1:2])


def test_without_an_end():
    found = batches(RESIDENT, 8)
    for _ in range(20):
        last = next(found)
    assert_same([last], list(batches(RESIDENT, 8, start=19, steps=1)))


@SOURCES
@pytest.mark.parametrize("train", [True, False])
def test_on_devices(source, train):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    settings = {"steps": 4} if train else {"train": False}
    found = list(batches(source, 8, sharding=sharding, **settings))
    assert all(batch["image"].sharding == sharding for batch in found)
    assert found[0]["image"].addressable_shards[0].data.shape == (2, 16, 16, 1)
    assert_same(jax.tree.map(np.asarray, found), batches(source, 8, **settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"start": -1}, "start -1"),
        ({"epochs": 1.0, "steps": 2}, "steps is 2: give one of them"),
        ({"epochs": 1.0, "train": False}, "an evaluation is one pass"),
        ({"repeats": 3}, "repeats is 3; it .* must divide batch_size, 8"),
        ({"repeats": 2, "train": False}, "it is for training"),
        ({"drop_remainder": True}, "drop_remainder is for train=False"),
        ({"batch_size": 6, "sharding": True}, "6 examples cannot be laid out by"),
    ],
)
def test_what_does_not_fit(settings, words):
    if "sharding" in settings:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        settings = settings | {"sharding": NamedSharding(mesh, PartitionSpec("data"))}
    with pytest.raises(UserError, match=words):
        batches(RESIDENT, **{"batch_size": 8, **settings})
