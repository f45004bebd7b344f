"""Masks of classes over their images, with a legend."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxconv.drawing.samples import draw_example, short_name
from jaxconv.drawing.sheet import Sheet, new_sheet

# How much of a pixel's colour is that of its class.
_STRENGTH = 0.55
# Inches: side of a picture, also of a single example, a row of the legend, its columns.
_SIDE, _ALONE, _ROW, _COLUMN = 1.7, 3.2, 0.19, 1.55


def palette(classes: int) -> np.ndarray:
    """A colour for each class: [K, 3] float from 0 to 1."""
    if classes <= 10:
        return np.array(colormaps["tab10"](np.arange(classes)))[:, :3]
    if classes <= 60:
        each = [colormaps[name](np.arange(20)) for name in ("tab20", "tab20b", "tab20c")]
        return np.concatenate(each)[:classes, :3]
    return np.array(colormaps["gist_rainbow"](np.linspace(0, 1, classes)))[:, :3]


def overlaid(image: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """An image [H, W, C], uint8 or float, tinted by a mask [H, W]: [H, W, 3] float.

    Numbers that are not from 0 to 1, such as those of a standardised volume, are scaled to that.
    Pixels whose class has no colour, such as ignored ones, are grey.
    """
    pixels, mask = plain(np.asarray(image)), np.asarray(mask).astype(np.int64)
    known = (mask >= 0) & (mask < len(colours))
    tint = np.where(known[..., None], colours[np.where(known, mask, 0)], 0.5)
    return (1 - _STRENGTH) * pixels + _STRENGTH * tint


def plain(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C], uint8 or float, as colours from 0 to 1, [H, W, 3]; see `overlaid`."""
    pixels = image / 255 if image.dtype == np.uint8 else _on_unit(image)
    return np.repeat(pixels[..., :1], 3, axis=-1) if pixels.shape[-1] != 3 else pixels


def _on_unit(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    inside = low >= 0 and high <= 1
    return image if inside else (image - low) / max(high - low, 1e-9)


def legend(
    sheet: Sheet, x: float, y: float, width: float, class_names: Sequence[str], colours: np.ndarray
) -> None:
    """Names of the classes beside their colours, in rows."""
    columns = max(1, int(width / _COLUMN))
    for k, (name, colour) in enumerate(zip(class_names, colours, strict=True)):
        left, top = x + _COLUMN * (k % columns), y + _ROW * (k // columns)
        sheet.frame((left, top + 0.03, 0.14, 0.11), fill=True, facecolor=colour)
        sheet.text(left + 0.2, top, short_name(name, 20), 7)


def legend_height(classes: int, width: float) -> float:
    """Of `legend`, in inches."""
    return _ROW * -(-classes // max(1, int(width / _COLUMN)))


def _middle(values: Any) -> np.ndarray:
    """The middle slice of a volume or of its mask."""
    values = np.asarray(values)
    return values[len(values) // 2]


def mask_grid(
    images: Sequence[Any],
    masks: Mapping[str, Sequence[Any]],
    class_names: Sequence[str],
    title: str = "",
    confidences: Sequence[Any] = (),
) -> Figure:
    """A figure with rows of two examples each: the image, masks over it, and its confidence.

    Args:
      images: N images [H, W, C] or volumes [D, H, W, C], whose middle slice is drawn.
      masks: by title, such as `truth` and `prediction`, a mask of each image.
      class_names: K names.
      title: above the figure.
      confidences: of each image from 0 to 1, the probability of the class of each pixel; or none.
    """
    colours, across = palette(len(class_names)), 2 if len(images) > 1 else 1
    side = _SIDE if len(images) > 1 else _ALONE
    wide = (1 + len(masks) + bool(len(confidences))) * side + 0.3
    width = 0.2 + across * wide
    sizes = [np.shape(image)[-3:-1] for image in images]
    tall = max((side * h / w for h, w in sizes), default=side)
    above, row = 0.4 if title else 0.1, min(tall, 2 * side) + 0.25
    rows, names = -(-len(images) // across), legend_height(len(class_names), width)
    sheet = new_sheet(width, above + rows * row + names + 0.15, title)
    for n, image in enumerate(images):
        middle = _middle if np.ndim(image) == 4 else np.asarray
        picture, y = middle(image), above + row * (n // across)
        boxes = [
            (0.1 + (n % across) * wide + column * side, y + 0.16, side - 0.06, row - 0.25)
            for column in range(2 + len(masks))
        ]
        draw_example(sheet, picture, boxes[0])
        for box, (name, of_images) in zip(boxes[1:], masks.items(), strict=False):
            sheet.text(box[0], y, name, 7)
            sheet.image(overlaid(picture, middle(of_images[n]), colours), box)
        if len(confidences):
            sheet.text(boxes[-1][0], y, "confidence: dark 0, bright 100 %", 7)
            shade = {"cmap": "viridis", "vmin": 0, "vmax": 1}
            sheet.image(middle(confidences[n]), boxes[-1], **shade)
    legend(sheet, 0.1, above + rows * row + 0.05, width, class_names, colours)
    return sheet.figure


def indexed(mask: np.ndarray, classes: int) -> Any:
    """A mask [H, W] as a Pillow image with the palette of its classes, 8 bits up to 255 classes.

    More classes have 16 bits and no palette.
    """
    from PIL import Image

    if classes > 255:
        return Image.fromarray(np.asarray(mask, np.uint16))
    image = Image.fromarray(np.asarray(mask, np.uint8), "P")
    colours = np.full((256, 3), 128, np.uint8)
    colours[:classes] = np.round(255 * palette(classes))
    image.putpalette(colours.tobytes())
    return image


def bars_of_classes(class_names: Sequence[str], values: np.ndarray, title: str = "") -> Figure:
    """A bar for each class from 0 to 100 %, the lowest first; classes without a value are last."""
    order, colours = np.argsort(np.nan_to_num(values, nan=2.0)), palette(len(class_names))
    above = 0.4 if title else 0.1
    sheet = new_sheet(6.0, above + 0.2 * len(class_names) + 0.1, title)
    for n, k in enumerate(order.tolist()):
        y = above + 0.2 * n
        sheet.text(1.7, y + 0.02, short_name(str(class_names[k]), 22), 8, ha="right")
        if np.isfinite(values[k]):
            sheet.frame(
                (1.8, y + 0.03, 3.4 * float(values[k]), 0.14),
                fill=True,
                facecolor=colours[k],
                linewidth=0,
            )
        said = f"{100 * values[k]:.1f} %" if np.isfinite(values[k]) else "does not occur"
        sheet.text(1.86 + 3.4 * float(np.nan_to_num(values[k])), y + 0.02, said, 8)
    return sheet.figure
