"""A page of its own: sections of text, tables, pictures and charts as one HTML file, which needs no
server and no network.

What is on the page is data, the dataclasses below; how it looks is in report.html, a template of
Jinja, which escapes every name and text that comes into it, report.css and report.js. The charts
that can be zoomed are drawn by uPlot 1.6.32 (MIT licence, its files lie there too): 52 kB, where
Plotly's smallest bundle has 1 MB, Bokeh and Vega more, and made for just this, long series against
a step. It draws on a canvas, which nobody can read aloud: so every chart has its numbers in a
sentence, in a table, and its zoom on buttons.

The page's own rule of what it may load (its Content-Security-Policy) is: nothing but itself. No
text in it can become a script.
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

from jaxconv.data.interface import evenly
from jaxconv.drawing.parts import Chart, Figures, Picture, Series, Table, Text, short_number
from jaxconv.files import whole_file
from jaxconv.version import __version__

# Points that the series of a chart share, at least so many each, and rows of the table behind it:
# more are thinned out evenly.
MOST_POINTS, FEWEST_POINTS, MOST_ROWS = 8_000, 200, 60
# Lines up to which a chart is said line by line, and its table has a column for each; of more, a
# row for each.
_FEW = 8


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page, below its own heading; `why` it is not whole, if it is not."""

    title: str
    parts: Sequence[Any]
    why: str = ""

    @property
    def id(self) -> str:
        """For links to it."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def html(title: str, sections: Sequence[Section], **more: Any) -> str:
    """The page.

    Args:
      title: of the run.
      sections: in their order.
      **more: `subtitle`, `state`, `going_on`, `written`: see report.html.
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
        version=__version__,
        **more,
    )


PARTS = (Text, Figures, Table, Picture, Chart)


@functools.cache
def _asset(name: str) -> str:
    return (importlib.resources.files("jaxconv.report") / name).read_text()


def write(path: Path, text: str) -> None:
    """Write the page whole or not at all: whoever opens it meanwhile sees the one before."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def points(chart: Chart) -> dict[str, Any]:
    """What report.js draws: `x` and `y` of each series; for JSON, which has no infinity."""
    lines = [thinned(series, points_of_each(len(chart.series))) for series in chart.series]
    series = [
        {
            "label": one.label,
            "number": one.number,
            "look": one.look,
            "x": one.xs,
            "y": [_six_digits(y) for y in one.ys],
        }
        for one in lines
    ]
    return {"title": chart.title, "unit": chart.unit, "xLabel": chart.x, "series": series}


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def points_of_each(count: int) -> int:
    """Points that a series may have where a chart has so many series."""
    return max(FEWEST_POINTS, MOST_POINTS // max(1, count))


def thinned(series: Series, most: int) -> Series:
    """At most so many points: the ends, and of stretches of equal length the least and the greatest
    number, so that peaks are not lost.
    """
    good = _good(series)
    if len(good) > most:
        size = -(-2 * len(good) // (most - 2))
        stretches = [good[start : start + size] for start in range(0, len(good), size)]
        ends = {good[0], good[-1]}
        good = sorted(
            ends.union(
                *(
                    {choose(stretch, key=lambda point: point[1]) for choose in (min, max)}
                    for stretch in stretches
                )
            )
        )
    return dataclasses.replace(series, xs=[x for x, _ in good], ys=[y for _, y in good])


def _good(series: Series) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in zip(series.xs, series.ys, strict=True)
        if y is not None and math.isfinite(y)
    ]


def _ends(series: Series) -> list[tuple[float, float]]:
    """The first point, the last, the least and the greatest; none of a series without numbers, or
    of the edge of a band.
    """
    good = _good(series) if series.label else []
    return good and [
        good[0],
        good[-1],
        *(choose(good, key=lambda point: point[1]) for choose in (min, max)),
    ]


def numbers(chart: Chart) -> Table:
    """The table behind a chart, at most `MOST_ROWS` rows of it, the first and the last among them;
    of many lines a row each.
    """
    named = [series for series in chart.series if series.label]
    if len(named) > _FEW:
        return _line_by_line(chart)
    found = [
        {x: y for x, y in zip(series.xs, series.ys, strict=True) if y is not None}
        for series in named
    ]
    xs = sorted({x for line in found for x in line})
    # Where a series is sparse, as an evaluation is, its rows are the ones to keep.
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
    rows = [
        (
            "line",
            "first",
            "last",
            f"at {chart.x}",
            "least",
            f"at {chart.x}",
            "greatest",
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
    """What a chart shows, in a sentence with numbers, for whom cannot see it."""
    about = f"{chart.title} ({chart.unit}) against {chart.x}"
    found = [(series.label, *ends) for series in chart.series if (ends := _ends(series))]
    if len(found) > _FEW:
        (least, _, (_, low), *_), *_, (greatest, _, (_, high), *_) = sorted(
            found, key=lambda line: line[2][1]
        )
        said = (
            f"{len(found)} lines, which end from {short_number(low)} ({least}) to "
            f"{short_number(high)} ({greatest})"
        )
        return f"{about}: {said}. The table below has each."
    said = [
        f"{label} goes from {short_number(first[1])} at {chart.x} {first[0]:,} to "
        f"{short_number(last[1])} at {chart.x} {last[0]:,}, "
        f"least {short_number(low[1])} at {low[0]:,}, greatest {short_number(high[1])} at "
        f"{high[0]:,}"
        for label, first, last, low, high in found
    ]
    return f"{about}: " + ("; ".join(said) or "no number yet") + "."
