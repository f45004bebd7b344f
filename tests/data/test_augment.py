"""Augmentation: what it does to the pixels, and that its randomness is per example."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxconv.config import default_config, set_key
from jaxconv.data import augment, contrastive, randaugment, spatial
from jaxconv.data.interface import example_keys
from jaxconv.errors import UserError
from jaxconv.tasks.labels import mix_labels


def crop(batch, scale, ratio):
    return jax.jit(augment.random_resized_crop, static_argnums=(2, 3))(KEY, batch, scale, ratio)[
        "image"
    ]


def jitter(batch, sides):
    return jax.jit(augment.scale_jitter, static_argnums=2)(KEY, batch, sides)["image"]


colour_jitter = jax.jit(randaugment.colour_jitter, static_argnums=(2, 3, 4, 5))
pytestmark = pytest.mark.usefixtures("strict_dtypes")
KEY = jax.random.key(0)


def batch_of(count, height=6, width=5, channels=3):
    images = np.random.default_rng(0).integers(1, 256, (count, height, width, channels), np.uint8)
    return {"image": jnp.array(images), "position": jnp.arange(count)}


@pytest.mark.parametrize("reflect", [False, True])
def test_pad_crop_moves_the_image_and_pads_by_black_or_by_itself(reflect):
    batch = batch_of(200)
    borders = ((0, 0), (2, 2), (2, 2), (0, 0))
    padded = np.pad(batch["image"], borders, "reflect" if reflect else "constant")
    cropped = augment.pad_crop(KEY, batch, 2, reflect=reflect)["image"]
    corners = set()
    for i in range(200):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(padded[i, y : y + 6, x : x + 5], cropped[i])
        ]
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


# Every per-example augmentation, one at a time and all together.
SETTINGS = {
    "random_resized_crop": {"random_resized_crop.scale": "0.3,1"},
    "scale_jitter": {"scale_jitter": "12,20"},
    "pad_crop": {"pad_crop": "2"},
    "flip": {"flip": "True"},
    "randaugment": {
        "randaugment.layers": "2",
        "randaugment.deviation": "0.1",
        "randaugment.probability": "0.7",
    },
    "trivial": {"trivial": "True"},
    "pca_colour": {"pca_colour": "0.1"},
    "erasing": {"erasing.probability": "0.9", "erasing.noise": "True"},
    "colour_jitter": {
        f"colour_jitter.{name}": "0.4" for name in ("brightness", "contrast", "saturation", "hue")
    },
}
SETTINGS["colour_jitter of some"] = SETTINGS["colour_jitter"] | {"colour_jitter.probability": "0.5"}
SETTINGS |= {
    "grey": {"grey": "0.5"},
    "blur": {"blur.probability": "0.5"},
    "solarise": {"solarise.probability": "0.5"},
}
SETTINGS["many"] = {
    key: value
    for name in ("random_resized_crop", "flip", "trivial", "erasing")
    for key, value in SETTINGS[name].items()
}


def configured(settings):
    config = default_config()
    for key, value in settings.items():
        set_key(config, f"augment.{key}", value)
    return config


@pytest.mark.parametrize("name", SETTINGS)
def test_randomness_belongs_to_the_example(name):
    """A part of the global batch is augmented as in the whole batch, on any device; other keys and
    positions give other draws.
    """
    run = jax.jit(augment.make_augment(configured(SETTINGS[name]), mix_labels(10)))
    batch = batch_of(16, 12, 10)
    batch["image"] = jnp.tile(batch["image"][:4], (4, 1, 1, 1))
    whole = run(KEY, batch)["image"]
    assert (
        whole.dtype == jnp.float32
        and whole.shape == batch["image"].shape
        and bool(jnp.all(jnp.isfinite(whole)))
    )
    part = run(KEY, jax.tree.map(lambda x: x[10:16], batch))["image"]
    np.testing.assert_allclose(
        part, whole[10:16], atol=2.1 / 255
    )  # a level may round differently in another program
    assert np.mean(np.asarray(part) != np.asarray(whole[10:16])) < 0.01
    assert not np.array_equal(run(jax.random.key(1), batch)["image"], whole)
    assert len({image.tobytes() for image in np.asarray(whole).reshape(4, 4, -1)[:, 0]}) > 1


@pytest.mark.parametrize("name", SETTINGS)
def test_floating_point_images_from_0_to_1_are_kept(name):
    """They become what the same images as bytes become, but for the rounding to bytes."""
    run = jax.jit(augment.make_augment(configured(SETTINGS[name]), mix_labels(10)))
    batch = batch_of(16, 12, 10)
    floats = batch | {"image": batch["image"].astype(jnp.float32) / 255}
    wanted, found = (np.asarray(run(KEY, one)["image"]) for one in (batch, floats))
    # A threshold may fall between a level and its rounding.
    assert np.mean(np.abs(found - wanted) > 2.1 / 255) < 0.01
    assert found.std() > 0.3


def test_pieces_keep_the_type_and_what_they_do_not_change():
    """Levels between those of bytes stay, where an image is not chosen."""
    batch = batch_of(64, 12, 10)
    images = jax.random.uniform(KEY, batch["image"].shape)
    for dtype in (jnp.uint8, jnp.float32, jnp.bfloat16):
        given = batch["image"] if dtype == jnp.uint8 else images.astype(dtype)
        for piece in (
            partial(contrastive.grey, probability=0.5),
            partial(contrastive.blur, probability=0.5, sigma=(0.1, 2.0)),
            partial(contrastive.solarise, probability=0.5, threshold=0.5),
            partial(
                randaugment.colour_jitter,
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1,
                probability=0.5,
            ),
        ):
            out = jax.jit(piece)(KEY, batch | {"image": given})["image"]
            same = np.all(np.asarray(out == given), axis=(1, 2, 3))
            assert out.dtype == dtype and 15 < same.sum() < 49, piece


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_without_positions_is_an_error_that_says_so(name):
    run = augment.make_augment(configured(SETTINGS[name]), mix_labels(10))
    batch = {"image": batch_of(4, 12, 10)["image"], "label": jnp.zeros(4, jnp.int32)}
    words = "the batch has image, label, but no position, .*: add .position.: jax.numpy.arange"
    with pytest.raises(UserError, match=words):
        run(KEY, batch)


def test_random_resized_crop_is_pillow_s_resize():
    """The crop is Pillow's within one level; boxes cover the configured shares and ratios."""
    batch = batch_of(300, 24, 20)
    scale, ratio = (0.2, 0.9), (0.5, 2.0)
    boxes, fits = spatial.draw_boxes(example_keys(KEY, batch["position"]), 24, 20, scale, ratio)
    assert bool(jnp.all(fits))
    # A resumed run sees the same crops.
    np.testing.assert_array_equal(boxes[:2], [[12, 1, 9, 16], [4, 7, 19, 13]])
    top, left, h, w = np.asarray(boxes, np.float64).T
    assert np.all((top >= 0) & (left >= 0) & (top + h <= 24) & (left + w <= 20))
    share = h * w / 480
    assert 0.17 < share.min() < 0.25 and 0.8 < share.max() < 0.93 and 0.4 < np.median(share) < 0.55
    assert 0.4 < (w / h).min() < 0.65 and 1.4 < (w / h).max() < 2.2
    found = np.asarray(crop(batch, scale, ratio), np.int32)
    for image, out, y, x, high, wide in zip(
        np.asarray(batch["image"]), found, top, left, h, w, strict=True
    ):
        expected = Image.fromarray(image).resize(
            (20, 24), Image.Resampling.BILINEAR, box=(x, y, x + wide, y + high)
        )
        assert np.abs(out - np.asarray(expected).astype(np.int32)).max() <= 1


