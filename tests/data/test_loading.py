"""Every example once per epoch and once per evaluation; the order is a function of (seed, step)."""

import itertools

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxconv.data.loading import eval_batches, take, train_indices, train_mirrored


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 3), st.integers(0, 2**70))
def test_every_example_comes_once_an_epoch(examples, batch_size, epochs, seed):
    steps = -(-examples * (epochs + 1) // batch_size)
    sequence = np.concatenate(
        [train_indices(seed, step, batch_size, examples) for step in range(steps)]
    )
    for epoch in range(epochs + 1):
        assert sorted(sequence[epoch * examples : (epoch + 1) * examples]) == list(range(examples))


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = (train_indices(0, step, 100, 100) for step in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, train_indices(1, 0, 100, 100))
    np.testing.assert_array_equal(first, train_indices(0, 0, 100, 100))


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**40))
def test_repeated_augmentation(examples, different, repeats, seed):
    """A batch holds batch / repeats draws, each `repeats` times; over the epochs all examples come
    equally often.
    """
    batch_size = different * repeats
    steps = -(-examples * repeats // batch_size)
    batches = [train_indices(seed, step, batch_size, examples, repeats) for step in range(steps)]
    for batch in batches:
        assert batch.shape == (batch_size,) and batch.dtype == np.int32
        np.testing.assert_array_equal(
            batch.reshape(repeats, -1), np.tile(batch[:different], (repeats, 1))
        )
    sequence = np.concatenate([batch[:different] for batch in batches])
    assert sorted(sequence[:examples]) == list(range(examples))
    np.testing.assert_array_equal(
        sequence,
        np.concatenate([train_indices(seed, step, different, examples) for step in range(steps)]),
    )


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 3), st.integers(0, 2**40))
def test_an_alternating_flip_mirrors_each_example_in_every_second_epoch(
    examples, different, repeats, seed
):
    batch_size = different * repeats
    seen = {i: [] for i in range(examples)}
    for step in range(-(-3 * examples // different)):
        arguments = (seed, step, batch_size, examples, repeats)
        index, mirrored = train_indices(*arguments), train_mirrored(*arguments)
        assert mirrored.shape == (batch_size,) and mirrored.dtype == bool
        np.testing.assert_array_equal(mirrored, np.tile(mirrored[:different], repeats))
        for i, one in zip(index[:different], mirrored[:different], strict=True):
            seen[int(i)].append(bool(one))
    for found in seen.values():
        assert len(found) >= 3 and all(a != b for a, b in itertools.pairwise(found))


def test_in_the_first_epoch_an_alternating_flip_mirrors_half():
    assert 450 < train_mirrored(0, 0, 1000, 1000).sum() < 550
    assert (train_mirrored(0, 0, 1000, 1000) != train_mirrored(1, 0, 1000, 1000)).any()


@given(st.integers(1, 100), st.integers(1, 40))
def test_every_example_comes_once_an_evaluation(examples, batch_size):
    batches = eval_batches(examples, batch_size)
    assert {batch["index"].shape for batch in batches} == {(batch_size,)}
    seen = np.concatenate([batch["index"][batch["mask"] > 0] for batch in batches])
    assert seen.tolist() == list(range(examples))


def test_take():
    data = {"image": jnp.arange(24, dtype=jnp.uint8).reshape(6, 2, 2, 1), "label": jnp.arange(6)}
    batch = take(data, {"index": jnp.array([5, 0])})
    np.testing.assert_array_equal(batch["label"], [5, 0])
    np.testing.assert_array_equal(batch["image"][0].ravel(), [20, 21, 22, 23])
