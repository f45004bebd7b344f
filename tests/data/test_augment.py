"""Augmentation: what it does to the pixels, and that its randomness belongs to an example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.config import default_config
from jaxconv.data import augment

pytestmark = pytest.mark.usefixtures("strict_dtypes")
KEY = jax.random.key(0)


def batch_of(count, height=6, width=5, channels=3):
    images = np.random.default_rng(0).integers(1, 256, (count, height, width, channels), np.uint8)
    return {"image": jnp.array(images), "position": jnp.arange(count)}


def test_pad_crop_moves_the_image_and_pads_by_black():
    batch = batch_of(200)
    padded = np.pad(batch["image"], ((0, 0), (2, 2), (2, 2), (0, 0)))
    cropped = augment.pad_crop(KEY, batch, 2)["image"]
    corners = set()
    for i in range(200):
        found = [(y, x) for y in range(5) for x in range(5) if np.array_equal(padded[i, y : y + 6, x : x + 5], cropped[i])]
        assert len(found) == 1
        corners |= set(found)
    assert corners == {(y, x) for y in range(5) for x in range(5)}


def test_flip_mirrors_about_half():
    batch = batch_of(400)
    flipped = np.asarray(augment.flip(KEY, batch)["image"])
    image = np.asarray(batch["image"])
    mirrored = np.array([np.array_equal(flipped[i], image[i, :, ::-1]) for i in range(400)])
    same = np.array([np.array_equal(flipped[i], image[i]) for i in range(400)])
    assert np.all(mirrored ^ same) and 160 < mirrored.sum() < 240


def test_normalise():
    batch = {"image": jnp.array([0, 255, 51], jnp.uint8).reshape(1, 1, 1, 3)}
    one = augment.normalise(batch, (0.5,), (0.5,))["image"]
    np.testing.assert_allclose(one.ravel(), [-1, 1, -0.6], atol=1e-6)
    assert one.dtype == jnp.float32
    each = augment.normalise(batch, (0.0, 0.5, 0.2), (1.0, 0.25, 0.1))["image"]
    np.testing.assert_allclose(each.ravel(), [0, 2, 0], atol=1e-6)
    with pytest.raises(ValueError, match="data.mean has 2 numbers; the images have 3 channels"):
        augment.normalise(batch, (0.5, 0.5), (0.5,))


def test_randomness_belongs_to_the_example():
    """Any part of the global batch is augmented as in the whole, whichever device it lies on."""
    config = default_config()
    config.augment.pad_crop, config.augment.flip = 2, True
    run = jax.jit(augment.make_augment(config))
    batch = batch_of(16)
    whole = run(KEY, batch)["image"]
    for part in (slice(0, 4), slice(10, 16)):
        np.testing.assert_array_equal(run(KEY, jax.tree.map(lambda x, part=part: x[part], batch))["image"], whole[part])
    assert not np.array_equal(run(jax.random.key(1), batch)["image"], whole)


def test_all_off_is_normalisation_alone():
    config, batch = default_config(), batch_of(4)
    np.testing.assert_array_equal(augment.make_augment(config)(KEY, batch)["image"], augment.make_preprocess(config)(batch)["image"])
