"""The lecture's walk of one image through a network: pixels, filter responses, ReLU, pooled stacks,
votes with their weights.

Maps that are small enough have their numbers in the cells, as the slides have them (cut to two
decimals, not rounded); others are images. The signs have colours: red is positive, blue negative,
so that ReLU is where the blue is gone.
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

# Inches: the page, the column of words on its left, a map that is an image, and what is between two
# rows.
_WIDTH, _WORDS, _IMAGE, _GAP, _TOP = 12.0, 2.1, 1.1, 0.3, 0.6
# Cells each way of a map that has numbers, at most, and of a filter.
_NUMBERED, _FILTER = 12, 5
# Values and classes in the panel of votes.
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
    """One input on its way through any Linen module, a row for each stage.

    Args:
      module, variables: the network.
      x: [*spatial, C] float32, as the module takes it.
      example: the image as a person sees it, see `samples.draw_example`; by default `x`.
      class_names: of the votes; by default their numbers.
      most_maps: feature maps in a row: those that answer the most, in their order; the same ones
        until the next weights.
      most_rows: of a network with more stages, the last map of each size is shown.
      title: above the picture.
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
    """For each stage without a name, by identity, the last name before it."""
    found, last = {}, ""
    for stage in every:
        found[id(stage)] = "" if stage.name else last
        last = stage.name or last
    return found


def _left_out(every: Sequence[Stage], rows: Sequence[Stage]) -> str:
    return "" if len(rows) >= len(every) - 1 else ", the last of each size"


def choose_rows(every: Sequence[Stage], most: int) -> list[Stage]:
    """The stages that have a row: all but the votes, which have a panel; of too many the last of
    each size, and the first two.
    """
    rows = [stage for stage in every[:-1] if stage.value.ndim] or list(every[:1])
    if every[-1].value.ndim > 1:
        rows.append(every[-1])
    if len(rows) <= most:
        return rows
    kept = rows[:2]  # the first convolution has the filters that can be seen
    for _, same in itertools.groupby(rows[2:], lambda stage: stage.value.shape[:-1]):
        group = list(same)
        # What a whole block gives rather than what is inside of the next.
        outermost = min(stage.name.count("/") for stage in group)
        kept.append([stage for stage in group if stage.name.count("/") == outermost][-1])
    return kept if len(kept) <= most else [*kept[: most - 1], kept[-1]]


def _channels(every: Sequence[Stage], rows: Sequence[Stage], most: int) -> list[np.ndarray]:
    """The maps that each row shows: where no weights lie between two rows, the same ones.

    They are the strongest of the last such row, where ReLU and pooling have done their work.
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
    """Width and height in inches of one of `count` maps [*spatial, C] in a row, how many there is
    room for, and whether with numbers.
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
    """Inches for the filters above the maps, where they can be seen: of a convolution in 2-D over
    grey or RGB, or over each map alone.
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
        pixels = math.prod(stage.weights.shape[:2])
        sheet.text(
            0.2,
            y,
            f"filters, times {pixels}: a response is\nthe mean of products and the bias",
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
    """A stage in words: its name, then what it is, line by line; one without a name comes `after`
    another.
    """
    *spatial, count = stage.value.shape
    size = "x".join(map(str, spatial))
    if stage.kind == "input":
        return ["image" if len(spatial) == 2 else "input", "x".join(map(str, stage.value.shape))]
    shape = f"{count} maps of {size}" if spatial else f"{count} values"
    if stage.kind == "convolution":
        window = "x".join(map(str, stage.weights.shape[:-1]))
        return [stage.name or stage.kind, f"{stage.weights.shape[-1]} filters of {window}", shape]
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
            _filter(sheet, stage.weights[..., k], (box[0], y, width, above - 0.15))
        sheet.text(
            box[0] + width / 2, box[1] - 0.02, f"{k}", 8, ha="center", va="bottom", color=FAINT
        )
        draw_map(sheet, stage.value[..., k], box, limit)
        if numbered:
            sheet.numbers(stage.value[..., k], box, limit)


def _filter(sheet: Sheet, weights: np.ndarray, box: tuple[float, float, float, float]) -> None:
    """A filter [h, w, C], its weights times the pixels of its window: a response is the mean of the
    products, as the lecture has it.
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
    voting = min(_VOTING, len(last.given)) if last.kind == "fully connected" else 0
    return max(0.27 * voting, 0.42 * min(_CLASSES, last.value.size), 0.9)


def chosen_votes(
    last: Stage, most: int = _VOTING, classes: int = _CLASSES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the panel of votes shows: the values with the largest say, the classes with the most
    votes, and value times weight.

    Args:
      last: a fully connected stage.
      most, classes: of each, at most.

    Returns:
      The places [F] of the values and [K] of the classes, both in their order, and the shares [F,
      K] of those votes.
    """
    shown = np.sort(np.argsort(-last.value, kind="stable")[:classes])
    shares = last.given[:, None] * last.weights[:, shown]
    places = np.sort(np.argsort(-np.abs(shares).max(axis=1), kind="stable")[:most])
    return places, shown, shares[places]


def votes(sheet: Sheet, y: float, last: Stage, class_names: Sequence[str]) -> None:
    """The panel of votes: values on the left, classes on the right, and the weights between them as
    lines, thick where they are large.

    Args:
      last: the stage whose values are the votes; where no fully connected layer gives them, they
        are shown alone.
      class_names: K names; empty for numbers.
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
    if len(places):
        rest = f"{len(last.given)} values vote" + (
            f",\n{len(places)} of them shown" if len(places) < len(last.given) else ""
        )
        lines = (
            f"{rest}\nvote: sum of value times weight\nred line: for the class\nblue, dashed: "
            "against it\nthick: a large weight"
        )
        sheet.text(0.2, y + 0.19, lines, 8, color="#555555", linespacing=1.3)
        values = [y + 0.2 + (n + 0.5) * tall / len(places) for n in range(len(places))]
        _weights(sheet, last.weights[np.ix_(places, shown)], values, classes)
        limit = float(np.abs(last.given[places]).max()) or 1.0
        for place, middle in zip(places, values, strict=True):
            sheet.text(_WORDS + 0.38, middle, str(place), 8, ha="right", va="center", color=FAINT)
            sheet.cell(float(last.given[place]), (_WORDS + 0.45, middle - 0.12, 0.55, 0.24), limit)
    probabilities = np.exp(last.value - last.value.max())
    probabilities /= probabilities.sum()
    for n, (k, middle) in enumerate(zip(shown, classes, strict=True)):
        detail = ""
        if 0 < len(places) < len(last.given):
            detail = (
                f"{said[:, n].sum():.2f} by those shown, {last.value[k] - said[:, n].sum():+.2f} "
                "by the rest"
            )
        weight = "bold" if k == last.value.argmax() else "normal"
        _class(
            sheet,
            middle,
            short_name(names[k], 16),
            float(last.value[k]),
            float(probabilities[k]),
            detail,
            weight,
        )


def _weights(
    sheet: Sheet, weights: np.ndarray, values: Sequence[float], classes: Sequence[float]
) -> None:
    """A line for each weight [F, K], from the values' heights to the classes'."""
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
