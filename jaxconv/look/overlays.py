"""Maps of what speaks for a class, laid over what the network was shown: over an image, a volume, a
waveform, and the letters of a text.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxconv.drawing.samples import draw_example
from jaxconv.drawing.sheet import FAINT, INK, SIGNED, Sheet, new_sheet, on_colour

# Letters in a line, and inches of one and of a line.
_LETTERS, _WIDE, _HIGH = 80, 0.12, 0.24


def attribution_figure(
    example: np.ndarray, maps: Mapping[str, np.ndarray], title: str = ""
) -> Figure:
    """A figure of an example, and beside it each map laid over it, with its colour scale.

    Args:
      example: [*spatial, C], see `samples.draw_example`. Of a volume the middle slice is drawn.
      maps: by name, [*spatial], or [*spatial, C], of which the sum over the channels is drawn. Red
        speaks for the class, blue against it. Each has its own scale, which ends at the 99.5th
        percentile. A second line of the name is written smaller.
      title: above it all.

    Raises:
      ValueError: a map of another shape than the example's.
    """
    example = np.asarray(example)
    columns = min(3, len(maps) + 1)
    sheet = new_sheet(0.2 + 3.1 * columns, 0.5 + 2.95 * -(-(len(maps) + 1) // columns), title)
    for n, name in enumerate(["example", *maps]):
        x, y = 0.2 + 3.1 * (n % columns), 0.85 + 2.95 * (n // columns)
        box = (x, y, 2.4, 2.4)
        heading, _, says = name.partition("\n")
        sheet.text(x, y - 0.19, heading, 9, va="bottom")
        sheet.text(x, y - 0.05, says, 8, va="bottom", color=FAINT)
        if n == 0:
            draw_example(sheet, example, box)
            continue
        values = np.asarray(maps[name], np.float32)
        values = values.sum(-1) if values.ndim == example.ndim else values
        if values.shape != example.shape[:-1]:
            raise ValueError(
                f"the map {name!r} is {values.shape}; the example is {example.shape[:-1]}"
            )
        _draw_map(sheet, example, values, box)
    return sheet.figure


def text_attribution_figure(
    letters: Sequence[str], maps: Mapping[str, np.ndarray], title: str = ""
) -> Figure:
    """A figure of a text, once for each map, which colours the letters.

    Args:
      letters: what stands at each position of the text, see `signals.letters_of`; of the maps the
        first so many positions are drawn.
      maps: by name, [L], or [L, C], of which the sum over the codes is drawn; colours and names as
        for `attribution_figure`.
      title: above it all.

    Raises:
      ValueError: a map of fewer positions than letters.
    """
    lines = max(1, -(-len(letters) // _LETTERS))
    tall = 0.55 + lines * _HIGH
    sheet = new_sheet(0.4 + _LETTERS * _WIDE, 0.5 + len(maps) * tall, title)
    for n, (name, values) in enumerate(maps.items()):
        values = np.asarray(values, np.float32)
        values = values.sum(-1) if values.ndim == 2 else values
        if len(values) < len(letters):
            raise ValueError(
                f"the map {name!r} has {len(values)} positions; the text has {len(letters)}"
            )
        values, y = values[: len(letters)], 0.55 + n * tall
        limit = _limit(values) if len(values) else 1.0
        heading, _, says = name.partition("\n")
        sheet.text(0.2, y, heading, 9)
        sheet.text(
            0.2 + _LETTERS * _WIDE,
            y,
            f"{says}; the deepest red is {limit:.2g}",
            8,
            ha="right",
            color=FAINT,
        )
        for place, (letter, value) in enumerate(zip(letters, values, strict=True)):
            box = (
                0.2 + place % _LETTERS * _WIDE,
                y + 0.2 + place // _LETTERS * _HIGH,
                _WIDE,
                _HIGH - 0.03,
            )
            colour = colormaps[SIGNED](0.5 + 0.5 * float(np.clip(value / limit, -1, 1)))
            sheet.frame(box, fill=True, facecolor=colour, edgecolor="none")
            if letter.strip():
                middle = (box[0] + _WIDE / 2, box[1] + box[3] / 2)
                sheet.text(
                    *middle,
                    letter,
                    9,
                    ha="center",
                    va="center",
                    color=on_colour(colour),
                    family="monospace",
                )
    return sheet.figure


def _limit(values: np.ndarray) -> float:
    """Where a scale of colours ends: few values lie beyond."""
    return float(np.percentile(np.abs(values), 99.5)) or float(np.abs(values).max()) or 1.0


def _draw_map(sheet: Sheet, example: np.ndarray, values: np.ndarray, box: Sequence[float]) -> None:
    """Lay a map over a faint example, and its scale to the right."""
    limit = _limit(values)
    values = values[len(values) // 2] if values.ndim == 3 else values
    colours = colormaps[SIGNED](0.5 + 0.5 * np.clip(values / limit, -1, 1))
    if example.ndim == 2:
        x, y, width, height = box
        sheet.axis.imshow(
            colours[None],
            extent=(x, x + width, y + height, y),
            aspect="auto",
            interpolation="nearest",
        )
        sheet.curves(example, box, color=INK, linewidth=0.6)
    else:
        picture = example[len(example) // 2] if example.ndim == 4 else example
        grey = picture.mean(-1, keepdims=True) / (255 if picture.dtype == np.uint8 else 1)
        # What is nothing lets the example through, faintly, so that the colours are the map's
        # alone.
        share = np.sqrt(np.clip(np.abs(values) / limit, 0, 1))[..., None]
        sheet.image(
            share * colours[..., :3] + (1 - share) * (0.45 + 0.5 * np.clip(grey, 0, 1)), box
        )
        x, y, width, height = sheet.fitted(picture.shape, box)
    low = -limit if (values < 0).any() else 0.0
    scale = np.linspace(limit, low, 128)[:, None]
    sheet.axis.imshow(
        scale,
        extent=(x + width + 0.08, x + width + 0.18, y + height, y),
        cmap=SIGNED,
        vmin=-limit,
        vmax=limit,
        aspect="auto",
    )
    for value in {limit, 0.0, low}:
        at = y + height * (limit - value) / (limit - low)
        sheet.text(x + width + 0.21, at, f"{value:.2g}", 8, va="center")