def test_random_resized_crop_falls_back_to_the_middle():
    batch = batch_of(3, 8, 32)
    found = crop(batch, (1.0, 1.0), (0.5, 2.0))
    for image, out in zip(np.asarray(batch["image"]), np.asarray(found, np.int32), strict=True):
        expected = Image.fromarray(image).resize(
            (32, 8), Image.Resampling.BILINEAR, box=(8, 0, 24, 8)
        )
        assert np.abs(out - np.asarray(expected).astype(np.int32)).max() <= 1


def test_scale_jitter():
    """At its own size the crop is the image; at twice the size it is a quarter of it."""
    batch = batch_of(50, 12, 10)
    np.testing.assert_array_equal(jitter(batch, (10, 10)), batch["image"])
    flat = {
        "image": jnp.tile(
            jnp.arange(0, 240, 20, dtype=jnp.uint8).reshape(1, 12, 1, 1), (500, 1, 12, 1)
        ),
        "position": jnp.arange(500),
    }
    doubled = np.asarray(jitter(flat, (24, 24)), np.int32)
    assert set(np.unique(doubled[:, 0, 0, 0])) == {
        0,
        20 - 5,
        40 - 5,
        60 - 5,
        80 - 5,
        100 - 5,
        120 - 5,
    }
    assert np.all(doubled[:, -1] - doubled[:, 0] <= 110)


def test_pca_colour_is_one_normal_shift_an_image():
    batch = batch_of(400, 3, 3)
    moved = (
        np.asarray(augment.pca_colour(KEY, batch, 0.1)["image"])
        - np.asarray(batch["image"], np.float32) / 255
    )
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1, :1], moved.shape), atol=1e-6)
    first = moved[:, 0, 0] @ np.array([-0.5675, -0.5808, -0.5836])
    assert np.std(first) == pytest.approx(0.1 * 0.2175, rel=0.1)


