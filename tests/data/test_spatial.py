"""Boxes, points and masks move with their image in each augmentation that moves pixels; settings
that would move only the image are errors.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.config import default_config, set_key
from jaxconv.data import augment, spatial
from jaxconv.errors import UserError

pytestmark = pytest.mark.usefixtures("strict_dtypes")
KEY = jax.random.key(0)
MOVING = {
    "random_resized_crop": partial(spatial.random_resized_crop, scale=(0.3, 1.0), ratio=(0.5, 2.0)),
    "scale_jitter": partial(spatial.scale_jitter, sides=(24, 48)),
    "pad_crop": partial(spatial.pad_crop, pixels=5),
    "flip": spatial.flip,
    "alternating_flip": lambda key, batch, **moves: spatial.mirror(
        batch, jnp.arange(len(batch["image"])) % 3 == 0, **moves
    ),
}
MOVES = {"boxes": "boxes", "corner": "points", "mask": "mask", "names": "mask:255"}


def marked_batch(count):
    """Images with a bright rectangle each, and the rectangle as mask, names, box and corners."""
    random = np.random.default_rng(0)
    corner = random.integers(0, (16, 20), (count, 2))
    boxes = np.concatenate([corner, corner + random.integers(5, 9, (count, 2))], 1)
    y, x = np.arange(24).reshape(1, -1, 1), np.arange(28).reshape(1, 1, -1)
    top, left, bottom, right = (boxes[:, n].reshape(-1, 1, 1) for n in range(4))
    mask = ((y >= top) & (y < bottom) & (x >= left) & (x < right)).astype(np.int32)
    return {
        "image": jnp.array(np.tile(mask[..., None] * 200, (1, 1, 1, 3)), jnp.uint8),
        "position": jnp.arange(count),
        "mask": jnp.array(3 * mask),
        "names": jnp.array(np.stack([mask, 2 * mask], -1), jnp.uint8),
        "boxes": jnp.array(boxes.reshape(count, 1, 4), jnp.float32),
        "corner": jnp.array(boxes.reshape(count, 2, 2), jnp.float32),
    }


def configured(settings):
    config = default_config()
    for key, value in settings.items():
        set_key(config, f"augment.{key}", value)
    return config


@pytest.mark.parametrize("name", MOVING)
def test_what_is_marked_moves_with_the_image(name):
    """The image is the same as without targets, and the targets are where its rectangle is."""
    batch = marked_batch(60)
    moved = jax.jit(partial(MOVING[name], moves=MOVES))(KEY, batch)
    np.testing.assert_array_equal(moved["image"], jax.jit(MOVING[name])(KEY, batch)["image"])
    assert {k: (v.shape, v.dtype) for k, v in moved.items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items()
    }
    moved = {k: np.asarray(v) for k, v in moved.items()}
    bright, seen = moved["image"][..., 0] > 100, 0
    assert not np.array_equal(moved["mask"], batch["mask"])
    assert np.mean((moved["mask"] == 3) == bright) > 0.99
    assert np.all((moved["mask"] == 0) | (moved["mask"] == 3))
    # Pixels from outside the image have the fill value of the mask, 0 or 255.
    outside = moved["names"][..., 0] == 255
    assert outside.any() == (name == "pad_crop") and not np.any(moved["mask"][outside])
    np.testing.assert_array_equal((moved["names"][..., 0] == 1), moved["mask"] == 3)
    np.testing.assert_array_equal((moved["names"][..., 1] == 2), moved["mask"] == 3)
    for n, (box, corner) in enumerate(zip(moved["boxes"][:, 0], moved["corner"], strict=True)):
        hull = np.concatenate([corner.min(0), corner.max(0)])
        np.testing.assert_allclose(np.clip(hull, 0, (24, 28, 24, 28)), box, atol=1e-3)
        if np.all(box[2:] - box[:2] > 1):
            rows, columns = np.nonzero(bright[n])
            found = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
            np.testing.assert_allclose(found, box, atol=1)
            seen += 1
    assert seen > 30


def test_all_moves_one_after_the_other():
    """With a config's settings, each augmentation passes the targets on to the next."""
    batch = marked_batch(100)
    config = configured({"scale_jitter": "24,32", "pad_crop": "3", "flip": "True"})
    moved = jax.jit(augment.make_augment(config, 10, moves=MOVES))(KEY, batch)
    bright = np.asarray(moved["image"][..., 0]) * 0.5 + 0.5 > 100 / 255
    assert np.mean((np.asarray(moved["mask"]) == 3) == bright) > 0.985
    top, left, bottom, right = np.asarray(moved["boxes"][:, 0]).T
    seen = right - left > 2
    rows = np.asarray((moved["mask"] == 3).any(2)).sum(1)
    assert seen.sum() > 60
    np.testing.assert_allclose(rows[seen], (bottom - top)[seen], atol=2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"randaugment.layers": "2"}, "config.augment.randaugment.layers is 2; .* its boxes, mask"),
        ({"trivial": "True"}, "config.augment.trivial is True; .* use flip, pad_crop"),
    ],
)
def test_what_moves_the_image_alone_is_refused(settings, words):
    config = configured(settings)
    augment.make_augment(config, 10)
    with pytest.raises(UserError, match=words) as error:
        augment.make_augment(config, 10, moves={"boxes": "boxes", "mask": "mask"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["pad_crop", "flip", "alternating_flip"])
def test_volumes_and_their_masks_move_together(name):
    random = np.random.default_rng(0)
    mask = jnp.array(random.integers(0, 5, (30, 9, 10, 11)), jnp.uint8)
    batch = {"image": mask[..., None] + 7, "mask": mask, "position": jnp.arange(30)}
    moved = jax.jit(partial(MOVING[name], moves={"mask": "mask:255"}))(KEY, batch)
    outside = moved["mask"] == 255
    image = moved["image"][..., 0]
    np.testing.assert_array_equal(jnp.where(outside, 0, moved["mask"] + 7), image)
    assert (name == "pad_crop") == bool(outside.any())
    where = np.argwhere(np.any(np.asarray(image != batch["image"][..., 0]), axis=(1, 2, 3)))
    assert 5 < len(where) <= 30
    if name != "pad_crop":
        mirrored = np.all(np.asarray(image == batch["image"][..., ::-1, 0]), axis=(1, 2, 3))
        assert mirrored.sum() == len(where)
