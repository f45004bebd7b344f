"""One image on its way through a network, drawn as in the lecture.

The rows are pixels, filter responses, ReLU, pooled stacks, and votes with their weights. Small maps
have numbers in their cells, truncated to two decimals as on the slides; larger ones are images. Red
is positive, blue is negative, so ReLU removes the blue.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from matplotlib.figure import Figure

from jaxconv.drawing.samples import draw_example, short_name
from jaxconv.drawing.sheet import CELL, FAINT, Sheet, new_sheet, printed
from jaxconv.inspect.stages import Stage, stages
from jaxconv.look.filters import draw_map

# Inches: the width of the figure, its text column and an image, the gap between rows, the margin
# at the top.
_WIDTH, _WORDS, _IMAGE, _GAP, _TOP = 12.0, 2.1, 1.1, 0.3, 0.6
# The largest side of a map and of a filter whose cells have numbers.
_NUMBERED, _FILTER = 12, 5
# The most values and classes in the panel of votes.
_VOTING, _CLASSES = 14, 5
_VOTES_AT, _BAR = 8.4, 0.9


def walk(
    module: nn.Module,
    variables: Any,
    x: Any,
    example: Any = None,
    class_names: Sequence[str] = (),
    most_maps: int = 8,
    most_rows: int = 14,
    title: str = "",
) -> Figure:
    """A figure of one input on its way through any Linen module, with a row for each stage.

    Args:
      module, variables: the network.
      x: [*spatial, C] float32, the module's input.
      example: the image before preprocessing, see `samples.draw_example`; by default `x`.
      class_names: names for the votes; by default class numbers.
      most_maps: the most feature maps in a row. The strongest are shown, in channel order; the
        choice stays the same up to the next layer with weights.
      most_rows: the most rows; with more stages, only the last of each size is shown.
      title: text above the figure.
    """
    every = stages(module, variables, x)
    rows = choose_rows(every, most_rows)
    channels = _channels(every, rows, most_maps)
    heights = [_row_height(row, places) for row, places in zip(rows, channels, strict=True)]
    last = every[-1]
    votes_too = last.value.ndim == 1
    height = (
        _TOP + sum(heights) + _GAP * len(rows) + (_votes_height(last) + 0.4 if votes_too else 0.0)
    )
    sheet = new_sheet(
        _WIDTH,
        height,
        f"{title}{': ' if title else ''}{len(every) - 1} stages{_left_out(every, rows)}",
    )
    y = _TOP
    afters = _afters(every)
    for n, (row, places, tall) in enumerate(zip(rows, channels, heights, strict=True)):
        if n:
            sheet.text(0.35, y - _GAP / 2, "↓", 11, va="center", color=FAINT)
        _row(sheet, y, row, afters[id(row)], places, example)
        y += tall + _GAP
    if votes_too:
        sheet.text(0.35, y - _GAP / 2, "↓", 11, va="center", color=FAINT)
        votes(sheet, y, last, class_names)
    return sheet.figure


def _afters(every: Sequence[Stage]) -> dict[int, str]:
    """The last name before each unnamed stage, by `id` of the stage; empty for named stages."""
    found, last = {}, ""
    for stage in every:
        found[id(stage)] = "" if stage.name else last
        last = stage.name or last
    return found


def _left_out(every: Sequence[Stage], rows: Sequence[Stage]) -> str:
    return "" if len(rows) >= len(every) - 1 else ", the last of each size"


def choose_rows(every: Sequence[Stage], most: int) -> list[Stage]:
    """The stages that get a row: all except the votes, which have a panel.

    If there are more than `most`: the first two and the last of each size.
    """
    rows = [stage for stage in every[:-1] if stage.value.ndim] or list(every[:1])
    if every[-1].value.ndim > 1:
        rows.append(every[-1])
    if len(rows) <= most:
        return rows
    kept = rows[:2]  # the filters of the first convolution are drawn
    for _, same in itertools.groupby(rows[2:], lambda stage: stage.value.shape[:-1]):
        group = list(same)
        # Prefer the output of a block to a stage inside the next one.
        outermost = min(stage.name.count("/") for stage in group)
        kept.append([stage for stage in group if stage.name.count("/") == outermost][-1])
    return kept if len(kept) <= most else [*kept[: most - 1], kept[-1]]


def _channels(every: Sequence[Stage], rows: Sequence[Stage], most: int) -> list[np.ndarray]:
    """The channels that each row shows; the same for rows without weights between them.

    They are the strongest in the last of those rows, after ReLU and pooling.
    """
    weighted = list(itertools.accumulate(stage.weights is not None for stage in every))
    of = {
        id(stage): (number, stage.value.shape[-1])
        for stage, number in zip(every, weighted, strict=True)
    }
    chosen: dict[tuple[int, int], np.ndarray] = {}
    for row in rows:
        strength = np.abs(row.value).reshape(-1, row.value.shape[-1]).max(axis=0)
        chosen[of[id(row)]] = np.sort(np.argsort(-strength, kind="stable")[:most])
    return [chosen[of[id(row)]] for row in rows]


def _map_size(value: np.ndarray, count: int) -> tuple[float, float, int, bool]:
    """The layout of `count` maps [*spatial, C] in a row.

    Returns:
      Width and height of a map in inches, how many maps fit, and whether they have numbers.
    """
    room = _WIDTH - _WORDS - 0.2
    height, width = (0.7, 1.0) if value.ndim == 2 else value.shape[-3:-1]
    if value.ndim == 3 and max(height, width) <= _NUMBERED:
        fit = int((room + 0.15) // (width * CELL + 0.15))
        if fit >= min(3, count):
            shown = min(count, fit)
            cell = min(0.34, ((room + 0.15) / shown - 0.15) / width)
            return width * cell, height * cell, shown, True
    size = min(_IMAGE, (room + 0.1) / count - 0.1)
    return size * min(1.0, width / height), size * min(1.0, height / width), count, False


def _filter_height(stage: Stage) -> float:
    """Inches for the filters above the maps, 0 if they are not drawn.

    Filters of 2-D convolutions are drawn if they have one channel or RGB.
    """
    weights = stage.weights
    return (
        0.9
        if weights is not None
        and weights.ndim == 4
        and weights.shape[-2] in (1, 3)
        and max(weights.shape[:2]) > 1
        else 0.0
    )


def _row_height(stage: Stage, places: np.ndarray) -> float:
    value = stage.value
    if value.ndim == 1:
        return 0.75
    if stage.kind == "input":
        return _input_size(value)[1]
    return max(0.62, _map_size(value, len(places))[1] + 0.14) + _filter_height(stage)


def _input_size(value: np.ndarray) -> tuple[float, float, bool]:
    if value.ndim == 3 and value.shape[-1] == 1 and max(value.shape[:2]) <= _NUMBERED:
        return value.shape[1] * 0.3, value.shape[0] * 0.3, True
    return (5.0, 1.0, False) if value.ndim == 2 else (2.0, 2.0, False)


def _row(
    sheet: Sheet, y: float, stage: Stage, after: str, places: np.ndarray, example: Any
) -> None:
    name, *lines = words(stage, after)
    above = _filter_height(stage)
    if above:
        pixels = math.prod(stage.weighing()[0].shape[:2])
        sheet.text(
            0.2,
            y,
            f"filters, times {pixels}: a response is\nthe mean of products plus the bias",
            7.5,
            color="#555555",
            linespacing=1.3,
        )
    sheet.text(0.2, y + above, name, 9, weight="bold")
    sheet.text(0.2, y + above + 0.19, "\n".join(lines), 8, color="#555555", linespacing=1.3)
    if stage.kind == "input":
        width, height, numbered = _input_size(stage.value)
        box = (_WORDS, y, width, height)
        draw_example(sheet, stage.value if example is None else example, box)
        if numbered:
            sheet.numbers(stage.value[..., 0], box)
    elif stage.value.ndim == 1:
        _list(sheet, y, stage.value)
    else:
        _maps(sheet, y, stage, places, above)


def words(stage: Stage, after: str = "") -> list[str]:
    """The lines that describe a stage: its name, kind and shape.

    `after` is the last name before an unnamed stage.
    """
    *spatial, count = stage.value.shape
    size = "x".join(map(str, spatial))
    if stage.kind == "input":
        return ["image" if len(spatial) == 2 else "input", "x".join(map(str, stage.value.shape))]
    shape = f"{count} maps of {size}" if spatial else f"{count} values"
    if stage.kind == "convolution":
        *sizes, filters = stage.weighing()[0].shape
        window = "x".join(map(str, sizes))
        return [stage.name or stage.kind, f"{filters} filters of {window}", shape]
    kind = stage.kind if stage.name else f"after {after}" if after else ""
    return [stage.name or stage.kind or "maps", *filter(None, [kind]), shape]


def _list(sheet: Sheet, y: float, value: np.ndarray) -> None:
    limit = float(np.abs(value).max()) or 1.0
    room = _WIDTH - _WORDS - 0.2
    if len(value) * 0.4 <= room:
        box = (_WORDS, y, 0.4 * len(value), 0.4)
        sheet.image(value[None], box, limit)
        sheet.numbers(value[None], box, limit)
    else:
        sheet.bars(value, (_WORDS, y, room, 0.65), limit)


def _maps(sheet: Sheet, y: float, stage: Stage, places: np.ndarray, above: float) -> None:
    width, height, shown, numbered = _map_size(stage.value, len(places))
    gap = 0.15 if numbered else 0.1
    limit = float(np.abs(stage.value[..., places[:shown]]).max()) or 1.0
    for column, k in enumerate(places[:shown]):
        box = (_WORDS + column * (width + gap), y + above + 0.12, width, height)
        if above:
            _filter(sheet, stage.weighing()[0][..., k], (box[0], y, width, above - 0.15))
        sheet.text(
            box[0] + width / 2, box[1] - 0.02, f"{k}", 8, ha="center", va="bottom", color=FAINT
        )
        draw_map(sheet, stage.value[..., k], box, limit)
        if numbered:
            sheet.numbers(stage.value[..., k], box, limit)


def _filter(sheet: Sheet, weights: np.ndarray, box: tuple[float, float, float, float]) -> None:
    """Draw a filter [h, w, C], with its weights multiplied by the number of pixels in its window.

    A response is then the mean of the products, as in the lecture.
    """
    x, y, width, height = box
    size = min(height, width)
    box = (x + (width - size) / 2, y, size, size)
    scaled = weights * math.prod(weights.shape[:2])
    limit = float(np.abs(scaled).max()) or 1.0
    if weights.shape[-1] == 3:
        sheet.image((scaled / limit + 1) / 2, box)
        return
    sheet.image(scaled[..., 0], box, limit)
    if size / max(weights.shape[:2]) >= 0.8 * CELL and max(weights.shape[:2]) <= _FILTER:
        sheet.numbers(scaled[..., 0], box, limit)


def _votes_height(last: Stage) -> float:
    """Inches for the values and classes of the panel of votes."""
    voting = min(_VOTING, len(last.weighing()[1])) if last.kind == "fully connected" else 0
    return max(0.27 * voting, 0.42 * min(_CLASSES, last.value.size), 0.9)


def chosen_votes(
    last: Stage, most: int = _VOTING, classes: int = _CLASSES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values with the largest contributions, and the classes with the most votes.

    Args:
      last: a fully connected stage.
      most, classes: the most values and classes to choose.

    Returns:
      The indices [F] of the values and [K] of the classes, both ascending, and the contributions
      [F, K] of the values to the votes, each value times weight.
    """
    shown = np.sort(np.argsort(-last.value, kind="stable")[:classes])
    weights, given = last.weighing()
    shares = given[:, None] * weights[:, shown]
    places = np.sort(np.argsort(-np.abs(shares).max(axis=1), kind="stable")[:most])
    return places, shown, shares[places]


