"""ImageNet-C's corruptions: what each does, by its definition or against the authors' libraries."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxconv.data import distortions as by
from jaxconv.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    read_corruptions,
    read_textures,
)
from jaxconv.errors import UserError

KEY = jax.random.key(0)
# Of frost, made up: two pictures of different sizes.
TEXTURES = by.Textures(
    np.random.default_rng(1).integers(0, 256, (2, 240, 250, 3), np.uint8),
    np.array([[240, 231], [225, 250]], np.int32),
)


def photograph(height=32, width=32):
    """Smooth shapes with some texture, [H, W, 3] from 0 to 1, of 8 bits."""
    y, x = np.mgrid[:height, :width] / height
    waves = [np.sin(6 * x + 3 * y), np.cos(5 * y), np.sin(9 * x * y)]
    image = 0.5 + 0.35 * np.stack(waves, axis=-1)
    image += 0.04 * np.random.default_rng(0).normal(size=image.shape)
    return (np.clip(np.floor(image * 255), 0, 255) / 255).astype(np.float32)


def as_pil(image):
    return Image.fromarray(np.uint8(np.round(np.asarray(image) * 255)))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_corrupts_and_more_so(kind):
    """Severity 5 is farther from the image than 1; the values, the draws and grey are right."""
    image = photograph()
    of = jax.jit(lambda key, x, n: corrupt(key, x, kind, n, TEXTURES), static_argnums=2)
    changed = {n: np.asarray(of(KEY, image, n)) for n in (1, 5)}
    for one in changed.values():
        assert one.shape == image.shape and one.dtype == np.float32
        assert one.min() >= 0 and one.max() <= 1 and np.isfinite(one).all()
    near, far = (float(np.abs(changed[n] - image).mean()) for n in (1, 5))
    if kind not in (
        "elastic_transform",
        "snow",
        "glass_blur",
        "frost",
    ):  # theirs are not in order of it
        assert far > near
    assert far > 0.001
    np.testing.assert_array_equal(changed[1], of(KEY, image, 1))
    grey = np.asarray(of(KEY, image[..., :1], 1))
    assert grey.shape == (32, 32, 1)
    np.testing.assert_allclose(grey, of(KEY, image[..., :1].repeat(3, -1), 1)[..., :1], atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_all_of_224_pixels(kind, severity):
    changed = np.asarray(jax.jit(corrupt, static_argnums=(2, 3))(
        KEY, photograph(224, 224), kind, severity, TEXTURES
    ))  # fmt: skip
    assert np.isfinite(changed).all() and np.abs(changed - photograph(224, 224)).mean() > 0.001


def test_images_that_are_not_square():
    for kind in CORRUPTIONS:
        image = jnp.asarray(photograph(40, 28))
        assert corrupt(KEY, image, kind, 3, TEXTURES).shape == (40, 28, 3)


def test_the_size_chooses_the_parameters():
    noise = {
        size: float(np.std(corrupt(KEY, jnp.full((size, size, 3), 0.5), "gaussian_noise", 1)))
        for size in (64, 65)
    }
    np.testing.assert_allclose([noise[64], noise[65]], [0.04, 0.08], rtol=0.03)


def test_noise_has_its_statistics():
    image = jnp.full((200, 200, 3), 0.3)
    shot = np.asarray(by.shot_noise(KEY, image, 60))
    np.testing.assert_allclose([shot.mean(), shot.var()], [0.3, 0.3 / 60], rtol=0.02)
    impulse = np.asarray(by.impulse_noise(KEY, image, 0.1))
    shares = [(impulse == value).mean() for value in (0, 1)]
    np.testing.assert_allclose(shares, [0.05, 0.05], rtol=0.05)


@pytest.mark.parametrize("quality", [80, 50, 25, 7])
@pytest.mark.parametrize("size", [(32, 48), (37, 30)])
def test_jpeg_is_pillows(quality, size):
    image, file = photograph(*size), io.BytesIO()
    as_pil(image).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file)) / 255
    found = np.asarray(by.jpeg_compression(KEY, image, quality))
    lost = np.abs(expected - image).mean()
    assert np.abs(np.clip(found, 0, 1) - expected).mean() < 0.15 * lost


@pytest.mark.parametrize("share", [0.95, 0.65, 0.25])
def test_pixelate_is_pillows(share):
    image = photograph(48, 32)
    few = (int(32 * share), int(48 * share))
    expected = (
        as_pil(image).resize(few, Image.Resampling.BOX).resize((32, 48), Image.Resampling.BOX)
    )
    found = np.asarray(by.pixelate(KEY, image, share))
    np.testing.assert_allclose(found, np.asarray(expected) / 255, atol=1.01 / 255)


def test_zoom_is_scipys():
    scipy = pytest.importorskip("scipy.ndimage")
    image, factor = photograph(), 1.21
    inside = int(np.ceil(32 / factor))
    first = (32 - inside) // 2
    part = image[first : first + inside, first : first + inside]
    zoomed = scipy.zoom(part, (factor, factor, 1), order=1)
    trim = (zoomed.shape[0] - 32) // 2
    expected = zoomed[trim : trim + 32, trim : trim + 32]
    np.testing.assert_allclose(by._zoomed(image, factor), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("sigma", "mode"), [(0.7, "edge"), (3.0, "symmetric"), (30.0, "symmetric")]
)
def test_blur_is_scipys(sigma, mode):
    scipy = pytest.importorskip("scipy.ndimage")
    image, named = photograph(), {"edge": "nearest", "symmetric": "reflect"}[mode]
    expected = scipy.gaussian_filter(image, (sigma, sigma, 0), mode=named, truncate=3.0)
    np.testing.assert_allclose(by.blur(image, sigma, 3.0, mode), expected, atol=2e-4)


def test_defocus_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    for radius, alias, reach, taps in ((3, 0.1, 8, 3), (10, 0.5, 10, 5)):
        x, y = np.meshgrid(*[np.arange(-reach, reach + 1)] * 2)
        disk = np.float32(x**2 + y**2 <= radius**2)
        disk = cv2.GaussianBlur(disk / disk.sum(), (taps, taps), alias)
        np.testing.assert_allclose(by._disk(radius, alias), disk, atol=1e-6)
        expected = cv2.filter2D(photograph(), -1, disk)
        found = by.defocus_blur(KEY, photograph(), radius, alias)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_glass_follows_the_loop_of_the_authors():
    """One round with a blur of nothing: each pixel gets one of its neighbourhood, in order."""
    image, reach = photograph(12, 10), 2
    draws = np.asarray(jax.random.randint(jax.random.fold_in(KEY, 0), (2, 12, 10), -reach, reach))
    expected = image.copy()
    for h in range(12 - reach, reach, -1):
        for w in range(10 - reach, reach, -1):
            if h < 12 and w < 10:
                expected[h, w] = expected[h + draws[0, h, w], w + draws[1, h, w]]
    found = by.glass_blur(KEY, image, 0.01, reach, 1)
    np.testing.assert_allclose(found, np.floor(expected * 255 + 1e-3) / 255, atol=1.01 / 255)


def test_motion_by_hand():
    """At 0 degrees a point is spread to the left, by half a Gaussian."""
    point = np.zeros((5, 9, 1), np.float32)
    point[2, 6] = 1
    found = np.asarray(by._motion(point, 2, 1.0, jnp.float32(0)))
    weight = np.exp(-0.5 * np.arange(5) ** 2)
    np.testing.assert_allclose(found[2, 2:7, 0], weight[::-1] / weight.sum(), atol=1e-6)
    assert found.sum() == pytest.approx(1)


def test_brightness_and_contrast():
    hsv = pytest.importorskip("matplotlib.colors")
    image = photograph()
    changed = hsv.rgb_to_hsv(image)
    changed[..., 2] = np.clip(changed[..., 2] + 0.2, 0, 1)
    found = by.brightness(KEY, jnp.asarray(image), 0.2)
    np.testing.assert_allclose(found, hsv.hsv_to_rgb(changed), atol=1e-5)
    found = np.asarray(by.contrast(KEY, image, 0.25))
    np.testing.assert_allclose(found.mean((0, 1)), image.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(found.std((0, 1)), 0.25 * image.std((0, 1)), rtol=1e-3)
    black = by.brightness(KEY, jnp.zeros((2, 2, 3)), 0.2)
    np.testing.assert_allclose(black, 0.2)


def test_elastic_without_shifts_is_the_image():
    image = photograph()
    found = by.elastic_transform(KEY, image, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(found, image, atol=1e-4)


def test_clouds():
    clouds = np.asarray(by.plasma(KEY, 32, 2.0))
    assert clouds.shape == (32, 32) and clouds.min() == 0 and clouds.max() == 1
    smooth, rough = (np.abs(np.diff(by.plasma(KEY, 64, d), axis=0)).mean() for d in (3.0, 1.5))
    assert rough > smooth


def test_names():
    assert read_corruptions("fog:2,snow:1,fog:2") == [("fog", 2), ("snow", 1)]
    assert len(read_corruptions("all")) == 14 * 5 and len(read_corruptions("all", True)) == 15 * 5
    assert read_corruptions("frost:2,fog:1", True) == [("frost", 2), ("fog", 1)]
    with pytest.raises(UserError, match="has no frost, so that --frost does nothing"):
        read_corruptions("fog", True)
    for text, message in (
        ("fgo", "did you mean 'fog'"), ("fog:6", "it is 1 to 5"),
        ("frost", "give their folder, --frost"), ("fog:", "it is 1 to 5"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_corruptions(text)


def save_textures(folder, sizes=((195, 200), (205, 190)), seed=0):
    """Made-up pictures of frost, one PNG for each (height, width); returns their pixels."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    for number, one in enumerate(pixels, 1):
        Image.fromarray(one).save(folder / f"frost{number}.png")
    return pixels


