"""Sections of a run's page about its masks, see report/sections.py; and pictures of `look`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxconv.data.interface import evenly
from jaxconv.drawing.masks import bars_of_classes
from jaxconv.drawing.parts import Table, Text, picture, share
from jaxconv.tasks.segmentation import outcomes

# The most examples of each section.
_SHOWN, _WORST = 12, 8


def predictions(run: Any) -> list[Any]:
    """Some examples with truth and prediction."""
    places = evenly(len(run.evaluation.outcomes), _SHOWN)
    return [
        Text(
            "Examples evenly spread over the test set: the image, its truth, the prediction, and "
            "the probability of the predicted class: it is dark where the network is unsure."
        ),
        _drawn(run, places, "test examples, each with its truth and the prediction over it"),
    ]


def worst_examples(run: Any) -> list[Any]:
    """The examples with the lowest mean IoU."""
    places = outcomes.worst(run.evaluation.outcomes, _WORST)
    return [
        Text("The examples with the lowest mean IoU, the worst first."),
        _drawn(run, places, "test examples with the lowest mean IoU, with truth and prediction"),
        _table(run, places),
    ]


def classes(run: Any) -> list[Any]:
    """The IoU of each class."""
    found = outcomes.rows(run.evaluation.outcomes)
    ranked = sorted(found, key=lambda row: np.nan_to_num(row["iou"], nan=2.0))
    figure = bars_of_classes(
        [row["name"] for row in found], np.array([row["iou"] for row in found])
    )
    alt = (
        f"The IoU of each class as a bar, from {_share(ranked[0]['iou'])} ({ranked[0]['name']}) to "
        f"{_share(ranked[-1]['iou'])} ({ranked[-1]['name']})."
    )
    rows = [
        (row["name"], row["taken_for"] or "-", f"{row['pixels']:,}", _share(row["iou"]))
        + (_share(row["dice"]),)
        for row in ranked
    ]
    header = ("class", "taken for most", "pixels", "IoU", "Dice")
    table = Table("Every class, the lowest IoU first", [header, *rows], texts=2, sortable=True)
    return [picture(figure, alt), table]


def _share(value: float) -> str:
    return share(value) if np.isfinite(value) else "does not occur"


def _drawn(run: Any, places: np.ndarray, what: str) -> Any:
    figure = run.drawn_at(places)
    return picture(figure, f"{len(places)} {what}.")


def _table(run: Any, places: np.ndarray) -> Table:
    found = run.evaluation.outcomes
    each = outcomes.figures(found.confusions)
    rows = [
        (run.evaluation.source.name(int(found.index[place])),)
        + tuple(share(float(each[name][place])) for name in ("miou", "accuracy", "dice"))
        for place in places
    ]
    header = ("example", "mean IoU", "accuracy", "mean Dice")
    return Table("These examples in numbers", [header, *rows], folded=True)


def classes_figure(evaluation: Any, shown: Callable[[int], Any], most: int, title: str) -> Any:
    """The IoU of each class as bars; see `Task.pictures`."""
    found = outcomes.rows(evaluation.outcomes)
    return bars_of_classes(
        [row["name"] for row in found], np.array([row["iou"] for row in found]), title
    )
