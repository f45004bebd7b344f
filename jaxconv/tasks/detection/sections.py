"""Sections of a run's page about its detections, see report/sections.py; and pictures of `look`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxconv.data.interface import evenly
from jaxconv.drawing.masks import bars_of_classes
from jaxconv.drawing.parts import LeftOutError, Table, Text, picture, share
from jaxconv.tasks.confused import most_confused
from jaxconv.tasks.detection import outcomes, pictures
from jaxconv.tasks.detection.mistakes import KINDS, SHOWN

# The most examples and pairs of classes.
_SHOWN, _WORST, _PAIRS = 12, 8, 10


def predictions(run: Any) -> list[Any]:
    """Some examples with truth and prediction."""
    places = evenly(len(run.evaluation.outcomes), _SHOWN)
    return [
        Text(
            "Examples evenly spread over the test set: left the truth, right the detections with a "
            f"score of at least {100 * SHOWN:.0f} %."
        ),
        picture(
            run.drawn_at(places),
            f"{len(places)} test examples, each with its objects and with the detections.",
        ),
    ]


def precision(run: Any) -> list[Any]:
    """Curves of precision, and the AP of each class."""
    found = run.evaluation.outcomes
    rows = outcomes.class_rows(found)
    if not rows:
        raise LeftOutError("the test set has no objects")
    low, high = rows[0], rows[-1]
    alt = (
        "Precision against recall: the mean of all classes at ten IoUs, and classes at IoU 0.50. "
        f"AP goes from {share(low[2])} ({low[0]}) to {share(high[2])} ({high[0]})."
    )
    cells = [(name, f"{count:,}", *map(share, values)) for name, count, *values in rows]
    header = ("class", "objects", "AP", "AP50", "AP75", "AR")
    return [
        picture(pictures.precision(found), alt),
        Table("Every class, the lowest AP first", [header, *cells], sortable=True),
        _others(found),
    ]


def _others(found: outcomes.Outcomes) -> Table:
    values = outcomes.all_figures(found)
    sizes = ("", "_small", "_medium", "_large")
    rows = [
        (title, *(share(values.get(f"{name}{size}")) for size in sizes))
        for title, name in (("AP", "ap"), ("AR, 100 detections", "ar"))
    ]
    for title, name in (("AR, 1 detection", "ar1"), ("AR, 10 detections", "ar10")):
        rows.append((title, share(values.get(name)), "", "", ""))
    for title, name in (("VOC's AP, 2007", "voc07"), ("VOC's AP, 2010", "voc10")):
        rows.append((title, share(values[name]), "", "", ""))
    header = ("", "all", "small: up to 32²", "medium: up to 96²", "large")
    return Table("COCO's figures by size of the objects, and VOC's", [header, *rows], folded=True)


def mistakes(run: Any) -> list[Any]:
    """What each kind of mistake costs."""
    found = run.evaluation.outcomes
    wrong, costs = found.mistakes.counts(), found.mistakes.costs()
    crops = pictures.crops_of(found, lambda row: run.images([row])[0])
    said = ", ".join(f"{kind} {share(costs[kind])}" for kind in KINDS)
    rows = [(kind, pictures.MEANS[kind], f"{wrong[kind]:,}", share(costs[kind])) for kind in KINDS]
    header = ("kind", "what it is", "how many", "AP50 lost")
    return [
        Text(
            "By how much AP50 rises if all mistakes of a kind are mended (TIDE, Bolya et al. "
            "2020). Green is an object, orange a detection; the surest mistakes come first."
        ),
        picture(pictures.mistakes(found.mistakes, crops), f"AP50 lost by mistakes: {said}."),
        Table("The same in numbers", [header, *rows], texts=2, folded=True),
    ]


def confusions(run: Any) -> list[Any]:
    """Which classes are taken for which."""
    found = run.evaluation.outcomes
    pairs = most_confused(found.pairs.counts[:-1, :-1], _PAIRS)
    names = found.class_names
    figure = pictures.confused(found, lambda row: run.images([row])[0], _PAIRS)
    said = "; ".join(f"{names[a]} taken for {names[b]} {n} times" for a, b, n in pairs[:3])
    totals = found.pairs.counts.sum(axis=1)
    rows = [(names[a], names[b], f"{n:,}", share(n / totals[a])) for a, b, n in pairs]
    header = ("class", "taken for", "times", "share of the class")
    alt = f"The confusion matrix of {len(names)} classes and the background: {said or 'no class'}."
    table = Table("The most confused pairs", [header, *rows], texts=2, folded=True)
    return [picture(figure, alt), *([table] if rows else [])]


def worst_examples(run: Any) -> list[Any]:
    """The examples with the lowest F1."""
    found = run.evaluation.outcomes
    places = outcomes.worst(found, _WORST)
    kept = found.values
    rows = [
        (
            run.evaluation.source.name(int(found.index[place])),
            share(float(found.pairs.f1[place])),
            f"{int((kept['true_valid'] & ~kept['true_crowd'])[place].sum()):,}",
            f"{int((kept['valid'] & (kept['scores'] >= SHOWN))[place].sum()):,}",
        )
        for place in places
    ]
    header = ("example", "F1", "objects", "detections")
    return [
        Text(
            "The examples with the lowest F1, 2 right / (2 right + wrong + missed), of detections "
            f"with a score of at least {100 * SHOWN:.0f} %, the worst first."
        ),
        picture(
            run.drawn_at(places),
            f"{len(places)} test examples with the lowest F1, with objects and detections.",
        ),
        Table("These examples in numbers", [header, *rows], folded=True),
    ]


def classes_figure(evaluation: Any, shown: Callable[[int], Any], most: int, title: str) -> Any:
    """The AP of each class as bars; see `Task.pictures`."""
    found = evaluation.outcomes
    each = {name: value for name, _, value, *_ in outcomes.class_rows(found)}
    values = np.array([each.get(name, np.nan) for name in found.class_names])
    return bars_of_classes(found.class_names, values, title)


def precision_figure(evaluation: Any, shown: Callable[[int], Any], most: int, title: str) -> Any:
    """Precision against recall; see `Task.pictures`."""
    return pictures.precision(evaluation.outcomes, title)


def mistakes_figure(evaluation: Any, shown: Callable[[int], Any], most: int, title: str) -> Any:
    """What mistakes cost, with examples; see `Task.pictures`."""
    found = evaluation.outcomes
    crops = pictures.crops_of(found, lambda row: shown(int(found.index[row])))
    return pictures.mistakes(found.mistakes, crops, title)


def confusions_figure(evaluation: Any, shown: Callable[[int], Any], most: int, title: str) -> Any:
    """Which classes are taken for which, with examples; see `Task.pictures`."""
    found = evaluation.outcomes
    return pictures.confused(found, lambda row: shown(int(found.index[row])), most or _PAIRS, title)
