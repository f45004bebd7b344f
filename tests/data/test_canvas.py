"""Images of any shape on a canvas: their size, pixels and boxes, in training and evaluation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxconv.checks import check_config
from jaxconv.config import default_config
from jaxconv.data import augment, canvas, spatial
from jaxconv.data.geometry import KEPT, Transform, move
from jaxconv.data.interface import describe
from jaxconv.data.sources import open_source
from jaxconv.errors import UserError
from tests.data.test_annotations import data

DETECTION = ("boxes", "classes", "valid", "crowd", "size", "seen")
# The colour of drawn rectangles, far from that of everything else.
RED, MEAN = (250, 10, 10), (0.2, 0.5, 0.7)
SIZES = ((40, 30), (24, 60), (50, 50), (17, 23))


def write_rectangles(root, seed=0, suffix="png"):
    """COCO's layout: images of `SIZES`, each with one red rectangle, which is its object."""
    random, images, things = np.random.default_rng(seed), [], []
    (root / "train").mkdir(parents=True)
    for n, (height, width) in enumerate(SIZES):
        image = np.full((height, width, 3), (30, 120, 90), np.uint8)
        top, left = random.integers(0, (height - 8, width - 8))
        h, w = random.integers(8, (height - top + 1, width - left + 1))
        image[top : top + h, left : left + w] = RED
        Image.fromarray(image).save(root / "train" / f"{n}.{suffix}")
        images.append({"id": n, "file_name": f"{n}.{suffix}", "height": height, "width": width})
        left, top, w, h = box = [int(value) for value in (left, top, w, h)]
        corners = [left, top, left + w, top, left + w, top + h, left, top + h]
        thing = {"id": n, "image_id": n, "category_id": 1, "bbox": box}
        things.append(thing | {"segmentation": [corners]})
    found = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "red"}]}
    (root / "train.json").write_text(json.dumps(found))
    return root


def red_box(image):
    """The box of the red pixels of an image [H, W, 3] uint8; None without any."""
    red = (image[..., 0].astype(int) > 140) & (image[..., 1] < 65)
    if not red.any():
        return None
    rows, columns = (np.flatnonzero(red.any(axis=axis)) for axis in (1, 0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float32)


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(8, 1500), st.integers(8, 1500),
    st.sampled_from([(), (800, 1333), (20, 20)]),
)  # fmt: skip
def test_an_image_is_as_large_as_fits(height, width, high, wide, sides):
    """One pixel more of a side that limits it would be too large; its shape stays."""
    h, w = canvas.fit_size(height, width, (high, wide), sides)
    shorter, longer = sides or (10**9, 10**9)
    assert 1 <= h <= high and 1 <= w <= wide
    assert min(h, w) <= shorter and max(h, w) <= longer
    ratio = min(high / height, wide / width, *(() if not sides else (
        shorter / min(height, width), longer / max(height, width)
    )))  # fmt: skip
    assert abs(h - height * ratio) <= 1 + 1e-6 and abs(w - width * ratio) <= 1 + 1e-6


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (375, 500), (333, 500), (1000, 400)])
def test_sides_are_those_of_torchvision(torchvision, size):
    import torch
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    transform = GeneralizedRCNNTransform(800, 1333, [0.5] * 3, [0.5] * 3)
    images, _ = transform([torch.zeros(3, *size)])
    assert canvas.fit_size(*size, (1344, 1344), (800, 1333)) == images.image_sizes[0]


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("limit", [0, 10**9])
def test_boxes_and_padding_of_a_canvas(tmp_path, decoder, limit):
    """The red rectangle is where its box says; the rest of the canvas has the mean colour."""
    if decoder == "simplejpeg":
        pytest.importorskip("simplejpeg")
        pytest.importorskip("cv2")
    root = write_rectangles(tmp_path, suffix="png" if decoder == "pillow" else "jpg")
    changes = {"canvas": (32, 48), "mean": MEAN, "max_boxes": 2, "decoder": decoder}
    source = open_source(
        data(f"coco:{root}", resident_limit=limit, **changes), "train", needs=DETECTION
    )
    assert source.element.shape == (32, 48, 3)
    assert list(source.targets) == ["boxes", "classes", "valid", "crowd", "size", "seen"]
    for n, size in enumerate(SIZES):
        example = source.read(n)
        seen = canvas.fit_size(*size, (32, 48))
        assert example["size"].tolist() == list(size) and example["seen"].tolist() == list(seen)
        np.testing.assert_allclose(example["boxes"][0], red_box(example["image"]), atol=1)
        assert example["valid"].tolist() == [True, False]
        padding = np.ones((32, 48), bool)
        padding[: seen[0], : seen[1]] = False
        assert (example["image"][padding] == canvas.pad_colour(MEAN, 3)).all()
        assert 32 in seen or 48 in seen


def test_normalised_padding_is_zero_up_to_rounding():
    colour = canvas.pad_colour(MEAN, 3).reshape(1, 1, 1, 3)
    found = augment.normalise({"image": jnp.asarray(colour)}, MEAN, (0.25,))["image"]
    assert np.abs(found).max() <= 0.5 / 255 / 0.25 + 1e-6
    assert canvas.pad_colour((0.5,), 1).tolist() == [128]


