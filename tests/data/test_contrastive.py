"""Random grey, blur and solarise: the numbers of Pillow and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from jaxconv.config import set_key
from jaxconv.data import contrastive
from jaxconv.errors import UserError
from jaxconv.run import train
from tests.conftest import tiny_config

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 9, 11, 3), np.uint8)
BATCH = {"image": jnp.array(IMAGES), "position": jnp.arange(40)}


def test_grey_is_pillow_s():
    out = np.asarray(contrastive.grey(KEY, BATCH, 1.0)["image"])
    wanted = np.stack([Image.fromarray(image).convert("L") for image in IMAGES])
    np.testing.assert_array_equal(out, np.repeat(wanted[..., None], 3, axis=-1))


def test_solarise_is_pillow_s():
    out = np.asarray(contrastive.solarise(KEY, BATCH, 1.0, 0.5)["image"])
    wanted = np.stack([ImageOps.solarize(Image.fromarray(image), 128) for image in IMAGES])
    np.testing.assert_array_equal(out, wanted)
    floats = BATCH | {"image": BATCH["image"] / 255}
    out = contrastive.solarise(KEY, floats, 1.0, 0.5)["image"]
    np.testing.assert_allclose(out, wanted / 255, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 3.0), st.integers(1, 8))
def test_blur_is_scipy_s(sigma, radius):
    image = IMAGES[:2].astype(np.float32)
    out = contrastive.gaussian_blur(jnp.array(image), jnp.full(2, sigma), radius)
    for one, wanted in zip(np.asarray(out), image, strict=True):
        wanted = gaussian_filter(
            wanted, (sigma, sigma, 0), mode="mirror", radius=(radius, radius, 0)
        )
        np.testing.assert_allclose(one, wanted, atol=1e-2)


def test_blur_draws_its_deviation():
    """The more, the less is left of the contrast; a constant image stays."""
    left = [
        np.asarray(contrastive.blur(KEY, BATCH, 1.0, (s, s))["image"], float).std()
        for s in (0.1, 0.5, 1.0, 3.0)
    ]
    assert left[0] == pytest.approx(IMAGES.std(), rel=1e-3) and left == sorted(left, reverse=True)
    out = np.asarray(contrastive.blur(KEY, BATCH, 1.0, (0.1, 3.0))["image"], float)
    each = out.std(axis=(1, 2, 3)) / IMAGES.std(axis=(1, 2, 3))
    assert each.min() < 0.4 and each.max() > 0.8
    flat = BATCH | {"image": jnp.full_like(BATCH["image"], 77)}
    np.testing.assert_array_equal(contrastive.blur(KEY, flat, 1.0, (0.1, 3.0))["image"], 77)


def test_probabilities():
    for out in (
        contrastive.grey(KEY, BATCH, 0.3),
        contrastive.blur(KEY, BATCH, 0.3, (1.0, 2.0)),
        contrastive.solarise(KEY, BATCH, 0.3, 0.5),
    ):
        changed = np.any(np.asarray(out["image"]) != IMAGES, axis=(1, 2, 3))
        assert 4 <= changed.sum() <= 22


def test_settings(tmp_path):
    config = tiny_config(steps=3, data__xo__channels=3, log__report=False)
    for key, value in (
        ("colour_jitter.brightness", "0.4"),
        ("colour_jitter.probability", "0.8"),
        ("grey", "0.2"),
        ("blur.probability", "0.5"),
        ("solarise.probability", "0.2"),
    ):
        set_key(config, f"augment.{key}", value)
    assert np.isfinite(train(config, tmp_path)["loss"])
    for key, value, words in (
        ("grey", 1.5, "augment.grey is 1.5; it must be between 0 and 1"),
        ("blur__sigma", (2.0, 1.0), "augment.blur.sigma"),
        ("solarise__threshold", -1.0, "solarise.threshold is -1.0"),
        ("grey", 0.2, "augment.grey is 0.2, which needs 3 channels, but the images have 1"),
    ):
        with pytest.raises(UserError, match=words):
            train(tiny_config(**{f"augment__{key}": value}), tmp_path / "other")
