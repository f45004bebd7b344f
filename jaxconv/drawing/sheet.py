"""A figure with coordinates in inches from its top left corner, so that text stays legible.

Pictures of networks are built from its images, signed maps, curves, numbers in cells, bars and
texts.
"""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxconv.drawing.fonts import save_figure

# (left, top, width, height) in inches.
Box = tuple[float, float, float, float]

# Red is positive, blue negative, white 0; distinguishable with color blindness too.
SIGNED = "RdBu_r"
# Their contrast on white is 16:1 and 5.7:1, enough for small text (WCAG 2.2, 1.4.3).
INK, FAINT = "#222222", "#666666"
RIGHT, WRONG = "#1a7f37", "#cf222e"
# The least width of a cell in inches for a number of four or five characters.
CELL = 0.25


class Picture(Figure):
    """A figure that a notebook shows as the value of a cell, without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        save_figure(self, content, format="png")
        return content.getvalue()


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A sheet of `width` by `height` inches; the functions of `look` return its figure."""

    width: float
    height: float
    figure: Figure
    axis: Any

    def text(self, x: float, y: float, text: str, size: float = 8, **settings: Any) -> Any:
        """Write a text with its top left corner at (x, y), or aligned by `ha` and `va`.

        Dollar signs do not start math.
        """
        settings = {"ha": "left", "va": "top", "color": INK} | settings
        return self.axis.text(x, y, text, fontsize=size, parse_math=False, **settings)

    def frame(self, box: Box, **settings: Any) -> Any:
        """Draw a rectangle, by default unfilled with a thin outline."""
        x, y, width, height = box
        settings = {"fill": False, "edgecolor": FAINT, "linewidth": 0.6} | settings
        return self.axis.add_patch(Rectangle((x, y), width, height, **settings))

    def image(self, picture: np.ndarray, box: Box, limit: float = 0.0, **settings: Any) -> Any:
        """Draw [H, W] or [H, W, 3] centered in a box, with its aspect ratio preserved.

        With a limit, values are colour-mapped from -limit to limit.
        """
        x, y, width, height = self.fitted(picture.shape, box)
        if limit:
            settings = {"cmap": SIGNED, "vmin": -limit, "vmax": limit} | settings
        drawn = self.axis.imshow(
            picture,
            extent=(x, x + width, y + height, y),
            aspect="auto",
            interpolation="nearest",
            resample=False,
            **settings,
        )
        self.frame((x, y, width, height))
        return drawn

    def fitted(self, shape: Sequence[int], box: Box) -> Box:
        """The part of a box that a picture [H, W, ...] fills."""
        x, y, width, height = box
        scale = min(width / shape[1], height / shape[0])
        w, h = shape[1] * scale, shape[0] * scale
        return x + (width - w) / 2, y + (height - h) / 2, w, h

    def numbers(self, values: np.ndarray, box: Box, limit: float = 0.0) -> None:
        """Write values [H, W] into the cells of an image in this box.

        `limit` is that of the image, so that text on dark cells is light.
        """
        x, y, width, height = self.fitted(values.shape, box)
        cell = width / values.shape[1]
        texts, low, high = as_printed(values), float(values.min()), float(values.max())
        for (row, column), value in np.ndenumerate(values):
            shade = colormaps["gray"]((value - low) / (high - low) if high > low else 0.5)
            colour = on_colour(_signed(value, limit) if limit else shade)
            place = (x + (column + 0.5) * cell, y + (row + 0.5) * cell)
            self.text(
                *place,
                str(texts[row, column]),
                min(9.0, 25 * cell),
                ha="center",
                va="center",
                color=colour,
            )

    def cell(self, value: float, box: Box, limit: float) -> None:
        """Draw one value as a coloured cell with its number."""
        x, y, width, height = box
        colour = _signed(value, limit)
        self.frame(box, fill=True, facecolor=colour)
        self.text(
            x + width / 2,
            y + height / 2,
            printed(value),
            8,
            ha="center",
            va="center",
            color=on_colour(colour),
        )

    def curves(
        self,
        values: np.ndarray,
        box: Box,
        low: float | None = None,
        high: float | None = None,
        **settings: Any,
    ) -> list[Any]:
        """Draw [L, C] as C curves from left to right, on a scale from `low` to `high`.

        The scale defaults to the range of the values.
        """
        x, y, width, height = box
        low = float(values.min()) if low is None else low
        high = float(values.max()) if high is None else high
        scale = height / (high - low) if high > low else 0.0
        across = x + width * (np.arange(len(values)) + 0.5) / len(values)
        self.frame(box)
        if low < 0 < high:
            self.axis.plot([x, x + width], [y + high * scale] * 2, color=FAINT, linewidth=0.4)
        middle = 0.0 if scale else height / 2
        lines = y + middle + (high - values) * scale
        colour = [{"color": f"C{c % 10}"} for c in range(values.shape[1])]
        look = {
            "linewidth": 0.8 if len(values) < 200 else 0.3,
            "marker": "o" if len(values) == 1 else "",
            "markersize": 3,
        }
        return [
            self.axis.plot(across, lines[:, c], **(look | colour[c] | settings))[0]
            for c in range(values.shape[1])
        ]

    def bars(self, values: np.ndarray, box: Box, limit: float) -> None:
        """Draw values [L] as bars from left to right, upward if positive.

        The scale is from -limit to limit, or from 0 if no value is negative.
        """
        x, y, width, height = box
        low = -limit if values.min() < 0 else 0.0
        zero, scale, step = (
            y + height * limit / (limit - low),
            height / (limit - low),
            width / len(values),
        )
        colours = np.where(values < 0, "#2166ac", "#b2182b")
        self.axis.bar(
            x + step * (np.arange(len(values)) + 0.5),
            -values * scale,
            0.85 * step,
            zero,
            color=colours,
            linewidth=0,
        )
        self.axis.plot([x, x + width], [zero, zero], color=FAINT, linewidth=0.6)


