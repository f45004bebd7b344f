"""Drawing of examples of any kind: images, volumes, waveforms, spectrograms and texts."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxconv.drawing.sheet import Box, Sheet, new_sheet

# Letters and lines of text per inch.
_LETTERS, _LINES = 15.0, 8.5


def draw_example(sheet: Sheet, example: Any, box: Box) -> None:
    """Draw one example into a box.

    Args:
      example: an image [H, W, C] uint8 or float, from 0 to 1 if it has colours; a volume [D, H, W,
        C], drawn as its middle slice; a waveform [L, C], as curves; a spectrogram [T, F, 1], with
        time downward; or a text (str), cut to the box.
    """
    x, y, width, height = box
    if isinstance(example, str):
        sheet.frame(box)
        lines = textwrap.wrap(example, max(4, int(_LETTERS * (width - 0.1)))) or [""]
        lines = lines[: max(1, int(_LINES * (height - 0.1)))]
        sheet.text(x + 0.05, y + 0.05, "\n".join(lines), 7, family="monospace", linespacing=1.1)
        return
    example = np.asarray(example)
    if example.ndim == 2:
        sheet.curves(example, box, linewidth=0.5)
        return
    picture = example[len(example) // 2] if example.ndim == 4 else example
    settings: dict[str, Any] = {"cmap": "gray"}
    if picture.shape[-1] == 3:
        picture = picture if picture.dtype == np.uint8 else np.clip(picture, 0, 1)
    else:
        picture = picture[..., 0]
        settings |= {"vmin": 0, "vmax": 255} if picture.dtype == np.uint8 else {}
    sheet.image(picture, box, **settings)


def captioned_grid(
    images: Sequence[Any] | np.ndarray, captions: Sequence[str], title: str = ""
) -> Figure:
    """A figure of examples, each with a caption above it.

    Args:
      images: N examples, drawn by `draw_example`.
      captions: N texts of one or more lines.
      title: text above the figure.
    """
    columns = max(1, round(len(images) ** 0.5))
    rows, above = -(-len(images) // columns), 0.4 if title else 0.1
    height = 1.43 + 0.13 * (1 + max(caption.count("\n") + 1 for caption in captions))
    sheet = new_sheet(1.5 * columns + 0.1, height * rows + above, title)
    for n, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = 0.1 + 1.5 * (n % columns), above + height * (n // columns)
        sheet.text(x + 0.7, y, caption, 7, ha="center", linespacing=1.1)
        draw_example(sheet, image, (x, y + height - 1.53, 1.4, 1.4))
    return sheet.figure


def text_grid(texts: Sequence[str], captions: Sequence[str]) -> Figure:
    """A figure of texts, one per line, each after its caption."""
    sheet = new_sheet(10, 0.3 * len(texts) + 0.3)
    for row, (text, caption) in enumerate(zip(texts, captions, strict=True)):
        line = f"{caption:18}  {text[:90]}"
        sheet.text(0.2, 0.2 + 0.3 * row, line, family="monospace")
    return sheet.figure


def short_name(class_name: str, most: int = 18) -> str:
    """The first of the comma-separated names of a class, cut to `most` characters."""
    name = class_name.split(",")[0]
    return name if len(name) <= most else name[: most - 1] + "…"