def test_colour_jitter_draws_within_its_ranges():
    """A uniform grey image shows the brightness factor, since contrast and saturation do not change
    it; the order differs between batches.
    """
    batch = {"image": jnp.full((500, 2, 2, 3), 100, jnp.uint8), "position": jnp.arange(500)}
    factor = np.asarray(colour_jitter(KEY, batch, 0.4, 0.3, 0.2, 0.0)["image"])[:, 0, 0, 0] / 100
    assert (
        0.59 <= factor.min() < 0.63 and 1.37 < factor.max() <= 1.4 and abs(factor.mean() - 1) < 0.04
    )
    coloured = batch_of(1, 8, 8)
    tops = {
        np.asarray(
            colour_jitter(jax.random.key(n), coloured, 0.4, 0.0, 0.0, 0.0)["image"]
        ).tobytes()
        for n in range(3)
    }
    assert len(tops) == 3
    hue = np.asarray(colour_jitter(KEY, batch_of(200, 1, 1), 0.0, 0.0, 0.0, 0.5)["image"], np.int32)
    image = np.asarray(batch_of(200, 1, 1)["image"], np.int32)
    np.testing.assert_array_equal(hue.max(-1), image.max(-1))
    assert np.mean(np.argmax(hue, -1) != np.argmax(image, -1)) > 0.4


@pytest.mark.parametrize("name", ["torchvision", "wide", "timm"])
def test_every_operation_of_a_space_is_drawn(name):
    table = randaugment.space(name, 32, 32)
    assert len(table) == (15 if name == "timm" else 14)
    image = np.random.default_rng(0).integers(20, 224, (1, 40, 40, 3), np.uint8)
    batch = {"image": jnp.tile(jnp.array(image), (300, 1, 1, 1)), "position": jnp.arange(300)}
    settings = {
        "layers": 1,
        "level": 0.5,
        "deviation": 0.0,
        "mean": (0.5,),
        "interpolation": "nearest",
        "space": name,
    }
    out = np.asarray(
        jax.jit(partial(randaugment.randaugment, probability=1.0, **settings))(KEY, batch)["image"]
    )
    # One result per operation, two if it has a sign.
    results = {one.tobytes() for one in out}
    assert len(results) == sum(2 if operation in randaugment.SIGNED else 1 for operation in table)
    same = np.mean([one.tobytes() == image.tobytes() for one in out])
    assert same < 0.15
    half = np.asarray(
        jax.jit(partial(randaugment.randaugment, probability=0.5, **settings))(KEY, batch)["image"]
    )
    assert 0.4 < np.mean([one.tobytes() == image.tobytes() for one in half]) < 0.65


def test_stronger_levels_change_more():
    batch = batch_of(300, 32, 32)
    settings = {
        "layers": 1,
        "deviation": 0.0,
        "probability": 1.0,
        "space": "torchvision",
        "mean": (0.5,),
        "interpolation": "bilinear",
    }

    run = jax.jit(partial(randaugment.randaugment, **settings))

    def change(level):
        out = np.asarray(run(KEY, batch, level=level)["image"], np.int32)
        return np.abs(out - np.asarray(batch["image"], np.int32)).mean()

    assert change(0.1) < change(0.5) < change(1.0)


def erase(batch, noise):
    return jax.jit(
        partial(augment.erase, probability=0.5, area=(0.1, 0.3), ratio=(0.5, 2.0), noise=noise)
    )(KEY, batch)["image"]


def test_erasing():
    batch = {"image": jnp.ones((400, 16, 12, 3)), "position": jnp.arange(400)}
    image = np.asarray(erase(batch, False))
    gone = image[..., 0] == 0
    share = gone.mean((1, 2))
    assert 0.4 < np.mean(share > 0) < 0.6
    assert 0.07 < share[share > 0].min() < 0.13 and 0.25 < share.max() < 0.34
    for one in gone[share > 0]:  # a whole box
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        assert (
            one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            and len(rows) * len(columns) == one.sum()
        )
    noisy = np.asarray(erase(batch, True))
    np.testing.assert_array_equal(noisy[~gone], 1)
    assert abs(noisy[gone].mean()) < 0.05 and abs(noisy[gone].std() - 1) < 0.05


def mixed(mixup, cutmix, key):
    """The kept share of each pixel, computed from images that hold their own index."""
    batch = {
        "image": jnp.tile(jnp.arange(4.0).reshape(4, 1, 1, 1), (1, 10, 8, 1)),
        "label": jnp.array([0, 1, 2, 2]),
    }
    out = jax.jit(augment.mix, static_argnums=(2, 3, 4))(key, batch, mix_labels(3), mixup, cutmix)
    image = np.asarray(out["image"])[..., 0]
    np.testing.assert_array_equal(out["label"], batch["label"])
    kept = (image[0] - 3) / -3  # 0 is mixed with 3, 1 with 2
    np.testing.assert_allclose(image[1], 2 - kept, atol=1e-5)
    np.testing.assert_allclose(image[3], 3 - image[0], atol=1e-5)
    share = kept.mean()
    expected = np.array(
        [[share, 0, 1 - share], [0, share, 1 - share], [0, 1 - share, share], [1 - share, 0, share]]
    )
    np.testing.assert_allclose(out["target"], expected, atol=1e-5)
    return kept