def new_sheet(width: float, height: float, title: str = "") -> Sheet:
    """An empty sheet, with a title in the top 0.4 inches.

    A long title is set smaller, and cut if it still does not fit.
    """
    figure = Picture(figsize=(width, height), facecolor="white")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    axis.set_autoscale_on(False)
    sheet = Sheet(width, height, figure, axis)
    if title:
        # A bold letter is on average 0.0095 inches wide per point of font size.
        size = min(11.0, max(7.0, (width - 0.4) / 0.0095 / len(title)))
        most = int((width - 0.4) / 0.0095 / size)
        sheet.text(
            0.2, 0.12, title if len(title) <= most else title[: most - 1] + "…", size, weight="bold"
        )
    return sheet


def _signed(value: float, limit: float) -> Any:
    return colormaps[SIGNED]((value + limit) / (2 * limit))


def on_colour(colour: Any) -> str:
    """The legible text color on a colour (red, green, blue, alpha), each from 0 to 1."""
    red, green, blue, _ = colour
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK


def as_printed(values: np.ndarray) -> np.ndarray:
    """Values as the lecture prints them, see `printed`; as integers if all of them are."""
    values = np.asarray(values, np.float64)
    whole = bool(np.all(values == np.round(values)))
    return np.vectorize(lambda value: f"{value:.0f}" if whole else printed(value), otypes=[str])(
        values
    )


def printed(value: float) -> str:
    """A value as the lecture prints it: truncated to two decimals; 0 is `0`."""
    # The small push keeps 0.33333 * 3 from becoming 0.99.
    shown = np.trunc(value * 100 + 1e-3 * np.sign(value)) / 100
    return "0" if value == 0 else f"{shown + 0.0:.2f}" if abs(value) < 100 else f"{shown:.0f}"
