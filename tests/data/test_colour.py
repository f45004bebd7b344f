"""Operations on pixels against Pillow's, on photographs and noise; hue against colorsys."""

import colorsys
import itertools
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxconv.data import colour
from tests.conftest import SHARED

pytestmark = pytest.mark.usefixtures("strict_dtypes")
FILL = (10, 20, 30)


@pytest.fixture(scope="module")
def photographs():
    """[60, 32, 32, 3] uint8 from CIFAR-10."""
    archive = SHARED / "data" / "cifar10_jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    with tarfile.open(archive) as tar:
        files = itertools.islice((member for member in tar if member.isfile()), 60)
        return np.stack([np.asarray(Image.open(tar.extractfile(file))) for file in files])


@pytest.fixture(scope="module")
def noise():
    """[8, 13, 20, 3] uint8 with few values, with many, and with a single one."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 13, 20, 3), np.uint8)
    images[2:4] = 100 + images[2:4] // 16
    images[4] = 77
    images[5, :, :, 1] = 200
    return images


def enhance(kind):
    return lambda image, value: kind(image).enhance(1 + value)


def transform(matrix):
    return lambda image, value, how: image.transform(
        image.size, Image.Transform.AFFINE, matrix(value), resample=how, fillcolor=FILL
    )


COLOURS = {
    "identity": (lambda image, value: image, (0.0,)),
    "brightness": (enhance(ImageEnhance.Brightness), (-0.9, -0.27, 0.0, 0.4, 0.9)),
    "saturation": (enhance(ImageEnhance.Color), (-0.99, -0.27, 0.3, 0.9)),
    "contrast": (enhance(ImageEnhance.Contrast), (-0.9, -0.27, 0.3, 0.9)),
    "sharpness": (enhance(ImageEnhance.Sharpness), (-0.9, -0.27, 0.3, 0.9)),
    "posterize": (lambda image, value: ImageOps.posterize(image, int(value)), (8, 6, 4, 1)),
    "solarize": (lambda image, value: ImageOps.solarize(image, value), (256, 255, 128, 76.5, 0)),
    "autocontrast": (lambda image, value: ImageOps.autocontrast(image), (0.0,)),
    "equalize": (lambda image, value: ImageOps.equalize(image), (0.0,)),
    "invert": (lambda image, value: ImageOps.invert(image), (0.0,)),
    "solarize_add": (
        lambda image, value: image.point(
            [min(255, v + int(value)) if v < 128 else v for v in range(256)] * 3
        ),
        (0, 40.6, 110),
    ),
}
SHAPES = {
    "shear_x": (transform(lambda v: (1, v, 0, 0, 1, 0)), (-0.3, 0.11, 0.99)),
    "shear_y": (transform(lambda v: (1, 0, 0, v, 1, 0)), (-0.3, 0.11, 0.99)),
    "translate_x": (transform(lambda v: (1, 0, -int(v), 0, 1, 0)), (-4.7, 0.0, 3.2, 32.0)),
    "translate_y": (transform(lambda v: (1, 0, 0, 0, 1, -int(v))), (-4.7, 0.0, 3.2, 32.0)),
    "rotate": (
        lambda image, value, how: image.rotate(value, how, fillcolor=FILL),
        (-30.0, 0.0, 11.0, 97.0, 131.0),
    ),
}


def ours(images, name, value, interpolation="nearest"):
    count = len(images)
    value = jnp.full(count, value, jnp.float32)
    run = jax.jit(colour.apply, static_argnums=(1, 5))
    out = run(
        jnp.array(images, jnp.float32),
        (name,),
        jnp.zeros(count, jnp.int32),
        value,
        jnp.array(FILL[: images.shape[-1]], jnp.float32),
        interpolation,
    )
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.asarray(out).astype(np.uint8))
    return np.asarray(out, np.int32)


def pillow(images, function, *args):
    return np.stack(
        [np.asarray(function(Image.fromarray(image), *args)) for image in images]
    ).astype(np.int32)


@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_pillow_s(name, photographs, noise):
    """The same levels, except one in a thousand that rounds to the next; for autocontrast, which
    Pillow computes in doubles, one in a hundred.
    """
    function, values = COLOURS[name]
    rare = 1e-2 if name == "autocontrast" else 1e-3
    for images in (photographs, noise):
        for value in values:
            difference = np.abs(ours(images, name, value) - pillow(images, function, value))
            assert difference.max() <= 1 and np.mean(difference > 0) < rare, (
                value,
                difference.max(),
                np.mean(difference > 0),
            )


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_pillow_s(name, photographs, noise):
    """Nearest: the same pixels, except one in two hundred, whose center falls on an edge. Bilinear:
    within one level.
    """
    function, values = SHAPES[name]
    for images in (photographs, noise):
        for value in values:
            nearest = pillow(images, function, value, Image.Resampling.NEAREST)
            assert np.mean(ours(images, name, value) != nearest) < 5e-3, value
            difference = np.abs(
                ours(images, name, value, "bilinear")
                - pillow(images, function, value, Image.Resampling.BILINEAR)
            )
            assert np.mean(difference > 1) < 5e-3, (value, difference.max())


def test_each_example_gets_its_own(photographs):
    """A batch with a different operation for each example equals the examples one at a time."""
    names = ("identity", *SHAPES, *(name for name in COLOURS if name != "identity"))
    images = photographs[: len(names)]
    values = [dict(COLOURS | SHAPES)[name][1][0] for name in names]
    run = jax.jit(colour.apply, static_argnums=(1, 5))
    values = jnp.array(values, jnp.float32)
    out = run(
        jnp.array(images, jnp.float32),
        names,
        jnp.arange(len(names)),
        values,
        jnp.array(FILL, jnp.float32),
        "bilinear",
    )
    for n, (name, value) in enumerate(zip(names, values.tolist(), strict=True)):
        np.testing.assert_allclose(
            out[n], ours(images[n : n + 1], name, value, "bilinear")[0], atol=1, err_msg=name
        )


@pytest.mark.parametrize("name", [name for name in COLOURS if name != "solarize_add"])
def test_grey_images_too(name, photographs):
    """One channel equals Pillow's mode L."""
    function, (value, *_) = COLOURS[name]
    images = photographs[:10, :, :, 0]
    expected = pillow(images, function, value)
    assert np.abs(ours(images[..., None], name, value)[..., 0] - expected).max() <= 1