def batch_of(source, count=16, position=0):
    examples = [source.read(n % len(source), (0, n)) for n in range(count)]
    batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
    return batch | {"position": np.arange(position, position + count, dtype=np.int32)}


def test_a_flip_leaves_the_image_at_the_left(tmp_path):
    """Mirrored where it stands: the box is that of the pixels, and the padding stays."""
    root = write_rectangles(tmp_path)
    settings = data(f"coco:{root}", canvas=(48, 48), mean=MEAN, max_boxes=2)
    batch = batch_of(open_source(settings, "train", needs=DETECTION))
    found = jax.jit(lambda batch: spatial.flip(jax.random.key(0), batch, {"boxes": "boxes"}))(batch)
    mirrored = 0
    for n in range(16):
        before, after = batch["image"][n], np.asarray(found["image"][n])
        width = int(batch["seen"][n, 1])
        if (before != after).any():
            mirrored += 1
            np.testing.assert_array_equal(after[:, :width], before[:, :width][:, ::-1])
        np.testing.assert_array_equal(after[:, width:], before[:, width:])
        np.testing.assert_allclose(found["boxes"][n, 0], red_box(after), atol=1)
        np.testing.assert_array_equal(found["boxes"][n, 1, :2], found["boxes"][n, 1, 2:])
    assert 3 <= mirrored <= 13


def augmented(**changes):
    settings = default_config().augment
    for key, value in changes.items():
        settings[key] = value
    return settings


@pytest.mark.parametrize("kept", KEPT)
def test_large_scale_jitter_of_files(tmp_path, kept):
    """Smaller images are padded, of larger ones a part is seen; boxes are those of the pixels."""
    root = write_rectangles(tmp_path)
    config = data(f"coco:{root}", canvas=(40, 40), mean=MEAN, max_boxes=2)
    jitter = augmented(large_scale_jitter=(0.3, 2.0), kept_objects=kept)
    source = open_source(config, "train", augment=jitter, needs=DETECTION)
    assert source.random and describe(source)["cropped"]
    batch, shares = batch_of(source, 60), []
    for image, box, seen, valid in zip(
        *(batch[name] for name in ("image", "boxes", "seen", "valid")), strict=True
    ):
        shares.append(seen.max() / 40)
        assert seen.max() <= 40
        assert (image[int(seen[0]) :] == canvas.pad_colour(MEAN, 3)).all()
        red = red_box(image)
        if valid[0] and box[0].any():
            assert (box[0] >= 0).all() and (box[0] <= np.tile(seen, 2)).all()
            if red is not None:
                np.testing.assert_allclose(box[0], red, atol=2)
        elif red is not None and kept == "visible":
            assert (red[2:] - red[:2]).min() <= 2
    assert min(shares) < 0.5 and max(shares) == 1
    if kept == "centre":
        assert not batch["valid"].all(axis=0)[0]
        again = source.read(3, (0, 3))
        np.testing.assert_array_equal(again["image"], batch["image"][3])


def test_random_crops_keep_their_shape(tmp_path):
    """A part of the image, with its own shape, as large as fits on the canvas."""
    config = data(f"coco:{write_rectangles(tmp_path)}", canvas=(48, 32), mean=MEAN, max_boxes=2)
    settings = augmented(kept_objects="centre")
    settings.random_resized_crop.scale = (0.3, 0.8)
    source = open_source(config, "train", augment=settings, needs=DETECTION)
    batch, gone = batch_of(source, 40), 0
    assert source.random and len({tuple(seen) for seen in batch["seen"].tolist()}) > 8
    for n in range(40):
        seen, red = batch["seen"][n], red_box(batch["image"][n])
        assert seen[0] == 48 or seen[1] == 32
        assert 0.6 < seen[1] / seen[0] < 1.5
        gone += not batch["valid"][n, 0]
        if batch["valid"][n, 0]:
            np.testing.assert_allclose(batch["boxes"][n, 0], red, atol=2)
    assert 0 < gone < 30


def test_a_mean_of_other_channels_is_refused(tmp_path):
    root = write_rectangles(tmp_path)
    with pytest.raises(UserError, match=r"data\.mean has 2 numbers; the images have 3 channels"):
        open_source(
            data(f"coco:{root}", canvas=(32, 32), mean=(0.5, 0.5)), "train", needs=DETECTION
        )


@pytest.mark.parametrize("changes", [{}, {"large_scale_jitter": (0.4, 2.0)}])
def test_instance_masks_stay_on_their_pixels(tmp_path, changes):
    """Through the canvas, jitter and a flip: the mask is red, and ends where the image does."""
    config = data(f"coco:{write_rectangles(tmp_path)}", canvas=(48, 48), mean=MEAN, max_boxes=2)
    needs = (*DETECTION[:4], "masks")
    batch = batch_of(open_source(config, "train", augment=augmented(**changes), needs=needs), 24)
    moves = {"boxes": "boxes", "masks": "mask"}
    found = jax.jit(lambda batch: spatial.flip(jax.random.key(0), batch, moves))(batch)
    for image, bits, seen in zip(
        *(np.asarray(found[name]) for name in ("image", "masks", "seen")), strict=True
    ):
        red = (image[..., 0].astype(int) > 140) & (image[..., 1] < 65)
        mask = bits[..., 0] & 1 > 0
        assert not (bits[..., 0] & 0xFE).any()
        assert not mask[int(seen[0]) :].any() and not mask[:, int(seen[1]) :].any()
        box = red_box(image)
        around = 0 if box is None else 2 * (box[2:] - box[:2]).sum()
        assert (red ^ mask).sum() <= max(6, 0.55 * around)


