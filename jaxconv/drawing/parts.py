"""What a page is made of, as data: text, numbers, tables, pictures, charts. How it looks is
`report/document.py`'s.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

# Letters up to which a drawing stays one, sharp at any size; a larger one becomes pixels, if they
# take less. And up to which pixels are stored without loss: more are of photographs, and are a
# third as WebP of this quality.
_SMALL, _LARGE, _QUALITY = 150_000, 500_000, 95
_DPI = 150


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `strong` for what should be seen first."""

    text: str
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Figures:
    """Numbers in large type: (what, number, small print) each."""

    items: Sequence[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      caption: what it shows.
      rows: of texts; the first is the header, and the first cell of every other names its row.
      texts: columns from the left that are texts; the others are numbers, set to the right.
      marked: numbers of rows, the header being 0, that stand out.
      mark: what makes them stand out, in a word.
      folded: it is shown when asked for.
      sortable: its header's cells sort it.
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
      alt: says what it shows, with its numbers, to whom cannot see it.
      width, height: in CSS pixels.
      folded: it is shown when asked for, by this text; always where it is empty.
    """

    source: str
    alt: str
    width: int
    height: int
    folded: str = ""


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a chart: `ys` at `xs`, None where there is no number.

    Attributes:
      label: in the legend; empty for the edge of a band.
      number: of its colour, from 0.
      look: `thin`, `thick`, `dashed`, or `edge`, of which two after one another are the upper and
        lower of a band.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    number: int = 0
    look: str = "thin"


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines against a common x; all charts of a page are zoomed together."""

    title: str
    unit: str
    x: str
    series: Sequence[Series]


def picture(figure: Any, alt: str, folded: str = "") -> Picture:
    """A matplotlib figure as a picture: a drawing where it holds no images and is small, else
    pixels, if they take less.
    """
    width, height = (round(96 * inches) for inches in figure.get_size_inches())

    def saved(form: str, kind: str, **settings: Any) -> str:
        file = io.BytesIO()
        # Cropping is off: the size is what was said.
        figure.savefig(file, format=form, dpi=_DPI, **settings)
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
    """Four digits, or none: `-`."""
    return (
        "-"
        if value is None
        else f"{value:,.4g}"
        if abs(value) >= 0.0001 or not value
        else f"{value:.3e}"
    )


def share(value: float | None) -> str:
    """A share as per cent, such as `80.40 %`; `-` for None."""
    return "-" if value is None else f"{100 * value:.2f} %"


class LeftOutError(Exception):
    """A section has no meaning for this run; the message says why."""
