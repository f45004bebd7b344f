"""The parts of a page as data: text, numbers, tables, pictures and charts.

`report/document.py` renders them.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from jaxconv.drawing.fonts import save_figure

# Up to `_SMALL` characters a figure stays an SVG; a larger one becomes a PNG if that is smaller.
# Above `_LARGE` the pixels are mostly photographs: WebP of this quality takes a third.
_SMALL, _LARGE, _QUALITY = 150_000, 500_000, 95
_DPI = 150


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `strong` emphasizes it."""

    text: str
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Figures:
    """Numbers in large type, each as (label, number, small print)."""

    items: Sequence[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
      caption: what the table shows.
      rows: rows of strings; the first is the header, and the first cell of each other row names it.
      texts: the number of columns from the left that are text; the others are right-aligned
        numbers.
      marked: indices of highlighted rows; the header is row 0.
      mark: the reason for the highlight, in a word.
      folded: whether the table is collapsed at first.
      sortable: whether a click on a header cell sorts the table.
    """

    caption: str
    rows: Sequence[Sequence[str]]
    texts: int = 1
    marked: frozenset[int] = frozenset()
    mark: str = ""
    folded: bool = False
    sortable: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
      source: a data URI.
      alt: alternative text, with the numbers in the picture.
      width, height: size in CSS pixels.
      folded: the label that expands the collapsed picture; always shown if empty.
    """

    source: str
    alt: str
    width: int
    height: int
    folded: str = ""


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a chart: `ys` at `xs`, None where a value is missing.

    Attributes:
      label: label in the legend; empty for the edge of a band.
      number: index of the colour, from 0.
      look: `thin`, `thick`, `dashed`, or `edge`. Two consecutive edges are the upper and lower
        bounds of a band.
      seconds: the time at each of `xs`; empty if it is unknown.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    number: int = 0
    look: str = "thin"
    seconds: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over a common x axis; all charts of a page zoom together."""

    title: str
    unit: str
    x: str
    series: Sequence[Series]


def picture(figure: Any, alt: str, folded: str = "") -> Picture:
    """A matplotlib figure as a picture: SVG if it has no images and is small, otherwise pixels."""
    width, height = (round(96 * inches) for inches in figure.get_size_inches())

    def saved(form: str, kind: str, **settings: Any) -> str:
        file = io.BytesIO()
        # No cropping, so that the size is `width` by `height`.
        save_figure(figure, file, format=form, dpi=_DPI, **settings)
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

    drawing = (
        ""
        if any(axis.images or axis.collections and _crowded(axis) for axis in figure.axes)
        else saved("svg", "svg+xml")
    )
    if drawing and len(drawing) <= _SMALL:
        return Picture(drawing, alt, width, height, folded)
    source = min(filter(None, (drawing, saved("png", "png"))), key=len)
    if len(source) > _LARGE:
        source = saved("webp", "webp", pil_kwargs={"quality": _QUALITY})
    return Picture(source, alt, width, height, folded)


def _crowded(axis: Any) -> bool:
    return sum(len(collection.get_offsets()) for collection in axis.collections) > 2_000


def short_number(value: float | None) -> str:
    """The value with four digits; `-` for None."""
    return (
        "-"
        if value is None
        else f"{value:,.4g}"
        if abs(value) >= 0.0001 or not value
        else f"{value:.3e}"
    )


def share(value: float | None) -> str:
    """A fraction as a percentage, such as `80.40 %`; `-` for None."""
    return "-" if value is None else f"{100 * value:.2f} %"


class LeftOutError(Exception):
    """A section does not apply to this run; the message says why."""
