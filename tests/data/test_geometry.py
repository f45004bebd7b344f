"""Geometry: random boxes against torchvision's, evaluation boxes against the papers' resizing and
cropping; transforms and what they do to boxes, points and masks.
"""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxconv.config import default_config
from jaxconv.data import geometry, sources
from jaxconv.data.geometry import crop_box, eval_box, jitter_box, train_box
from jaxconv.data.interface import Target, generator
from jaxconv.data.objects import as_bits, of_bits

SIDES = st.integers(1, 900)
EDGES = st.integers(2, 30)
FACTORS = st.floats(0.3, 3)
PIXELS = st.integers(-20, 20)
SEEDS = st.integers(0, 10**6)
KINDS = {"boxes": "boxes", "points": "points", "mask": "mask", "names": "mask:255"}


@st.composite
def transforms(draw, turns=True):
    """A transform of an image of 20 x 30 pixels, composed of up to three of the five."""
    top, left, height, width = (draw(st.integers(1, 20)) for _ in range(4))
    ways = [
        geometry.crop((top, left, height, width), (draw(EDGES), draw(EDGES))),
        geometry.flip(30),
        geometry.scale(draw(FACTORS), draw(FACTORS)),
        geometry.shift(draw(PIXELS), draw(PIXELS)),
    ]
    if turns:
        ways.append(geometry.rotate(draw(st.floats(-180, 180)), 20, 30))
    return geometry.compose(*draw(st.lists(st.sampled_from(ways), min_size=1, max_size=3)))


def boxes_of(seed, count=4, size=(20, 30)):
    """Boxes [N, 4] of at least one pixel each way, in an image of this size."""
    random = np.random.default_rng(seed)
    corner = random.uniform(0, np.array(size) - 1, (count, 2))
    end = corner + random.uniform(1, np.array(size) - corner)
    return np.concatenate([corner, end], axis=1).astype(np.float32)


def points_of(seed, count=5):
    return np.random.default_rng(seed).uniform(0, 30, (count, 2)).astype(np.float32)