@pytest.mark.parametrize("size", [32, 80])
def test_frost_is_a_part_of_a_texture(tmp_path, size):
    """By the authors' rule in NumPy: of a fifth of the texture for small images, a random part is
    added to a share of the image; the last place is not drawn.
    """
    pixels = save_textures(tmp_path / "frost")
    textures = read_textures(str(tmp_path / "frost"), size, size)
    kept, amount = {32: (0.9, 0.4), 80: (0.7, 0.7)}[size]
    if size == 32:
        cv2 = pytest.importorskip("cv2")
        pixels = [cv2.resize(one, (0, 0), fx=0.2, fy=0.2) for one in pixels]
    image = photograph(size, size)
    of = jax.jit(jax.vmap(lambda key: corrupt(key, jnp.asarray(image), "frost", 3, textures)))
    found = np.asarray(of(jax.random.split(KEY, 40)))
    assert len({one.tobytes() for one in found}) > 10
    places = {}
    for number, texture in enumerate(pixels):
        rows, columns = (side - size for side in texture.shape[:2])
        for top in range(rows):
            for left in range(columns):
                places[texture[top, left : left + 2].tobytes()] = (number, top, left)
    drawn = set()
    for one in found:
        # Where nothing is clipped, the rule can be turned around: which part was it?
        frost = (one - kept * image) / amount * 255
        first = np.uint8(np.round(frost[0, :2]).clip(0, 255)).tobytes()
        if first not in places:
            continue
        number, top, left = places[first]
        drawn.add(number)
        part = pixels[number][top : top + size, left : left + size].astype(np.float32) / 255
        np.testing.assert_allclose(one, np.clip(kept * image + amount * part, 0, 1), atol=1e-5)
    assert drawn == {0, 1}
    with pytest.raises(ValueError, match="frost needs textures"):
        corrupt(KEY, jnp.asarray(image), "frost", 1)


def test_wrong_textures(tmp_path):
    save_textures(tmp_path / "frost", ((165, 170), (180, 150)))
    textures = read_textures(str(tmp_path / "frost"), 150, 150)
    assert textures.images.shape == (2, 180, 170, 3)
    assert textures.sizes.tolist() == [[165, 170], [180, 150]]
    (tmp_path / "empty").mkdir()
    for folder, size, message in (
        ("nothing", 32, "nothing: folder not found; give a folder"),
        ("empty", 32, "empty: holds no image"),
        ("frost", 151, "frost2.png has 150x180 pixels, fewer than the images' 151x151"),
        ("frost", 35, "frost1.png has 34x33 pixels at a fifth of its size, fewer than"),
    ):
        with pytest.raises(UserError, match=message):
            read_textures(str(tmp_path / folder), size, size)
    (tmp_path / "frost" / "frost3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"frost3.png: "):
        read_textures(str(tmp_path / "frost"), 150, 150)
