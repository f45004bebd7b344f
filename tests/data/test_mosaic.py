"""Mosaics against four images laid by hand, pixel by pixel; the same on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.data.geometry import KEPT
from jaxconv.data.mosaic import largest, mosaic, partners
from jaxconv.data.objects import as_bits, of_bits
from jaxconv.errors import UserError
from jaxconv.run import train
from tests.data.test_canvas import RED, red_box
from tests.tasks.detection.test_task import config_of

GREY, H, W = (9, 10, 11), 32, 40
BOXES = {"boxes": "boxes"}


def batch_of(count=8, most=3, seed=0, with_seen=True):
    """Images of one colour each, with a red rectangle; with padding at the bottom and right."""
    random = np.random.default_rng(seed)
    image = np.zeros((count, H, W, 3), np.uint8)
    boxes = np.zeros((count, most, 4), np.float32)
    seen = np.full((count, 2), (H, W), np.float32)
    for n in range(count):
        if with_seen and n % 2:
            seen[n] = random.integers(20, 33), random.integers(20, 41)
        high, wide = (int(side) for side in seen[n])
        image[n, :high, :wide] = (20, 100 + n, 60 + 9 * n)
        top, left = 2 * random.integers(0, 5, 2)
        h, w = 2 * random.integers(3, 5, 2)
        image[n, top : top + h, left : left + w] = RED
        boxes[n, 0] = top, left, top + h, left + w
    valid = boxes.any(axis=-1)
    classes = np.where(valid, np.arange(count)[:, None], -1).astype(np.int32)
    batch = {"image": image, "boxes": boxes, "valid": valid, "classes": classes}
    batch |= {"position": np.arange(count, dtype=np.int32), "crowd": np.zeros_like(valid)}
    return batch | ({"seen": seen} if with_seen else {})


def by_hand(batch, n, centre):
    """The image of example n whose four meet at `centre`, and its boxes, one pixel at a time."""
    count = len(batch["image"])
    out = np.full((H, W, 3), GREY, np.uint8)
    seen = batch.get("seen", np.full((count, 2), (H, W)))
    found = []
    for k in range(4):
        other = (n + k * (count // 4)) % count
        full = batch["image"][other].astype(np.float32)
        small = np.asarray(jax.image.resize(full, (H // 2, W // 2, 3), "linear")).round()
        sides = [int(side) // 2 for side in seen[other]]
        corner = [centre[a] - (0 if (k // 2, k % 2)[a] else sides[a]) for a in range(2)]
        for y in range(sides[0]):
            for x in range(sides[1]):
                if 0 <= corner[0] + y < H and 0 <= corner[1] + x < W:
                    out[corner[0] + y, corner[1] + x] = small[y, x]
        box = batch["boxes"][other, 0] / 2 + np.tile(corner, 2)
        limit = [max(corner[0], 0), max(corner[1], 0)]
        end = [min(corner[a] + sides[a], (H, W)[a]) for a in range(2)]
        box = [*np.clip(box[:2], limit, end), *np.clip(box[2:], limit, end)]
        if box[2] > box[0] and box[3] > box[1]:
            found.append((other, box))
    return out, sorted(found, key=lambda one: -(one[1][2] - one[1][0]) * (one[1][3] - one[1][1]))


@pytest.mark.parametrize("with_seen", [True, False])
def test_four_images_are_laid_by_hand(with_seen):
    batch = batch_of(with_seen=with_seen)
    found = jax.tree.map(
        np.asarray, jax.jit(lambda b: mosaic(jax.random.key(1), b, 1.0, GREY, BOXES))(batch)
    )
    if with_seen:
        assert (found["seen"] == (H, W)).all()
    centres = set()
    for n in range(8):
        # The centre is found again: where the image is what is laid by hand around it.
        matches = [
            (y, x)
            for y in range(H // 4, 3 * H // 4 + 1)
            for x in range(W // 4, 3 * W // 4 + 1)
            if np.abs(in_blocks(batch, n, (y, x)) - found["image"][n].astype(int)).max() <= 1
        ]
        assert len(matches) == 1, matches
        centres.add(matches[0])
        image, objects = by_hand(batch, n, matches[0])
        assert np.abs(image.astype(int) - found["image"][n].astype(int)).max() <= 1
        kept = [(int(k), box) for k, box, real in zip(
            found["classes"][n], found["boxes"][n], found["valid"][n], strict=True
        ) if real]  # fmt: skip
        assert len(kept) == min(3, len(objects))
        for (label, box), (other, wanted) in zip(kept, objects, strict=False):
            np.testing.assert_allclose(box, wanted, atol=1e-4)
            assert label == other or area(box) == pytest.approx(area(wanted))
    assert len(centres) > 4


def area(box):
    return float((box[2] - box[0]) * (box[3] - box[1]))


def in_blocks(batch, n, centre):
    """The image of `by_hand`, an image at a time."""
    count, out = len(batch["image"]), np.full((H, W, 3), GREY, np.uint8)
    seen = batch.get("seen", np.full((count, 2), (H, W)))
    for k in range(4):
        other = (n + k * (count // 4)) % count
        sides = [int(side) // 2 for side in seen[other]]
        corner = [centre[a] - (0 if (k // 2, k % 2)[a] else sides[a]) for a in range(2)]
        cut = [max(0, -c) for c in corner]
        part = halved(batch, other)[cut[0] : sides[0], cut[1] : sides[1]]
        top, left = (max(0, c) for c in corner)
        place = out[top : top + part.shape[0], left : left + part.shape[1]]
        place[:] = part[: place.shape[0], : place.shape[1]]
    return out.astype(int)


def halved(batch, other):
    cache = batch.setdefault("_halves", {})
    if other not in cache:
        full = batch["image"][other].astype(np.float32)
        cache[other] = np.asarray(jax.image.resize(full, (H // 2, W // 2, 3), "linear")).round()
    return cache[other]


def test_partners_are_of_the_global_batch():
    """The same whether the batch lies on one device or on four."""
    x = jnp.arange(12)
    alone = jnp.stack(partners(x))
    assert alone[:, 0].tolist() == [0, 3, 6, 9] and alone[:, 11].tolist() == [11, 2, 5, 8]
    apart = jax.pmap(lambda x: jnp.stack(partners(x, "d")), "d")(x.reshape(4, 3))
    np.testing.assert_array_equal(jnp.moveaxis(apart, 0, 1).reshape(4, 12), alone)
    assert jnp.stack(partners(jnp.arange(2)))[:, 0].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kept", KEPT)
def test_a_mosaic_is_the_same_on_any_devices(kept):
    batch, key = batch_of(), jax.random.key(2)
    alone = jax.jit(lambda b: mosaic(key, b, 0.7, GREY, BOXES, kept))(batch)
    parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    apart = jax.pmap(lambda b: mosaic(key, b, 0.7, GREY, BOXES, kept, "d"), "d")(parts)
    for name, value in alone.items():
        np.testing.assert_allclose(apart[name].reshape(value.shape), value, atol=1, err_msg=name)
    same = (np.asarray(alone["image"]) == batch["image"]).all(axis=(1, 2, 3))
    assert 0 < same.sum() < 8
    for n in np.flatnonzero(same):
        np.testing.assert_array_equal(alone["boxes"][n], batch["boxes"][n])
        assert alone["seen"][n].tolist() == batch["seen"][n].tolist()


def test_centres_decide_if_asked():
    """Fewer objects stay than are visible, each of which is red where its box says."""
    batch, counts = batch_of(16, most=4, seed=3), {}
    for kept in KEPT:
        found = mosaic(jax.random.key(0), batch, 1.0, GREY, BOXES, kept)
        counts[kept] = int(found["valid"].sum())
        for image, boxes, valid in zip(
            np.asarray(found["image"]), found["boxes"], found["valid"], strict=True
        ):
            for box in np.asarray(boxes)[np.asarray(valid)]:
                top, left, bottom, right = (int(v) for v in box)
                if bottom - top > 2 and right - left > 2:
                    part = image[top + 1 : bottom - 1, left + 1 : right - 1]
                    assert red_box(part) is not None and (part[..., 0] > 140).all()
    assert counts["centre"] < counts["visible"] <= 64


def test_the_largest_objects_stay():
    boxes = np.zeros((1, 5, 4), np.float32)
    boxes[0, :, 2:] = [[3, 3], [9, 9], [5, 5], [8, 8], [1, 1]]
    valid = jnp.array([[True, False, True, True, True]])
    assert largest(jnp.asarray(boxes), valid, 3).tolist() == [[3, 2, 0]]
    assert largest(jnp.asarray(boxes), valid[:, ::-1], 2).tolist() == [[1, 2]]


def test_masks_and_keypoints_move_with_their_objects():
    """The mask of each object that stays is red, its keypoint is the corner of its box."""
    batch = batch_of(8, most=9, seed=5)
    boxes, valid = batch["boxes"], batch["valid"]
    bits = [
        as_bits(np.stack([rectangle(box) for box in of_image]), 9) for of_image in boxes.astype(int)
    ]
    corners = np.concatenate([boxes[:, :, None, :2], np.full((8, 9, 1, 1), 2.0)], axis=-1)
    batch |= {"masks": np.stack(bits), "keypoints": corners.astype(np.float32)}
    batch["filled"] = np.where(valid, batch["classes"] / 10, 0).astype(np.float32)
    moves = {**BOXES, "masks": "mask", "keypoints": "keypoints:0-0"}
    run = jax.jit(lambda b: mosaic(jax.random.key(4), b, 1.0, GREY, moves))
    found = jax.tree.map(np.asarray, run(batch))
    visible = count = 0
    for n in range(8):
        masks = of_bits(found["masks"][n], 9)
        for mask, box, real, points, filled, label in zip(
            masks, *(found[name][n] for name in (
                "boxes", "valid", "keypoints", "filled", "classes"
            )), strict=True
        ):  # fmt: skip
            if not real:
                assert not mask.any()
                continue
            count += 1
            assert filled == pytest.approx(label / 10)
            inside = rectangle(np.round(box).astype(int))
            # Boxes may end at half pixels.
            assert (mask ^ inside).sum() <= (box[2] - box[0]) + (box[3] - box[1]) + 2
            if points[0, 2]:
                visible += 1
                np.testing.assert_allclose(points[0, :2], box[:2], atol=1e-4)
    assert 8 < visible < count


def rectangle(box):
    mask = np.zeros((H, W), bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return mask


def test_what_a_mosaic_does_not_know_is_refused(tmp_path):
    config = config_of(augment__mosaic=0.5)
    config.task.name = "segmentation"
    with pytest.raises(UserError, match=r"augment\.mosaic is 0\.5"):
        train(config, str(tmp_path))