def tight_box(mask):
    """The box (top, left, bottom, right) of what is not 0 in a mask [H, W]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float32)


@given(transforms(), SEEDS)
def test_the_inverse_gives_points_back(transform, seed):
    points = points_of(seed)
    back = geometry.move_points(
        geometry.move_points(points, transform), geometry.inverse(transform)
    )
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, points, atol=0.01)


@given(transforms(turns=False), SEEDS)
def test_the_inverse_gives_boxes_back(transform, seed):
    boxes = boxes_of(seed)
    moved = geometry.move_boxes(boxes, transform)
    assert moved.dtype == np.float32 and np.all(moved[:, :2] < moved[:, 2:])
    back = geometry.move_boxes(moved, geometry.inverse(transform))
    np.testing.assert_allclose(back, boxes, atol=0.01)


@given(transforms(), SEEDS)
def test_a_moved_box_holds_what_it_held(transform, seed):
    (box,) = boxes_of(seed, 1)
    share = np.random.default_rng(seed).uniform(0, 1, (50, 2)).astype(np.float32)
    inside = box[:2].reshape(1, 2) + share * (box[2:] - box[:2]).reshape(1, 2)
    moved, points = geometry.move_boxes(box, transform), geometry.move_points(inside, transform)
    room = 0.01 + 1e-5 * np.abs(moved).max()
    assert np.all(points >= moved[:2] - room) and np.all(points <= moved[2:] + room)


@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.booleans(), st.sampled_from([(), (3,)]))
def test_the_inverse_gives_masks_back(seed, pad, more, flipped, channels):
    """For padding, a flip, and a crop that cuts nothing off."""
    mask = np.random.default_rng(seed).integers(0, 9, (7, 11, *channels), np.uint8)
    ways = [geometry.shift(pad, more), geometry.flip(11 + 2 * more)] if flipped else []
    there = geometry.compose(*ways, geometry.shift(pad, more))
    height, width = 7 + 4 * pad, 11 + 4 * more
    moved = geometry.move_mask(mask, there, (height, width), fill=255)
    assert moved.dtype == mask.dtype and moved.shape == (height, width, *channels)
    assert np.sum(moved == 255) == moved.size - mask.size
    back = geometry.move_mask(moved, geometry.inverse(there), (7, 11), fill=255)
    np.testing.assert_array_equal(back, mask)


@given(SEEDS, st.integers(0, 10), st.integers(0, 10), st.integers(1, 10), st.integers(1, 20))
def test_whole_pixel_moves_of_masks_are_slices(seed, top, left, height, width):
    mask = np.random.default_rng(seed).integers(0, 9, (20, 30), np.int32)
    crop = geometry.crop((top, left, height, width), (height, width))
    cut = geometry.move_mask(mask, crop, (height, width))
    np.testing.assert_array_equal(cut, mask[top : top + height, left : left + width])
    mirrored = geometry.move_mask(mask, geometry.flip(30), (20, 30))
    np.testing.assert_array_equal(mirrored, mask[:, ::-1])
    padded = geometry.move_mask(mask, geometry.shift(top, left), (20 + top, 30 + left), fill=7)
    np.testing.assert_array_equal(padded, np.pad(mask, ((top, 0), (left, 0)), constant_values=7))


@given(transforms(), transforms(), transforms(), SEEDS)
def test_compose_is_one_after_the_other(first, second, third, seed):
    points = points_of(seed)
    apart = functools.reduce(geometry.move_points, (first, second, third), points)
    left = geometry.compose(geometry.compose(first, second), third)
    right = geometry.compose(first, geometry.compose(second, third))
    for transform in (geometry.compose(first, second, third), left, right):
        moved = geometry.move_points(points, transform)
        np.testing.assert_allclose(moved, apart, rtol=1e-4, atol=0.05)


@given(SEEDS, FACTORS, FACTORS, PIXELS, PIXELS, st.booleans())
def test_the_box_of_a_moved_mask_is_the_moved_box(seed, down, across, y, x, flipped):
    """Within half a pixel, for a rectangle with more than a pixel each way left."""
    (box,) = np.round(boxes_of(seed, 1)).astype(int)
    mask = np.zeros((20, 30), np.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 5
    ways = [geometry.scale(down, across), geometry.shift(y, x)]
    transform = geometry.compose(*ways, *([geometry.flip(40)] if flipped else []))
    targets = {"mask": mask, "boxes": np.stack([tight_box(mask)]), "label": 3}
    moved = geometry.move(targets, {"mask": "mask", "boxes": "boxes"}, transform, (25, 40))
    assert moved["label"] == 3
    (expected,) = moved["boxes"]
    assume(np.all(expected[2:] - expected[:2] > 1))
    np.testing.assert_allclose(tight_box(moved["mask"]), expected, atol=0.501)


@given(transforms(), SEEDS)
def test_the_order_of_boxes_does_not_matter(transform, seed):
    boxes = boxes_of(seed, 6)
    order = np.random.default_rng(seed).permutation(6)
    moved = geometry.clip_boxes(geometry.move_boxes(boxes, transform), (20, 30))
    np.testing.assert_array_equal(
        geometry.clip_boxes(geometry.move_boxes(boxes[order], transform), (20, 30)), moved[order]
    )


def test_boxes_outside_of_the_image_have_no_area():
    boxes = np.array([[-5, -5, 5, 5], [30, 2, 40, 9], [-9, 8, -1, 60]], np.float32)
    clipped = geometry.clip_boxes(boxes, (20, 50))
    np.testing.assert_array_equal(clipped, [[0, 0, 5, 5], [20, 2, 20, 9], [0, 8, 0, 50]])
    none = geometry.move({"b": boxes[:0]}, {"b": "boxes"}, geometry.flip(50), (20, 50))
    assert none["b"].shape == (0, 4) and none["b"].dtype == np.float32


@pytest.mark.parametrize("degrees", [90.0, 30.0, -200.0])
def test_rotate_is_pillow_s(degrees):
    """For masks, except pixels on an edge; points and boxes too, under rotation."""
    mask = np.zeros((40, 40), np.uint8)
    mask[8:20, 12:33] = np.random.default_rng(0).integers(1, 9, (12, 21))
    turn = geometry.rotate(degrees, 40, 40)
    expected = np.asarray(Image.fromarray(mask).rotate(degrees))
    moved = geometry.move_mask(mask, turn, (40, 40))
    assert np.mean(moved != expected) < 0.005
    box = geometry.move_boxes(tight_box(mask), turn)
    np.testing.assert_allclose(tight_box(moved), box, atol=1.001)
    np.testing.assert_allclose(
        geometry.move_points(np.array([[20, 20]], np.float32), turn), [[20, 20]], atol=1e-4
    )


MOVE = jax.jit(jax.vmap(lambda targets, one: geometry.move(targets, KINDS, one, (24, 28))))


@settings(deadline=None, max_examples=50)
@given(transforms(), SEEDS)
def test_numpy_and_jax_agree(transform, seed):
    """A batch equals its examples, also under strict promotion."""
    random = np.random.default_rng(seed)
    targets = {
        "boxes": np.stack([boxes_of(seed), boxes_of(seed + 1)]),
        "points": np.stack([points_of(seed), points_of(seed + 1)]),
        "mask": random.integers(0, 5, (2, 20, 30), np.int32),
        "names": random.integers(0, 5, (2, 20, 30, 2), np.uint8),
    }
    # Off whole pixels: a center that comes from an edge between two pixels may go to either.
    transform = geometry.compose(transform, geometry.shift(0.0137, 0.0071))
    both = [transform, geometry.compose(transform, geometry.flip(28))]
    batched = jax.tree.map(lambda *values: jnp.array(values, jnp.float32), *both)
    with jax.numpy_dtype_promotion("strict"):
        moved = MOVE(jax.tree.map(jnp.array, targets), batched)
    for n, one in enumerate(both):
        expected = geometry.move(
            {name: value[n] for name, value in targets.items()}, KINDS, one, (24, 28)
        )
        for name, kind in KINDS.items():
            found = np.asarray(moved[name][n])
            assert found.dtype == expected[name].dtype and found.shape == expected[name].shape
            if kind.startswith("mask"):
                assert np.mean(found != expected[name]) < 0.1
            else:
                np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=0.01)


def test_transforms_are_made_of_numbers_of_jax(strict_dtypes):
    """The same functions give the same result with JAX numbers, under jit."""

    @jax.jit
    def made(box, degrees):
        crop = geometry.crop(box, (24, 28))
        return geometry.inverse(geometry.compose(crop, geometry.rotate(degrees, 24, 28)))

    crop = geometry.crop((2, 3, 10, 20), (24, 28))
    expected = geometry.inverse(geometry.compose(crop, geometry.rotate(40, 24, 28)))
    found = made(jnp.array([2.0, 3.0, 10.0, 20.0]), jnp.float32(40))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert float(one) == pytest.approx(other, abs=1e-4)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="spots has moves='point'; it must be boxes, points, keyp"):
        geometry.move({"spots": points_of(0)}, {"spots": "point"}, geometry.flip(30), (20, 30))


def test_the_draws_stay_what_they_were():
    """A resumed run sees the same crops."""
    found = [crop_box(generator(7, "crop", n), 375, 500) for n in range(3)]
    assert found == [(21, 38, 177, 193), (44, 34, 259, 337), (196, 29, 156, 145)]
    assert jitter_box(generator(7, "crop", 0), 375, 500, 224, (256, 512)) == (56, 17, 313, 313)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(0, 100), st.floats(0.01, 1), st.floats(0.2, 1))
def test_boxes_lie_inside_the_image(height, width, seed, least, ratio):
    random = generator(seed, "boxes")
    boxes = [
        crop_box(random, height, width, (least, 1.0), (ratio, 1 / ratio)),
        jitter_box(random, height, width, 224, (256, 512)),
        eval_box(height, width, 224, 0.875),
    ]
    for top, left, h, w in boxes:
        assert top >= 0 and left >= 0 and 1 <= h <= height - top and 1 <= w <= width - left


def test_crop_box_covers_shares_and_ratios_evenly():
    random = generator(0, "boxes")
    boxes = np.array([crop_box(random, 1000, 1000, (0.25, 0.5), (0.5, 2.0)) for _ in range(4000)])
    share, ratio = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    np.testing.assert_allclose(
        np.quantile(share, [0.001, 0.5, 0.999]), [0.25, 0.375, 0.5], atol=0.012
    )
    np.testing.assert_allclose(
        np.quantile(np.log2(ratio), [0.001, 0.5, 0.999]), [-1, 0, 1], atol=0.06
    )
    free = 1000 - boxes[:, 2:]
    assert np.all(boxes[:, :2] <= free) and abs(np.mean(boxes[:, :2] / free) - 0.5) < 0.02


def test_crop_box_falls_back_to_the_middle():
    """An image that no box of these ratios fits at this share, by torchvision's arithmetic."""
    assert crop_box(generator(0, 0), 100, 1000, (1.0, 1.0)) == (0, 433, 100, 133)
    assert crop_box(generator(0, 0), 1000, 100, (1.0, 1.0)) == (433, 0, 133, 100)
    assert crop_box(generator(0, 0), 100, 100, (1.0, 1.0), (1.0, 1.0)) == (0, 0, 100, 100)


