"""Our geometry and augmentations in pipelines on the host: numpy in, numpy out, by Grain or
tf.data; and the functions for the device on the batches that these give.
"""

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.data import geometry
from jaxconv.data.augment import normalise
from jaxconv.data.spatial import flip, pad_crop

SIZE = (12, 12)
MOVES = {"boxes": "boxes", "mask": "mask"}


def example(i):
    """An image with one bright rectangle, its box, and its mask."""
    random = np.random.default_rng(i)
    top, left = random.integers(2, 10, 2)
    image, mask = np.zeros((24, 24, 1), np.uint8), np.zeros((24, 24), np.uint8)
    image[top : top + 8, left : left + 8], mask[top : top + 8, left : left + 8] = 255, 1
    return {"image": image, "boxes": np.float32([[top, left, top + 8, left + 8]]), "mask": mask}


def random_crop(example, random):
    """A random part of the image and of its targets, flipped with probability 1/2, in numpy."""
    image = example["image"]
    height, width = image.shape[:2]
    box = geometry.crop_box(random, height, width, scale=(0.5, 1.0))
    transform = geometry.crop(box, SIZE)
    if random.random() < 0.5:
        transform = geometry.compose(transform, geometry.flip(SIZE[1]))
    targets = geometry.move(example, MOVES, transform, SIZE)
    return targets | {"image": geometry.move_mask(image, transform, SIZE)}


def check(batch):
    """Pixels, box and mask are still those of one rectangle."""
    assert all(isinstance(value, np.ndarray) for value in batch.values())
    assert batch["image"].dtype == np.uint8 and batch["boxes"].dtype == np.float32
    for image, boxes, mask in zip(batch["image"], batch["boxes"], batch["mask"], strict=True):
        np.testing.assert_array_equal(image[..., 0] == 255, mask == 1)
        y, x = np.nonzero(mask)
        around = [y.min(), x.min(), y.max() + 1, x.max() + 1]
        assert np.abs(boxes[0] - around).max() <= 1.01


def test_in_a_grain_pipeline():
    data = grain.MapDataset.range(32).map(example).seed(0).random_map(random_crop).batch(8)
    batches = [*data]
    assert len(batches) == 4 and batches[0]["image"].shape == (8, *SIZE, 1)
    for batch, again in zip(batches, data, strict=True):
        check(batch)
        jax.tree.map(np.testing.assert_array_equal, batch, again)
    widths = {float(b[0, 3] - b[0, 1]) for batch in batches for b in batch["boxes"]}
    assert len(widths) > 10  # the crops differ


@pytest.mark.slow
def test_in_a_tf_data_pipeline():
    tf = pytest.importorskip("tensorflow")

    def load(i):
        made = random_crop(example(i), np.random.default_rng((0, int(i))))
        return made["image"], made["boxes"], made["mask"]

    kinds = (tf.uint8, tf.float32, tf.uint8)
    data = tf.data.Dataset.range(32).map(lambda i: tf.numpy_function(load, [i], kinds)).batch(8)
    batches = [*data.as_numpy_iterator()]
    assert len(batches) == 4
    for batch in batches:
        check(dict(zip(("image", "boxes", "mask"), batch, strict=True)))


def test_the_device_s_functions_on_a_batch_of_numpy_arrays():
    """With or without jit; the targets move along."""
    batch = next(iter(grain.MapDataset.range(8).map(example).batch(8)))
    batch |= {"position": np.arange(8)}

    def augment(key, batch):
        keys = jax.random.split(key)
        return flip(keys[0], pad_crop(keys[1], batch, pixels=2, moves=MOVES), MOVES)

    plain = augment(jax.random.key(0), batch)
    jitted = jax.jit(augment)(jax.random.key(0), batch)
    jax.tree.map(np.testing.assert_array_equal, plain, jitted)
    assert np.abs(plain["image"] - batch["image"]).max() == 255
    check(jax.tree.map(np.asarray, plain))
    x = normalise(plain, mean=(0.5,), std=(0.5,))["image"]
    assert x.dtype == jnp.float32 and x.min() == -1 and x.max() == 1
