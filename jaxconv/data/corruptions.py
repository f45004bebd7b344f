"""ImageNet-C's corruptions of an image (Hendrycks and Dietterich 2019, arXiv:1903.12261, Figure 1).

    noise      gaussian_noise  shot_noise  impulse_noise
    blur       defocus_blur  glass_blur  motion_blur  zoom_blur
    weather    snow  fog  brightness                         (frost needs its photographs)
    digital    contrast  elastic_transform  pixelate  jpeg_compression

The parameters of severities 1 to 5 are those of the paper's images of 224 pixels, and of CIFAR-10-C
for images of up to 64. The random draws differ from those of the published files, and those of
ImageNet-C were also saved as JPEG of quality 85 after their corruption.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxconv.data import distortions as by
from jaxconv.errors import UserError, nearest

SEVERITIES = (1, 2, 3, 4, 5)
# Images with a side of at most this have the parameters of CIFAR-10-C.
SMALL = 64


class Corruption(NamedTuple):
    """A kind of corruption.

    Attributes:
      function: (key, image, *parameters) -> image.
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


def corrupt(key: jax.Array, image: jax.Array, kind: str, severity: int) -> jax.Array:
    """A corrupted image [H, W, C], from 0 to 1, of float32.

    Args:
      key: of the image.
      image: [H, W, C] float32 from 0 to 1, C of 1 or 3.
      kind: one of `CORRUPTIONS`.
      severity: 1 to 5.
    """
    found = CORRUPTIONS[kind]
    grey = image.shape[-1] == 1
    image = jnp.repeat(image, 3, axis=-1) if grey else image
    table = found.small if min(image.shape[:2]) <= SMALL else found.large
    changed = jnp.clip(found.function(key, image, *table[severity - 1]), 0, 1)
    return changed[..., :1] if grey else changed


def read_corruptions(text: str) -> list[tuple[str, int]]:
    """The (kind, severity) pairs of `all`, or of KIND and KIND:SEVERITY separated by commas.

    Raises:
      UserError: a kind or a severity does not exist.
    """
    found = []
    for one in [*CORRUPTIONS] if text == "all" else text.split(","):
        kind, colon, number = one.partition(":")
        if kind == "frost":
            raise UserError(
                f"--corruptions={text}: frost needs its photographs, which are not here"
            )
        if kind not in CORRUPTIONS:
            raise UserError(
                f"--corruptions={text}: there is no {kind!r}{nearest(kind, CORRUPTIONS)}; give "
                f"all, or some of {', '.join(CORRUPTIONS)}, each with :SEVERITY or without"
            )
        if colon and number not in map(str, SEVERITIES):
            raise UserError(f"--corruptions={text}: the severity is {number!r}; it is 1 to 5")
        found += [(kind, int(number))] if colon else [(kind, n) for n in SEVERITIES]
    return [*dict.fromkeys(found)]