def test_large_scale_jitter_on_the_device():
    """What a resident set of images without a canvas gets: the same, and `seen`."""
    random = np.random.default_rng(1)
    images, boxes = np.full((24, 32, 40, 3), 60, np.uint8), np.zeros((24, 2, 4), np.float32)
    for n in range(24):
        top, left = random.integers(0, 15, 2)
        images[n, top : top + 14, left : left + 18] = RED
        boxes[n, 0] = top, left, top + 14, left + 18
    valid = boxes.any(axis=-1)
    batch = {"image": images, "boxes": boxes, "valid": valid, "position": np.arange(24)}
    for kept in KEPT:
        run = jax.jit(
            lambda batch, kept=kept: augment.blank(
                spatial.large_scale_jitter(
                    jax.random.key(3), batch, (0.4, 2.0), {"boxes": "boxes"}, kept
                ),
                (0.0,),
                (1.0,),
            )
        )
        found = jax.tree.map(np.asarray, run(batch))
        larger = 0
        for n in range(24):
            seen, image = found["seen"][n], found["image"][n]
            assert not image[int(seen[0]) :].any() and not image[:, int(seen[1]) :].any()
            larger += bool((seen == (32, 40)).all())
            red = red_box(image)
            if found["valid"][n, 0] and found["boxes"][n, 0].any() and red is not None:
                np.testing.assert_allclose(found["boxes"][n, 0], red, atol=1.6)
            assert not found["valid"][n, 1] and not found["boxes"][n, 1].any()
        assert 6 < larger < 24
        assert found["valid"][:, 0].all() == (kept == "visible")


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_crop_keeps_objects_by_what_it_shows(drawn):
    """Against one box at a time, in plain numbers; JAX's arrays as numpy's."""
    number = st.integers(-30, 60)
    corners = np.array(drawn.draw(st.lists(st.tuples(number, number), min_size=4, max_size=4)))
    sides = np.array(drawn.draw(st.lists(st.tuples(*[st.integers(1, 40)] * 2), min_size=4,
                                         max_size=4)))  # fmt: skip
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    seen, targets = (20, 30), {"boxes": boxes, "valid": np.array([True, True, True, False])}
    how = {"boxes": "boxes"}, Transform(1.0, 0.0, 0.0, 1.0, 0.0, 0.0), (32, 32)
    for kept in KEPT:
        found = move(targets, *how, seen, kept)
        for n, box in enumerate(boxes):
            clipped = [min(max(v, 0), seen[k % 2]) for k, v in enumerate(box)]
            y, x = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            centre = 0 <= y < 20 and 0 <= x < 30
            stays = centre or kept == "visible"
            assert found["boxes"][n].tolist() == (clipped if stays else [0] * 4)
            assert found["valid"][n] == (targets["valid"][n] and stays)
        on_device = move(jax.tree.map(jnp.asarray, targets), *how, seen, kept)
        np.testing.assert_array_equal(on_device["boxes"], found["boxes"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.canvas": (32,)}, "two whole numbers"),
        ({"data.canvas": (4, 4)}, "at least 8"),
        ({"data.sides": (20, 30)}, "canvas"),
        ({"data.canvas": (32, 32), "data.sides": (30, 20)}, "shorter side comes first"),
        ({"data.canvas": (32, 32), "data.image_size": 32}, "image_size"),
        ({"data.canvas": (32, 32), "data.crop_ratio": 0.875}, "crop_ratio"),
        ({"data.canvas": (32, 32), "data.source": "xo_scenes"}, "image files"),
        ({"data.canvas": (32, 32), "task.name": "classification"}, "padding"),
        ({"data.canvas": (32, 32), "augment.pad_crop": 2}, "pad_crop"),
        ({"augment.large_scale_jitter": (0.5, 2.0), "data.image_size": 32}, "data.canvas=32,32"),
        ({"augment.large_scale_jitter": (2.0, 0.5)}, "ascending"),
        ({"augment.large_scale_jitter": (0.5, 2.0), "task.name": "segmentation"}, "scale_jitter"),
        ({"augment.kept_objects": "center"}, "did you mean 'centre'"),
    ],
)
def test_what_does_not_fit_a_canvas_is_refused(changes, words):
    config = default_config()
    config.steps, config.task.name, config.data.source = 1, "detection", "coco:x"
    check_config(config)
    for key, value in changes.items():
        part, _, name = key.partition(".")
        config[part][name] = value
    with pytest.raises(UserError, match=words):
        check_config(config)