def test_scale_jitter_covers_its_scales():
    random = generator(0, "jitter")
    sides = {jitter_box(random, 512, 800, 224, (256, 512))[2] for _ in range(3000)}
    assert (min(sides), max(sides)) == (224, 448)
    tops = {jitter_box(random, 256, 256, 224, (256, 256))[:2] for _ in range(5000)}
    assert {top for top, _ in tops} == {left for _, left in tops} == set(range(33))
    with pytest.raises(
        ValueError, match="scale_jitter starts at 200 pixels, less than the 224 of the crop"
    ):
        jitter_box(random, 500, 500, 224, (200, 512))


def test_eval_box_is_the_middle_after_resizing():
    assert eval_box(256, 341, 224, 0.875) == (16, 58, 224, 224)
    assert eval_box(512, 512, 224, 0.875) == (32, 32, 448, 448)
    assert eval_box(235, 235, 224, 0.95) == (5, 5, 224, 224)
    assert eval_box(10, 20, 224) == (0, 5, 10, 10)


def test_train_box_is_what_the_config_asks_for():
    augment = default_config().augment
    assert train_box(generator(0, 0), 300, 400, 224, augment) == (0, 50, 300, 300)
    augment.scale_jitter = (256, 512)
    assert train_box(generator(0, 0), 300, 400, 224, augment) == jitter_box(
        generator(0, 0), 300, 400, 224, (256, 512)
    )
    augment.scale_jitter, augment.random_resized_crop.scale = (), (0.08, 1.0)
    assert train_box(generator(0, 0), 300, 400, 224, augment) == crop_box(generator(0, 0), 300, 400)


