"""Which part of an image a network sees, as a box (top, left, height, width) in the image's own
pixels.

Cutting the box out and resizing it once is the same as the papers' "resize, then crop", without the
pixels that the crop throws away.

    crop_box    random resized crop: a random share of the area at a random aspect ratio (Szegedy et
                al. 2014, arXiv:1409.4842, section 6)
    jitter_box  scale jitter: the shorter side is resized to a random S, then a random square is cut
                out (Simonyan and Zisserman 2014, arXiv:1409.1556, section 3.1). With one S it is
                AlexNet's random crop of an image of one size
    eval_box    the shorter side is resized to one size, then the middle square is cut out
    whole_box   the shorter side is resized to one size, and nearly all of the longer one kept (the
                same, section 3.2)
"""

import math
from typing import Any

import numpy as np

Box = tuple[int, int, int, int]

TRIES = 10


def train_box(
    random: np.random.Generator, height: int, width: int, image_size: int, augment: Any
) -> Box:
    """The box that `config.augment` asks for while training: of one of its random crops, or else
    the whole middle square.

    Args:
      random: the example's own generator.
      height, width: of the image, in pixels.
      image_size: pixels of the network's input.
      augment: `config.augment`; `random_resized_crop` and `scale_jitter` are used.
    """
    if augment.random_resized_crop.scale:
        return crop_box(
            random,
            height,
            width,
            augment.random_resized_crop.scale,
            augment.random_resized_crop.ratio,
        )
    if augment.scale_jitter:
        return jitter_box(random, height, width, image_size, augment.scale_jitter)
    return eval_box(height, width, image_size)


def crop_box(
    random: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw the box of a random resized crop, by torchvision's rule for RandomResizedCrop.

    Its share of the area is uniform in `scale`, the logarithm of its width over its height uniform
    in that of `ratio`; where ten tries do not fit the image, it is the largest box in the middle
    with a ratio in that range.
    """
    for _ in range(TRIES):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    return middle_box(height, width, ratio)


def middle_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """The largest box in the middle whose width over height lies in a range."""
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_box(
    random: np.random.Generator, height: int, width: int, image_size: int, sides: tuple[int, int]
) -> Box:
    """Draw the box of VGG's scale jitter: what a crop of `image_size` covers once the shorter side
    is a random S in `sides`.

    Raises:
      ValueError: the crop would be larger than the smallest S.
    """
    least, most = sides
    if image_size > least:
        raise ValueError(
            f"augment.scale_jitter begins at {least} pixels, less than the {image_size} of the crop"
        )
    side = max(1, round(min(height, width) * image_size / random.integers(least, most + 1)))
    return (
        int(random.integers(height - side + 1)),
        int(random.integers(width - side + 1)),
        side,
        side,
    )


def eval_box(height: int, width: int, image_size: int, crop_ratio: float = 1.0) -> Box:
    """The middle square that is left when the shorter side is resized to `image_size / crop_ratio`,
    rounded down, and the middle kept.

    With 224 and 0.875 that is the papers' 224 of 256. The square is rounded to whole pixels.
    """
    side = max(1, round(min(height, width) * image_size / math.floor(image_size / crop_ratio)))
    return (height - side) // 2, (width - side) // 2, side, side


def whole_box(
    height: int, width: int, scale: int, step: int, longest: int
) -> tuple[Box, tuple[int, int]]:
    """The part of an image that is left when its longer side is cut in the middle, and the size
    (height, width) to resize it to.

    Args:
      height, width: of the image, in pixels.
      scale: of the shorter side, after resizing.
      step: the longer side is `scale` and a whole number of these.
      longest: the longer side is at most so many times the shorter.
    """
    shorter, longer = sorted((height, width))
    room = min(round(longer * scale / shorter), longest * scale) - scale
    long_size = scale + room // step * step
    kept = min(longer, round(shorter * long_size / scale))
    start = (longer - kept) // 2
    if height <= width:
        return (0, start, height, kept), (scale, long_size)
    return (start, 0, kept, width), (long_size, scale)