def votes(sheet: Sheet, y: float, last: Stage, class_names: Sequence[str]) -> None:
    """Draw the panel of votes: values on the left, classes on the right, weights as lines between.

    The thickness of a line is the magnitude of its weight.

    Args:
      last: the stage whose values are the votes. Unless it is fully connected, only the votes are
        drawn.
      class_names: K names; empty for class numbers.
    """
    names = class_names if len(class_names) else [f"class {k}" for k in range(len(last.value))]
    sheet.text(0.2, y, "votes", 9, weight="bold")
    if last.kind == "fully connected":
        places, shown, said = chosen_votes(last)
    else:
        places, shown, said = (
            np.arange(0),
            np.sort(np.argsort(-last.value, kind="stable")[:_CLASSES]),
            np.zeros((0, len(last.value))),
        )
    tall = _votes_height(last)
    classes = [y + 0.2 + (n + 0.5) * tall / len(shown) for n in range(len(shown))]
    detailed = False
    if len(places):
        weights, given = last.weighing()
        detailed = len(places) < len(given)
        rest = f"{len(given)} values vote" + (f",\n{len(places)} of them shown" if detailed else "")
        lines = (
            f"{rest}\nvote: sum of value times weight\nred line: for the class\nblue, dashed: "
            "against it\nthick: a large weight"
        )
        sheet.text(0.2, y + 0.19, lines, 8, color="#555555", linespacing=1.3)
        values = [y + 0.2 + (n + 0.5) * tall / len(places) for n in range(len(places))]
        _weights(sheet, weights[np.ix_(places, shown)], values, classes)
        limit = float(np.abs(given[places]).max()) or 1.0
        for place, middle in zip(places, values, strict=True):
            sheet.text(_WORDS + 0.38, middle, str(place), 8, ha="right", va="center", color=FAINT)
            sheet.cell(float(given[place]), (_WORDS + 0.45, middle - 0.12, 0.55, 0.24), limit)
    probabilities = np.exp(last.value - last.value.max())
    probabilities /= probabilities.sum()
    for n, (k, middle) in enumerate(zip(shown, classes, strict=True)):
        detail = ""
        if detailed:
            detail = (
                f"{said[:, n].sum():.2f} from those shown, "
                f"{last.value[k] - said[:, n].sum():+.2f} from the rest"
            )
        weight = "bold" if k == last.value.argmax() else "normal"
        _class(
            sheet,
            middle,
            short_name(names[int(k)], 16),
            float(last.value[k]),
            float(probabilities[k]),
            detail,
            weight,
        )


