"""Attribution maps drawn over the input: images, volumes, waveforms, or the letters of texts."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxconv.drawing.samples import draw_example
from jaxconv.drawing.sheet import FAINT, INK, SIGNED, Box, Sheet, new_sheet, on_colour

# Letters per line, and the width of a letter and height of a line in inches.
_LETTERS, _WIDE, _HIGH = 80, 0.12, 0.24


def attribution_figure(
    example: np.ndarray, maps: Mapping[str, np.ndarray], title: str = ""
) -> Figure:
    """A figure of an example, next to an overlay of each map with its colour scale.

    Args:
      example: [*spatial, C], see `samples.draw_example`. Only the middle slice of a volume is
        drawn.
      maps: maps by name, [*spatial], or [*spatial, C], which are summed over the channels. Red is
        evidence for the class, blue against it. Each map has its own scale, which ends at the
        99.5th percentile. A second line of the name is written smaller.
      title: text above the figure.

    Raises:
      ValueError: the shape of a map does not match that of the example.
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
                f"the map {name!r} has shape {values.shape}; the example has {example.shape[:-1]}"
            )
        _draw_map(sheet, example, values, box)
    return sheet.figure


def text_attribution_figure(
    letters: Sequence[str], maps: Mapping[str, np.ndarray], title: str = ""
) -> Figure:
    """A figure that repeats a text for each map, with its letters coloured by the map.

    Args:
      letters: the letter at each position of the text, see `signals.letters_of`. Positions of the
        maps beyond them are not drawn.
      maps: maps by name, [L], or [L, C], which are summed over the codes; colours and names as for
        `attribution_figure`.
      title: text above the figure.

    Raises:
      ValueError: a map has fewer positions than there are letters.
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
    """The end of a colour scale: few values lie beyond it."""
    return float(np.percentile(np.abs(values), 99.5)) or float(np.abs(values).max()) or 1.0


def _draw_map(sheet: Sheet, example: np.ndarray, values: np.ndarray, box: Box) -> None:
    """Draw a map over a faint example, with its scale to the right."""
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
        # Small values let the example show through, in faint grey so that all colours come from
        # the map.
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
