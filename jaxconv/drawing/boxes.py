"""Boxes over their images, with the masks and keypoints of what is in them."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxconv.drawing.masks import overlaid, palette, plain
from jaxconv.drawing.samples import draw_example
from jaxconv.drawing.sheet import Sheet, new_sheet

# Distinguishable with colour blindness, and on light and dark pictures: truth, prediction; where
# they stand beside each other, what is right or found, and what is wrong or missed.
_TRUTH, _SAID = "#1b9e77", "#d95f02"
_POINTS = "#e7298a"
_SIDE, _BESIDE = 1.5, 2.3


class Drawn(NamedTuple):
    """A box [4] (top, left, bottom, right) in pixels, whether it is the truth, and a few words.

    If need be a mask [H, W] bool of the image's pixels, and keypoints [J, 2], y and x, NaN where
    there is none, with pairs of them that a line joins. `wrong`, where truth and prediction stand
    beside each other: an object that is missed, or a prediction that is wrong.
    """

    box: np.ndarray
    truth: bool
    words: str = ""
    mask: np.ndarray | None = None
    points: np.ndarray | None = None
    lines: Sequence[tuple[int, int]] = ()
    wrong: bool | None = None


def draw_boxes(
    sheet: Sheet, place: tuple[float, float, float, float], image: Any, boxes: Sequence[Drawn]
) -> None:
    """Draw an image into a place of the sheet, and boxes over it: the truth dashed."""
    masks = [one.mask for one in boxes if one.mask is not None]
    if masks:
        sheet.image(filled(image, masks), place)
    else:
        draw_example(sheet, image, place)
    shape = np.shape(image)
    x, y, width, height = sheet.fitted(shape, place)
    for box, truth, words, _, points, lines, wrong in boxes:
        if points is not None:
            at = np.stack(
                [x + points[:, 1] / shape[1] * width, y + points[:, 0] / shape[0] * height]
            )
            for one, other in lines:
                sheet.axis.plot(*at[:, [one, other]], color=_POINTS, linewidth=0.8)
            sheet.axis.plot(*at, "o", color=_POINTS, markersize=1.6)
        top, left, bottom, right = (
            float(v) / side for v, side in zip(box, (shape[0], shape[1]) * 2, strict=True)
        )
        colour = (_TRUTH if truth else _SAID) if wrong is None else (_SAID if wrong else _TRUTH)
        if bottom > top and right > left:
            sheet.frame(
                (
                    x + left * width,
                    y + top * height,
                    (right - left) * width,
                    (bottom - top) * height,
                ),
                edgecolor=colour,
                linewidth=1.4,
                linestyle="--" if truth else "-",
            )
            if words and wrong is None:
                sheet.text(x + left * width, y + top * height - 0.08, words, 4, color=colour)
            elif words:
                label = {"facecolor": colour, "edgecolor": "none", "pad": 0.7, "alpha": 0.8}
                at = max(y, y + top * height - 0.01)
                sheet.text(x + left * width + 0.02, at, words, 5.5, color="white", bbox=label)


def filled(image: Any, masks: Sequence[np.ndarray]) -> np.ndarray:
    """An image [H, W, C] with each of some masks [H, W] bool tinted: [H, W, 3] float."""
    numbers = np.zeros(np.shape(image)[:2], np.int64)
    for number, mask in reversed([*enumerate(masks, 1)]):
        numbers[mask] = number
    tinted = overlaid(np.asarray(image), numbers, palette(1 + len(masks)))
    return np.where(numbers[..., None] > 0, tinted, plain(np.asarray(image)))


def box_grid(
    images: Sequence[Any],
    boxes: Sequence[Sequence[Drawn]],
    captions: Sequence[str],
    title: str = "",
) -> Figure:
    """A figure of N images [H, W, C] with boxes over them, each with a caption of one line."""
    columns, side = max(1, round(len(images) ** 0.5)), _SIDE if len(images) > 1 else 2 * _SIDE
    rows, above = -(-len(images) // columns), 0.4 if title else 0.1
    row = side + 0.25
    sheet = new_sheet(columns * (side + 0.1) + 0.1, above + rows * row + 0.3, title)
    for n, (image, drawn, caption) in enumerate(zip(images, boxes, captions, strict=True)):
        x, y = 0.1 + (n % columns) * (side + 0.1), above + (n // columns) * row
        sheet.text(x, y, textwrap.shorten(caption, round(20 * side), placeholder=" …"), 7)
        draw_boxes(sheet, (x, y + 0.16, side, side), image, drawn)
    x, y, kinds = 0.1, above + rows * row + 0.05, {one.truth for each in boxes for one in each}
    for truth, words, colour in ((True, "truth, dashed", _TRUTH), (False, "prediction", _SAID)):
        if truth in kinds:
            sheet.text(x, y, words, 7, color=colour)
            x += 0.9
    return sheet.figure


def beside_grid(
    images: Sequence[Any],
    boxes: Sequence[Sequence[Drawn]],
    captions: Sequence[str],
    title: str = "",
) -> Figure:
    """A figure of N images [H, W, C], each twice: with its truth, and with its predictions.

    What is missed or wrong has another colour, see `Drawn`. Captions are of one line.
    """
    across = 2 if len(images) > 1 else 1
    wide, row = 2 * _BESIDE + 0.3, _BESIDE + 0.42
    rows, above = -(-len(images) // across), 0.4 if title else 0.1
    sheet = new_sheet(across * wide + 0.1, above + rows * row + 0.3, title)
    for n, (image, drawn, caption) in enumerate(zip(images, boxes, captions, strict=True)):
        x, y = 0.1 + (n % across) * wide, above + (n // across) * row
        sheet.text(x, y, caption, 7)
        for column, truth in enumerate((True, False)):
            place = (x + column * (_BESIDE + 0.05), y + 0.28, _BESIDE, _BESIDE)
            own = [one for one in drawn if one.truth == truth]
            # What is right lies over what is wrong.
            draw_boxes(sheet, place, image, sorted(own, key=lambda one: not one.wrong))
    y = above + rows * row + 0.05
    sheet.text(0.1, y, "left the truth, right the prediction:", 7)
    sheet.text(2.1, y, "found, right", 7, color=_TRUTH)
    sheet.text(2.9, y, "missed, wrong", 7, color=_SAID)
    return sheet.figure
