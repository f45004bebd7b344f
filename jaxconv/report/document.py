"""A self-contained HTML file of text, tables, pictures and charts: no server, no network.

The content of the page is data: the dataclasses of `drawing/parts.py`. Its look is in report.html
(a Jinja template, which escapes every name and text), report.css and report.js. uPlot 1.6.32 (MIT
license, which each page repeats; its files are in this folder) draws the zoomable charts. It takes
52 kB, where Plotly's smallest bundle takes 1 MB and Bokeh and Vega take more, and it is made for
long series against a step. It draws on a canvas, which screen readers cannot read, so every chart
also has its numbers in a sentence and in a table, and buttons to zoom.

The page's Content-Security-Policy lets it load nothing but itself: no text in it can become a
script.
"""

import base64
import dataclasses
import functools
import hashlib
import importlib.resources
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.interface import evenly
from jaxconv.drawing.parts import Chart, Figures, Picture, Series, Table, Text, short_number
from jaxconv.files import PRINTABLE, whole_file
from jaxconv.version import __version__

# Points shared by all series of a chart, the fewest that each series gets, and rows of the chart's
# table. What exceeds them is thinned out evenly.
MOST_POINTS, FEWEST_POINTS, MOST_ROWS = 8_000, 200, 60
# Up to this many lines, a chart is described line by line and its table has a column per line; with
# more, the table has a row per line.
_FEW = 8


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with its own heading; `why` explains what is missing, if anything is."""

    title: str
    parts: Sequence[Any]
    why: str = ""

    @property
    def id(self) -> str:
        """The anchor for links to this section."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def html(title: str, sections: Sequence[Section], **more: Any) -> str:
    """Return the page as HTML.

    Args:
      title: name of the run or sweep.
      sections: in the order of the page.
      **more: `subtitle`, `state`, `going_on` and `written`, see report.html.
    """
    import jinja2
    from markupsafe import Markup

    charts = [part for section in sections for part in section.parts if isinstance(part, Chart)]
    scripts = (
        [Markup(_asset("uPlot.min.js")), Markup(_asset("report.js"))]
        if charts
        else [Markup(_asset("report.js"))]
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests |= {
        kind.__name__.lower(): (lambda part, kind=kind: isinstance(part, kind)) for kind in PARTS
    }
    environment.filters |= {"summary": in_words, "points": points, "numbers": numbers}
    return environment.from_string(_asset("report.html")).render(
        title=title,
        sections=sections,
        charts=charts,
        scripts=scripts,
        hashes=[
            base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            for script in scripts
        ],
        styles=Markup(_asset("uPlot.min.css") + _asset("report.css")),
        license=Markup(_asset("uPlot.LICENSE")),
        version=__version__,
        **more,
    )


PARTS = (Text, Figures, Table, Picture, Chart)


@functools.cache
def _asset(name: str) -> str:
    return (importlib.resources.files("jaxconv.report") / name).read_text(encoding="utf-8")


def write(path: Path, text: str) -> None:
    """Write the page atomically: a reader sees either the previous version or the new one."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=PRINTABLE)


def points(chart: Chart) -> dict[str, Any]:
    """The data that report.js draws: finite `x` and `y` of each series, as JSON needs them."""
    lines = [thinned(series, points_of_each(len(chart.series))) for series in chart.series]
    series = [
        {
            "label": one.label,
            "number": one.number,
            "look": one.look,
            "x": one.xs,
            "y": [_six_digits(y) for y in one.ys],
            "seconds": [*one.seconds],
        }
        for one in lines
    ]
    return {"title": chart.title, "unit": chart.unit, "xLabel": chart.x, "series": series}


def _six_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def points_of_each(count: int) -> int:
    """The most points that each of `count` series in a chart may have."""
    return max(FEWEST_POINTS, MOST_POINTS // max(1, count))


def thinned(series: Series, most: int) -> Series:
    """Thin a series to at most `most` points without losing peaks.

    It keeps both ends, and the minimum and maximum of each of several equally long stretches.
    """
    ys = np.array(series.ys, float)  # None is NaN
    good = np.flatnonzero(np.isfinite(ys))
    if len(good) > most:
        size = -(-2 * len(good) // (most - 2))
        stretches = [good[start : start + size] for start in range(0, len(good), size)]
        peaks = [of[choose(ys[of])] for of in stretches for choose in (np.argmin, np.argmax)]
        good = np.unique([good[0], good[-1], *peaks])
    kept = good.tolist()
    return dataclasses.replace(
        series,
        xs=[series.xs[n] for n in kept],
        ys=[series.ys[n] for n in kept],
        seconds=[series.seconds[n] for n in kept] if series.seconds else (),
    )


def _good(series: Series) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in zip(series.xs, series.ys, strict=True)
        if y is not None and math.isfinite(y)
    ]


def _ends(series: Series) -> list[tuple[float, float]]:
    """The first, last, lowest and highest points; empty without numbers or for a band's edge."""
    good = _good(series) if series.label else []
    return good and [
        good[0],
        good[-1],
        *(choose(good, key=lambda point: point[1]) for choose in (min, max)),
    ]


def numbers(chart: Chart) -> Table:
    """The table of a chart's numbers.

    It has at most `MOST_ROWS` rows, always the first and the last; a chart of many lines instead
    gets one row per line.
    """
    named = [series for series in chart.series if series.label]
    if len(named) > _FEW:
        return _line_by_line(chart)
    found = [
        {x: y for x, y in zip(series.xs, series.ys, strict=True) if y is not None}
        for series in named
    ]
    xs = sorted({x for line in found for x in line})
    # Prefer the rows of the sparsest series, such as the evaluations.
    sparse = min(found, key=len, default={})
    chosen = xs if len(xs) <= MOST_ROWS else _spread(sorted(sparse) if len(sparse) > 1 else xs)
    chosen = sorted({*chosen, *xs[:1], *xs[-1:]})
    rows = [[f"{x:,}", *(short_number(line.get(x)) for line in found)] for x in chosen]
    left = f", {len(chosen)} of {len(xs):,} rows" if len(chosen) < len(xs) else ""
    return Table(
        f"{chart.title} in numbers ({chart.unit}){left}",
        [[chart.x, *(series.label for series in named)], *rows],
        folded=True,
    )


def _spread(values: Sequence[float]) -> list[float]:
    return [values[place] for place in evenly(len(values), MOST_ROWS - 2)]


def _line_by_line(chart: Chart) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            "line",
            "first",
            "last",
            f"at {chart.x}",
            "minimum",
            f"at {chart.x}",
            "maximum",
            f"at {chart.x}",
        )
    ]
    for series in chart.series:
        if ends := _ends(series):
            first, *others = ends
            rows.append(
                (
                    series.label,
                    short_number(first[1]),
                    *(text for x, y in others for text in (short_number(y), f"{x:,}")),
                )
            )
    return Table(f"{chart.title} in numbers ({chart.unit}), line by line", rows, folded=True)


def in_words(chart: Chart) -> str:
    """Describe a chart in a sentence with numbers, for readers who cannot see it."""
    about = f"{chart.title} ({chart.unit}) against {chart.x}"
    found = [(series.label, *ends) for series in chart.series if (ends := _ends(series))]
    if len(found) > _FEW:
        (least, _, (_, low), *_), *_, (greatest, _, (_, high), *_) = sorted(
            found, key=lambda line: line[2][1]
        )
        said = (
            f"{len(found)} lines, with final values from {short_number(low)} ({least}) to "
            f"{short_number(high)} ({greatest})"
        )
        return f"{about}: {said}. The table below lists them all."
    said = [
        f"{label} goes from {short_number(first[1])} at {chart.x} {first[0]:,} to "
        f"{short_number(last[1])} at {chart.x} {last[0]:,}, "
        f"minimum {short_number(low[1])} at {low[0]:,}, maximum {short_number(high[1])} at "
        f"{high[0]:,}"
        for label, first, last, low, high in found
    ]
    return f"{about}: " + ("; ".join(said) or "no numbers yet") + "."
