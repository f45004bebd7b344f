"""Images of any shape on a canvas of one size, `config.data.canvas`.

An image keeps its shape: it is resized until it fits, and stands at the top left. The rest of the
canvas has the mean colour, which is 0 after normalising, up to its rounding to 8 bits. It is laid
on by the host, in bytes, so that training, evaluation, `predict` and an exported program see the
same pixels, and no program has to be told what is padding. What changes colours in training
changes the padding too, so `augment.py` fills it again, after normalising.

An example has two more targets, float32:

    size    [2] height and width of the image in its file, turned upright
    seen    [2] height and width of the part of the canvas that shows it
"""

import types
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxconv.data import geometry
from jaxconv.data.geometry import Box, Size
from jaxconv.data.interface import Target
from jaxconv.errors import UserError

TARGETS: Mapping[str, Target] = types.MappingProxyType(
    {"size": Target((2,), "float32"), "seen": Target((2,), "float32")}
)


def fit_size(height: int, width: int, canvas: Sequence[float], sides: Sequence[int] = ()) -> Size:
    """The largest size with the shape of an image that fits into a canvas.

    Sides are rounded down to whole pixels, as torchvision's detectors do.

    Args:
      height, width: of the image.
      canvas: (height, width).
      sides: `config.data.sides`, the most pixels of the shorter and the longer side.
    """
    ratios = [Fraction(canvas[0]) / height, Fraction(canvas[1]) / width]
    if sides:
        shorter, longer = sorted((height, width))
        ratios += [Fraction(sides[0], shorter), Fraction(sides[1], longer)]
    ratio = min(ratios)
    return max(1, int(height * ratio)), max(1, int(width * ratio))


def jittered(
    random: np.random.Generator,
    height: int,
    width: int,
    canvas: Size,
    sides: Sequence[int],
    factors: Sequence[float],
) -> tuple[Box, Size]:
    """Draw the part of an image of large scale jitter, and its size on the canvas.

    The image is resized to a random factor of the size that fits (Ghiasi et al. 2021,
    arXiv:2012.07177, section 3.1). Of a larger one a random part is seen.

    Args:
      random: the example's own generator.
      height, width, canvas, sides: as in `fit_size`.
      factors: the smallest and the largest.
    """
    factor = random.uniform(factors[0], factors[1])
    fitted = fit_size(height, width, canvas, sides)
    full = [max(1, round(side * factor)) for side in fitted]
    seen = (min(full[0], canvas[0]), min(full[1], canvas[1]))
    h, w = (
        max(1, round(side * part / whole))
        for side, part, whole in zip((height, width), seen, full, strict=True)
    )
    top, left = random.integers(height - h + 1), random.integers(width - w + 1)
    return (int(top), int(left), h, w), seen


def eval_part(height: int, width: int, settings: Any, size: int) -> tuple[Box, Size]:
    """The part of an image that evaluation sees, and its size.

    Args:
      height, width: of the image.
      settings: `config.data`, or what `sources.reading_of` keeps of it; `canvas`, `sides` and
        `crop_ratio` are used.
      size: of the middle square, without a canvas; 0 for the whole image at its own size.
    """
    whole = (0, 0, height, width)
    if settings["canvas"]:
        return whole, fit_size(height, width, settings["canvas"], settings["sides"])
    if not size:
        return whole, (height, width)
    return geometry.eval_box(height, width, size, settings["crop_ratio"]), (size, size)


def per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """`config.data.mean` or `std` for images of so many channels: [C], or one for all of them.

    Three numbers, of colour, become their mean for grey images, whose weights are sums of those of
    colour, see `initial.adapt_channels`.

    Raises:
      UserError: there are several numbers, but not one per channel.
    """
    if len(values) == 3 and channels == 1:
        return (sum(values) / 3,)
    if len(values) not in (1, channels):
        raise UserError(
            f"config.data.{name} has {len(values)} numbers; the images have {channels} channels"
        )
    return tuple(values)


def pad_colour(mean: Sequence[float], channels: int) -> np.ndarray:
    """The colour [C] uint8 of padding, of `config.data.mean`.

    Raises:
      UserError: there are several numbers, but not one per channel.
    """
    mean = per_channel("mean", mean, channels)
    return np.broadcast_to(np.round(255 * np.clip(mean, 0, 1)), channels).astype(np.uint8)


def laid_on(pixels: np.ndarray, canvas: Size, colour: np.ndarray) -> np.ndarray:
    """An image [h, w, C] at the top left of a canvas: [H, W, C]."""
    if pixels.shape[:2] == tuple(canvas):
        return pixels
    found = np.empty((*canvas, pixels.shape[-1]), pixels.dtype)
    found[:] = colour
    found[: pixels.shape[0], : pixels.shape[1]] = pixels
    return found