def test_mixup_and_cutmix_mix_images_and_targets_by_the_same_share():
    keys = list(jax.random.split(KEY, 40))
    blended = [mixed(0.5, 0.0, key) for key in keys[:15]]
    assert (
        all(np.ptp(kept) < 1e-5 for kept in blended)
        and np.ptp([kept.mean() for kept in blended]) > 0.5
    )
    boxed = [mixed(0.0, 1.0, key) for key in keys[:15]]
    for kept in boxed:
        assert set(np.unique(np.round(kept, 5))) <= {0, 1}
        cut = kept < 0.5
        if cut.any():
            rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
            assert (
                cut.sum()
                == len(rows) * len(columns)
                == np.ptp(rows + 0) * len(columns) + len(columns)
            )
    assert np.ptp([kept.mean() for kept in boxed]) > 0.4
    either = [np.ptp(mixed(0.5, 1.0, key)) > 0.5 for key in keys]
    assert 10 < sum(either) < 30


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_the_share_of_mixup_is_beta_distributed(alpha):
    batch = {"image": jnp.arange(2.0).reshape(2, 1, 1, 1), "label": jnp.array([0, 1])}
    share = jax.jit(
        jax.vmap(lambda key: augment.mix(key, batch, mix_labels(2), alpha, 0.0)["target"][0, 0])
    )(jax.random.split(KEY, 2000))
    assert float(jnp.mean(share)) == pytest.approx(0.5, abs=0.03)
    assert float(jnp.var(share)) == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)


def test_a_setting_that_is_off_is_not_in_the_program():
    """It does not change the draws of another augmentation either."""
    batch = {**batch_of(4), "label": jnp.zeros(4, jnp.int32)}
    plain = jax.make_jaxpr(lambda batch: augment.normalise(batch, (0.5,), (0.5,))["image"])(batch)
    off = jax.make_jaxpr(
        lambda batch: augment.make_augment(default_config(), mix_labels(10))(KEY, batch)["image"]
    )(batch)
    assert [str(e.primitive) for e in off.eqns if "random" not in str(e.primitive)] == [
        str(e.primitive) for e in plain.eqns
    ]
    both = augment.make_augment(
        configured({"pad_crop": "2", "erasing.probability": "1"}), mix_labels(10)
    )(KEY, batch)["image"]
    alone = augment.make_augment(configured({"pad_crop": "2"}), mix_labels(10))(KEY, batch)["image"]
    kept = np.asarray(both) != 0
    np.testing.assert_array_equal(np.asarray(both)[kept], np.asarray(alone)[kept])


def test_what_the_host_has_cut_is_not_cut_again():
    config, batch = configured({"random_resized_crop.scale": "0.1,0.5"}), batch_of(4)
    np.testing.assert_array_equal(
        augment.make_augment(config, mix_labels(10), cropped=True)(KEY, batch)["image"],
        augment.make_preprocess(config)(batch)["image"],
    )


def test_all_off_is_normalisation_alone():
    config, batch = default_config(), batch_of(4)
    np.testing.assert_array_equal(
        augment.make_augment(config, mix_labels(10))(KEY, batch)["image"],
        augment.make_preprocess(config)(batch)["image"],
    )


@pytest.mark.parametrize("pca_colour", ["0.0", "0.1"])
def test_one_s_own_sees_and_gives_a_scale_from_0_to_1(tmp_path, pca_colour):
    """An identity function changes nothing; a function that halves, halves on that scale."""
    (tmp_path / "mine.py").write_text(
        "def same(key, batch):\n    return batch\n\n\ndef half(key, batch):\n    return batch | "
        "{'image': batch['image'] / 2}\n"
    )
    batch = batch_of(4) | {"label": jnp.zeros(4, jnp.int32)}

    def augmented(own):
        return augment.make_augment(
            configured({"pca_colour": pca_colour, "own": own}), mix_labels(10)
        )(KEY, batch)["image"]

    plain = augmented("")
    assert float(jnp.min(plain)) > -1.2 and float(jnp.max(plain)) < 1.2
    np.testing.assert_allclose(augmented(f"{tmp_path / 'mine.py'}:same"), plain, atol=1e-6)
    # (x/2 - 0.5) / 0.5.
    np.testing.assert_allclose(
        augmented(f"{tmp_path / 'mine.py'}:half"), plain / 2 - 0.5, atol=1e-6
    )
