"""Masks of instances, from the size of the head to that of the image; on the host, in numpy.

Mask R-CNN's head gives 28 x 28 probabilities for a box (He et al. 2017, arXiv:1703.06870, section
3.1). As in torchvision, a mask gets a border of one cell of 0, its box grows as much and is
rounded to whole pixels, and the mask is resized linearly to it.
"""

import numpy as np


def paste_mask(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A square mask [m, m] in an image of `size` (height, width): [height, width] float32.

    The box (top, left, bottom, right) may reach beyond the image. One with a coordinate that is
    not finite gives an empty mask.
    """
    image = np.zeros(size, np.float32)
    box = np.asarray(box, np.float32)
    if not np.isfinite(box).all():
        return image
    mask = np.pad(np.asarray(mask, np.float32), 1)
    half = (box[2:] - box[:2]) * np.float32(0.5) * np.float32(len(mask) / (len(mask) - 2))
    middle = (box[2:] + box[:2]) * np.float32(0.5)
    first, last = (middle - half).astype(np.int64), (middle + half).astype(np.int64)
    (rows, of_rows), (columns, of_columns) = (
        _resized(len(mask), int(a), int(b), side)
        for a, b, side in zip(first, last, size, strict=True)
    )
    image[rows, columns] = of_rows @ mask @ of_columns.T
    return image


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """Masks [N, m, m] in their boxes [N, 4], where above the threshold: [N, height, width] bool."""
    result = np.zeros((len(masks), *size), bool)
    for image, mask, box in zip(result, masks, boxes, strict=True):
        image[:] = paste_mask(mask, box, size) > threshold
    return result


def _resized(cells: int, first: int, last: int, side: int) -> tuple[slice, np.ndarray]:
    """Along one axis: the pixels of the image that pixels `first` to `last` of a box cover, and the
    weights of a mask's cells for each of them, [pixels, cells].
    """
    length = max(last - first + 1, 1)
    seen = slice(min(max(first, 0), side), min(max(last + 1, 0), side))
    pixels = np.arange(seen.start, max(seen.stop, seen.start), dtype=np.float32) - first
    at = np.maximum((pixels + np.float32(0.5)) * np.float32(cells / length) - np.float32(0.5), 0)
    lower = np.minimum(at.astype(np.int64), cells - 1)
    upper, share = np.minimum(lower + 1, cells - 1), (at - lower).astype(np.float32)
    weights, places = np.zeros((len(pixels), cells), np.float32), np.arange(len(pixels))
    weights[places, lower] += 1 - share
    weights[places, upper] += share
    return slice(seen.start, seen.start + len(pixels)), weights
