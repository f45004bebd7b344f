"""Anchors: the boxes that a detector starts from, at every position of its feature maps.

    detector            sizes at each map                         ratios h / w     rounded
    Faster, Mask R-CNN  32, 64, 128, 256, 512                     0.5, 1, 2        yes
    RetinaNet           those times 1, 2^(1/3), 2^(2/3)           0.5, 1, 2        yes
    FCOS                8, 16, 32, 64, 128, the strides           1                yes
    SSD, SSDlite        of the image, see `default_boxes`         1, 2, 3, ...     no

Faster R-CNN: Ren et al. 2015, arXiv:1506.01497, section 3.1.1, by maps as in FPN, Lin et al. 2017,
arXiv:1612.03144, section 4.1. RetinaNet: Lin et al. 2017, arXiv:1708.02002, section 4. FCOS: Tian
et al. 2019, arXiv:1904.01355. SSD: Liu et al. 2016, arXiv:1512.02325, section 2.2. All as
torchvision has them. The sizes of images and maps are static, so the anchors are numpy constants.
"""

import math
from collections.abc import Sequence

import numpy as np

RATIOS = (0.5, 1.0, 2.0)


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Anchors around position 0, with whole coordinates: [len(ratios) * len(sizes), 4] float32.

    Args:
      sizes: square roots of the areas, in pixels.
      ratios: height / width; sizes change faster than ratios.
    """
    root = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    of_size = np.asarray(sizes, np.float32)[None]
    heights, widths = (root * of_size).reshape(-1), (1 / root * of_size).reshape(-1)
    return np.round(np.stack([-heights, -widths, heights, widths], axis=1) / 2)


def level_anchors(
    image_size: tuple[int, int],
    map_sizes: Sequence[tuple[int, int]],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float] | Sequence[Sequence[float]] = RATIOS,
) -> list[np.ndarray]:
    """The anchors of each map: a list of [height * width * anchors per position, 4] float32.

    They go through a map row by row; those of one position are together, in the order of
    `cell_anchors`. Position (y, x) is pixel (y * stride, x * stride).

    Args:
      image_size: (height, width) of the images that the network sees, padding included; the stride
        of a map is the quotient of the sizes, rounded down.
      map_sizes: (height, width) of each map.
      sizes: of the anchors of each map.
      ratios: of all maps, or of each map.

    Raises:
      ValueError: there are not as many sizes or ratios as maps.
    """
    if not isinstance(ratios[0], Sequence):
        ratios = [ratios] * len(map_sizes)  # type: ignore[list-item]
    if not len(sizes) == len(ratios) == len(map_sizes):
        raise ValueError(
            f"level_anchors: {len(map_sizes)} maps, sizes for {len(sizes)} and ratios for "
            f"{len(ratios)}; each map needs its own"
        )
    result = []
    for grid, own_sizes, own_ratios in zip(map_sizes, sizes, ratios, strict=True):
        y, x = (
            np.arange(count, dtype=np.float32) * (side // count)
            for side, count in zip(image_size, grid, strict=True)
        )
        places = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 1, 2)
        cell = cell_anchors(own_sizes, own_ratios)  # type: ignore[arg-type]
        result.append((np.tile(places, 2) + cell[None]).reshape(-1, 4))
    return result


def default_scales(maps: int, smallest: float = 0.15, largest: float = 0.9) -> tuple[float, ...]:
    """SSD's scales of the maps, evenly spaced, and 1 at the end: shares of the image's side.

    `default_scales(6, 0.2, 0.95)` is SSDlite's; SSD 300's are (0.07, 0.15, 0.33, 0.51, 0.69, 0.87,
    1.05). With one map they are `smallest` and `largest`.
    """
    if maps == 1:
        return smallest, largest
    return (*(smallest + (largest - smallest) * k / (maps - 1) for k in range(maps)), 1.0)


def default_boxes(
    image_size: tuple[int, int],
    map_sizes: Sequence[tuple[int, int]],
    ratios: Sequence[Sequence[float]],
    scales: Sequence[float],
    steps: Sequence[int] = (),
) -> list[np.ndarray]:
    """SSD's anchors of each map: a list of [height * width * (2 + 2 * len(ratios)), 4] float32.

    At each position, with s the scale of the map and s' that of the next: squares of s and of
    sqrt(s * s'), then for each ratio r a box of s * sqrt(r) x s / sqrt(r) and one upright, all at
    most the image. Positions are the centres of cells.

    Args:
      image_size: (height, width) of the images that the network sees.
      map_sizes: (height, width) of each map.
      ratios: of each map, above 1; (2,), (2, 3), ... in the paper.
      scales: of each map and one more, see `default_scales`.
      steps: pixels between the positions of each map; by default the image is divided evenly.

    Raises:
      ValueError: there are not as many ratios, scales or steps as maps need.
    """
    count = len(map_sizes)
    if len(ratios) != count or len(scales) != count + 1 or len(steps) not in (0, count):
        raise ValueError(
            f"default_boxes: {count} maps need as many ratios, one more scale and as many steps or "
            f"none; there are {len(ratios)}, {len(scales)} and {len(steps)}"
        )
    result = []
    for k, grid in enumerate(map_sizes):
        scale, next_to_it = scales[k], math.sqrt(scales[k] * scales[k + 1])
        sides = [(scale, scale), (next_to_it, next_to_it)]
        for ratio in ratios[k]:
            long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            sides += [(short, long), (long, short)]
        half = np.clip(np.asarray(sides, np.float32), 0, 1)[None] / 2
        divisors = [side / steps[k] for side in image_size] if steps else grid
        y, x = (
            ((np.arange(cells, dtype=np.float32) + 0.5) / divisor).astype(np.float32)
            for cells, divisor in zip(grid, divisors, strict=True)
        )
        centres = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 1, 2)
        boxes = np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4)
        result.append(boxes * np.asarray([*image_size, *image_size], np.float32))
    return result
