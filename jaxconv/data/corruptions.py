"""ImageNet-C's corruptions of an image (Hendrycks and Dietterich 2019, arXiv:1903.12261, Figure 1).

    noise      gaussian_noise  shot_noise  impulse_noise
    blur       defocus_blur  glass_blur  motion_blur  zoom_blur
    weather    snow  frost  fog  brightness
    digital    contrast  elastic_transform  pixelate  jpeg_compression

The parameters of severities 1 to 5 are those of the paper's images of 224 pixels, and of CIFAR-10-C
for images of up to 64. The random draws differ from those of the published files, and those of
ImageNet-C were also saved as JPEG of quality 85 after their corruption.

Frost lays photographs of it over the image, the authors' six (ImageNet-C/create_c/frost*), whose
licence is not known; so they are read from a folder of yours. The authors draw among the first
five, here all are used.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data import distortions as by
from jaxconv.data.decode import read_image
from jaxconv.data.interface import DamagedError
from jaxconv.data.listing import list_files, suffixes_of
from jaxconv.errors import UserError, nearest

SEVERITIES = (1, 2, 3, 4, 5)
# Images with a side of at most this have the parameters of CIFAR-10-C.
SMALL = 64
FROST = "frost"


class Corruption(NamedTuple):
    """A kind of corruption.

    Attributes:
      function: (key, image, *parameters) -> image; of frost (key, image, textures, *parameters).
      large, small: parameters of severities 1 to 5, of ImageNet-C and CIFAR-10-C.
      alexnet: AlexNet's mean error on ImageNet-C over the severities, by which mCE divides.
    """

    function: Callable[..., jax.Array]
    large: Sequence[tuple[float, ...]]
    small: Sequence[tuple[float, ...]]
    alexnet: float


def _each(*values: float) -> list[tuple[float, ...]]:
    return [(value,) for value in values]


# The parameters of the authors' make_imagenet_c.py and make_cifar_c.py, and AlexNet's errors of
# their README (github.com/hendrycks/robustness).
CORRUPTIONS = {
    "gaussian_noise": Corruption(
        by.gaussian_noise, _each(0.08, 0.12, 0.18, 0.26, 0.38), _each(0.04, 0.06, 0.08, 0.09, 0.10),
        0.886428,
    ),
    "shot_noise": Corruption(
        by.shot_noise, _each(60, 25, 12, 5, 3), _each(500, 250, 100, 75, 50), 0.894468
    ),
    "impulse_noise": Corruption(
        by.impulse_noise, _each(0.03, 0.06, 0.09, 0.17, 0.27), _each(0.01, 0.02, 0.03, 0.05, 0.07),
        0.922640,
    ),
    "defocus_blur": Corruption(
        by.defocus_blur, [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)], 0.819880,
    ),
    "glass_blur": Corruption(
        by.glass_blur, [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)], 0.826268,
    ),
    "motion_blur": Corruption(
        by.motion_blur, [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)], 0.785948,
    ),
    "zoom_blur": Corruption(
        by.zoom_blur, [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
        [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)], 0.798360,
    ),
    "snow": Corruption(
        by.snow,
        [(0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
         (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
         (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)],
        [(0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
         (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
         (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)],
        0.866816,
    ),
    FROST: Corruption(
        by.frost, [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
        [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)], 0.826572,
    ),
    "fog": Corruption(
        by.fog, [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)], 0.819324,
    ),
    "brightness": Corruption(
        by.brightness, _each(0.1, 0.2, 0.3, 0.4, 0.5), _each(0.05, 0.1, 0.15, 0.2, 0.3), 0.564592
    ),
    "contrast": Corruption(
        by.contrast, _each(0.4, 0.3, 0.2, 0.1, 0.05), _each(0.75, 0.5, 0.4, 0.3, 0.15), 0.853204
    ),
    "elastic_transform": Corruption(
        by.elastic_transform,
        [(244 * 2, 244 * 0.7, 244 * 0.1), (244 * 2, 244 * 0.08, 244 * 0.2),
         (244 * 0.05, 244 * 0.01, 244 * 0.02), (244 * 0.07, 244 * 0.01, 244 * 0.02),
         (244 * 0.12, 244 * 0.01, 244 * 0.02)],
        [(0, 0, 32 * 0.08), (32 * 0.05, 32 * 0.2, 32 * 0.07), (32 * 0.08, 32 * 0.06, 32 * 0.06),
         (32 * 0.1, 32 * 0.04, 32 * 0.05), (32 * 0.1, 32 * 0.03, 32 * 0.03)],
        0.646056,
    ),
    "pixelate": Corruption(
        by.pixelate, _each(0.6, 0.5, 0.4, 0.3, 0.25), _each(0.95, 0.9, 0.85, 0.75, 0.65), 0.717840
    ),
    "jpeg_compression": Corruption(
        by.jpeg_compression, _each(25, 18, 15, 10, 7), _each(80, 65, 58, 50, 40), 0.606500
    ),
}  # fmt: skip


def corrupt(
    key: jax.Array,
    image: jax.Array,
    kind: str,
    severity: int,
    textures: by.Textures | None = None,
) -> jax.Array:
    """A corrupted image [H, W, C], from 0 to 1, of float32.

    Args:
      key: of the image.
      image: [H, W, C] float32 from 0 to 1, C of 1 or 3.
      kind: one of `CORRUPTIONS`.
      severity: 1 to 5.
      textures: of frost, see `read_textures`.

    Raises:
      ValueError: it is frost, without textures.
    """
    if kind == FROST and textures is None:
        raise ValueError("frost needs textures, see read_textures")
    found, first = CORRUPTIONS[kind], (textures,) if kind == FROST else ()
    grey = image.shape[-1] == 1
    image = jnp.repeat(image, 3, axis=-1) if grey else image
    table = found.small if min(image.shape[:2]) <= SMALL else found.large
    changed = jnp.clip(found.function(key, image, *first, *table[severity - 1]), 0, 1)
    return changed[..., :1] if grey else changed


def read_textures(folder: str, height: int, width: int) -> by.Textures:
    """The textures of frost for images of a size: all image files below a folder, in their order.

    For small images they are made a fifth as large, as for CIFAR-10-C: every fifth pixel, which is
    where OpenCV's linear resizing by 0.2 samples.

    Raises:
      UserError: there is no such folder or no image in it, or one cannot be read or is smaller than
        the images.
    """
    root = Path(folder).expanduser()
    names = list_files(root, suffixes_of("image")).names if root.is_dir() else []
    if not names:
        why = "holds no image" if root.is_dir() else "folder not found"
        raise UserError(f"--frost={folder}: {why}; give a folder of photographs of frost", 1)
    found = []
    for name in names:
        try:
            pixels = read_image(root / name, channels=3)
        except (DamagedError, OSError) as error:
            raise UserError(f"--frost={folder}: {name}: {error}", exit_code=1) from error
        pixels = pixels[2::5, 2::5] if min(height, width) <= SMALL else pixels
        if pixels.shape[0] < height or pixels.shape[1] < width:
            small = " at a fifth of its size" if min(height, width) <= SMALL else ""
            raise UserError(
                f"--frost={folder}: {name} has {pixels.shape[1]}x{pixels.shape[0]} pixels{small}, "
                f"fewer than the images' {width}x{height}",
                exit_code=1,
            )
        found.append(pixels)
    sizes = np.array([pixels.shape[:2] for pixels in found], np.int32)
    images = np.zeros((len(found), *sizes.max(axis=0), 3), np.uint8)
    for image, pixels in zip(images, found, strict=True):
        image[: pixels.shape[0], : pixels.shape[1]] = pixels
    return by.Textures(images, sizes)


def read_corruptions(text: str, frost: bool = False) -> list[tuple[str, int]]:
    """The (kind, severity) pairs of `all`, or of KIND and KIND:SEVERITY separated by commas.

    Args:
      text: as given.
      frost: whether there are textures of frost; without them `all` leaves it out.

    Raises:
      UserError: a kind or a severity does not exist, or frost is named without its textures, or not
        named with them.
    """
    found = []
    every = [kind for kind in CORRUPTIONS if frost or kind != FROST]
    for one in every if text == "all" else text.split(","):
        kind, colon, number = one.partition(":")
        if kind == FROST and not frost:
            raise UserError(
                f"--corruptions={text}: frost needs photographs of it, which cannot be distributed "
                "with jaxconv: give their folder, --frost=DIR"
            )
        if kind not in CORRUPTIONS:
            raise UserError(
                f"--corruptions={text}: there is no {kind!r}{nearest(kind, CORRUPTIONS)}; give "
                f"all, or some of {', '.join(CORRUPTIONS)}, each with :SEVERITY or without"
            )
        if colon and number not in map(str, SEVERITIES):
            raise UserError(f"--corruptions={text}: the severity is {number!r}; it is 1 to 5")
        found += [(kind, int(number))] if colon else [(kind, n) for n in SEVERITIES]
    if frost and FROST not in dict(found):
        raise UserError(f"--corruptions={text}: has no frost, so that --frost does nothing")
    return [*dict.fromkeys(found)]