def _weights(
    sheet: Sheet, weights: np.ndarray, values: Sequence[float], classes: Sequence[float]
) -> None:
    """Draw a line for each weight [F, K], from the height of its value to that of its class."""
    heaviest = float(np.abs(weights).max()) or 1.0
    for (f, k), weight in np.ndenumerate(weights):
        look = (
            {"color": "#b2182b"} if weight > 0 else {"color": "#2166ac", "linestyle": (0, (3, 1.5))}
        )
        ends = [_WORDS + 1.05, _VOTES_AT - 0.1]
        sheet.axis.plot(
            ends,
            [values[f], classes[k]],
            linewidth=4 * abs(float(weight)) / heaviest,
            alpha=0.65,
            **look,
        )


def _class(
    sheet: Sheet,
    middle: float,
    name: str,
    vote: float,
    probability: float,
    detail: str,
    weight: str,
) -> None:
    sheet.text(_VOTES_AT, middle - 0.03, name, 10, weight=weight, va="center")
    sheet.text(
        _VOTES_AT + 1.9, middle - 0.03, printed(vote), 10, ha="right", va="center", weight=weight
    )
    sheet.text(_VOTES_AT, middle + 0.1, detail, 8, color=FAINT)
    sheet.frame(
        (_VOTES_AT + 2.1, middle - 0.1, _BAR * probability, 0.16),
        fill=True,
        facecolor="#555555",
        edgecolor="none",
    )
    sheet.text(
        _VOTES_AT + 2.1 + _BAR * probability + 0.06,
        middle - 0.02,
        f"{100 * probability:.1f} %",
        8,
        va="center",
        color=FAINT,
    )