class Marked:
    """Records of grey JPEG files with a bright rectangle, which is their mask and their box."""

    has_labels = False
    targets = {
        "box": Target((1, 4), "float32", "boxes"),
        "mask_of": Target((32, 32), "uint8", "mask:255"),
    }

    def __len__(self):
        return 6

    def __getitem__(self, i):
        top, left = 20 + 3 * i, 60 - 4 * i
        pixels = np.full((96, 128, 3), 40, np.uint8)
        pixels[top : top + 40, left : left + 50] = 240
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        mask = (pixels[..., 0] > 128).astype(np.uint8)
        box = np.array([[top, left, top + 40, left + 50]], np.float32)
        return file.getvalue(), {"box": box, "mask_of": mask}

    def name(self, i):
        return f"record {i}"


@pytest.mark.parametrize("decoder", ["pillow", "auto"])
@pytest.mark.parametrize("crop", [{}, {"scale": (0.3, 0.9)}, {"jitter": (40, 60)}])
def test_a_host_crop_hands_its_box_on(decoder, crop):
    config = default_config()
    config.data.image_size, config.data.decoder = 32, decoder
    config.augment.random_resized_crop.scale = crop.get("scale", ())
    config.augment.scale_jitter = crop.get("jitter", ())
    source = sources._images(Marked(), (), config.data, config.augment, 3)
    for i in range(6):
        example = source.read(i, (3, i))
        bright = example["image"][..., 0] > 128
        assert example["image"].shape == (32, 32, 3) and example["mask_of"].shape == (32, 32)
        # Edges are blurred over a pixel.
        assert np.mean(bright != (example["mask_of"] == 1)) < 0.08
        top, left, bottom, right = example["box"][0]
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        found = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
        np.testing.assert_allclose((top, left, bottom, right), found, atol=1.01)