def test_hue_turns_the_circle(photographs):
    """Within one level of the conversion to hue, saturation, value and back."""
    images = photographs[:, ::8, ::8]
    for shift in (-0.5, -0.1, 0.0, 0.25, 0.5):
        found = jax.jit(colour.hue)(
            jnp.array(images, jnp.float32), jnp.full((len(images), 1, 1, 1), shift)
        )
        expected = []
        for pixel in images.reshape(-1, 3) / 255:
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            expected.append(colorsys.hsv_to_rgb((h + shift) % 1, s, v))
        np.testing.assert_allclose(found, 255 * np.array(expected).reshape(images.shape), atol=0.51)


def test_pca_shift_moves_along_the_components():
    image = jnp.full((2, 3, 3, 3), 0.5)
    moved = colour.pca_shift(image, jnp.array([[0.1, 0.0, 0.0], [0.0, 0.1, -0.2]])) - image
    first = 0.1 * 0.2175 * np.array([-0.5675, -0.5808, -0.5836])
    second = 0.1 * 0.0188 * np.array([0.7192, -0.0045, -0.6948]) - 0.2 * 0.0045 * np.array(
        [0.4009, -0.8140, 0.4203]
    )
    np.testing.assert_allclose(moved[0], np.broadcast_to(first, (3, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(moved[1], np.broadcast_to(second, (3, 3, 3)), atol=1e-6)
    vectors = np.array(colour.PCA_VECTORS)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-3)