PAIRS = "keypoints:1-2,3-4"


def test_keypoints_change_sides_where_the_image_is_mirrored():
    """The 1st with the 2nd, the 3rd with the 4th; their third number goes with them."""
    points = np.random.default_rng(0).uniform(0, 20, (3, 6, 3)).astype(np.float32)
    for kind, order in ((PAIRS, [0, 2, 1, 4, 3, 5]), ("keypoints", [0, 1, 2, 3, 4, 5])):
        moved = geometry.move({"k": points}, {"k": kind}, geometry.flip(30), (20, 30))["k"]
        np.testing.assert_allclose(moved[..., 1], 30 - points[:, order, 1], rtol=1e-6)
        np.testing.assert_array_equal(moved[..., [0, 2]], points[:, order][..., [0, 2]])
        assert moved.dtype == np.float32
        # Twice is as it was, and in a crop nothing changes sides.
        twice = geometry.move({"k": moved}, {"k": kind}, geometry.flip(30), (20, 30))["k"]
        np.testing.assert_allclose(twice, points, atol=1e-5)
        cut = geometry.crop((2, 4, 10, 20), (20, 40))
        moved = geometry.move({"k": points}, {"k": kind}, cut, (20, 40))["k"]
        np.testing.assert_allclose(moved[..., :2], geometry.move_points(points[..., :2], cut))
        np.testing.assert_array_equal(moved[..., 2], points[..., 2])


@settings(max_examples=20, deadline=None)
@given(st.booleans(), st.integers(0, 2**31))
def test_keypoints_of_numpy_and_jax_agree(flipped, seed):
    points = np.random.default_rng(seed).uniform(0, 20, (5, 3)).astype(np.float32)
    transform = geometry.flip(28) if flipped else geometry.shift(1.5, -2.0)
    wanted = geometry.move_keypoints(points, transform, "1-2,3-4")
    traced = jax.jit(lambda points, t: geometry.move_keypoints(points, t, "1-2,3-4"))
    np.testing.assert_allclose(traced(jnp.asarray(points), transform), wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_bits_move_as_their_masks(seed, flipped):
    """Under a crop and a flip; as a mask of bytes."""
    masks = np.random.default_rng(seed).random((11, 20, 30)) > 0.5
    ways = [geometry.crop((3, 2, 15, 21), (18, 24)), *([geometry.flip(24)] if flipped else [])]
    transform = geometry.compose(*ways)
    targets = {"masks": as_bits(masks, 11)}
    moved = geometry.move(targets, {"masks": "mask"}, transform, (18, 24))["masks"]
    for mask, found in zip(masks, of_bits(moved, 11), strict=True):
        wanted = geometry.move_mask(mask.astype(np.uint8), transform, (18, 24))
        np.testing.assert_array_equal(found, wanted)
