"""Sections of a run's page about predictions, mistakes and calibration; pictures of `look`.

A `run` provides `evaluation`, and `images` of examples by their row in the outcomes, see
report/sections.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxconv.data.interface import evenly
from jaxconv.data.wordnet import readable
from jaxconv.drawing.confusions import confusions
from jaxconv.drawing.parts import LeftOutError, Table, Text, picture, share
from jaxconv.tasks.classification import examples, outcomes
from jaxconv.tasks.classification.accuracy import accuracy_of_classes, reliability
from jaxconv.tasks.confused import most_confused

# The most examples, mistakes, pairs of classes, and classes.
_SHOWN, _WORST, _PAIRS, _CLASSES = 16, 12, 10, 1_000


def predictions(run: Any) -> list[Any]:
    """Some examples with their most probable classes."""
    found = run.evaluation.outcomes
    places = evenly(len(found), _SHOWN)
    right = int(outcomes.within(found, 1)[places].sum())
    figure = examples.predictions(
        run.images(places), found.labels[places], found.probabilities[places], found.class_names
    )
    alt = (
        f"{len(places)} test examples, each with its three most probable classes as bars; {right} "
        f"of the {len(places)} are right."
    )
    return [
        Text(
            "Examples evenly spread over the test set: right is green with a tick, wrong is red "
            "with a cross."
        ),
        picture(figure, f"{alt} The table below has them one by one."),
        _table(run, "The same examples in numbers", places),
    ]


def mistakes(run: Any) -> list[Any]:
    """The mistakes with the highest losses, the most confused classes, and the accuracy of each."""
    found = run.evaluation.outcomes
    places = outcomes.worst(found, _WORST)
    wrong = int((~outcomes.within(found, 1)).sum())
    if not wrong:
        raise LeftOutError(f"no mistakes: all {len(found):,} examples are right")
    names = [
        run.evaluation.source.name(int(found.index[place])).rpartition("/")[2] for place in places
    ]
    below = f"{wrong:,} of {len(found):,} are wrong ({share(wrong / len(found))})"
    figure = examples.mistakes(run.images(places), found, places, names, below=below)
    high, low = found.losses[places[0]], found.losses[places[-1]]
    alt = (
        f"The {len(places)} mistakes with the highest losses, from {high:.2f} down to {low:.2f} "
        "nats."
    )
    parts = [
        picture(figure, f"{alt} {below}. The table below has them one by one."),
        _table(run, "These mistakes in numbers", places),
    ]
    return [*parts, *_confused(run), *_classes(run)]


def _confused(run: Any) -> list[Any]:
    found = run.evaluation.outcomes
    counts = outcomes.confusion(found)
    pairs = most_confused(counts, _PAIRS)
    each = outcomes.confused_examples(found, pairs)
    pictured = [run.images(places) for places in each]
    figure = confusions(counts, found.class_names, pairs, pictured, _PAIRS)
    said = "; ".join(
        f"{readable(found.class_names[a])} mistaken for {readable(found.class_names[b])} {n} times"
        for a, b, n in pairs[:3]
    )
    rows = [
        (
            readable(found.class_names[a]),
            readable(found.class_names[b]),
            f"{n:,}",
            share(n / max(1, counts[a].sum())),
        )
        for a, b, n in pairs
    ]
    header = ("class", "mistaken for", "times", "share of the class")
    alt = (
        f"The confusion matrix of {len(found.class_names)} classes, and the most confused "
        f"pairs: {said}."
    )
    return [
        picture(figure, alt),
        Table("The most confused pairs", [header, *rows], texts=2, folded=True),
    ]


def _classes(run: Any) -> list[Any]:
    found = run.evaluation.outcomes
    each, names = outcomes.per_class(found), found.class_names
    ranked = each.ranked()
    worst, best = int(ranked[0]), int(ranked[-1])
    alt = (
        f"The accuracy of each class as a bar, from {share(each.accuracy[worst])} "
        f"({readable(names[worst])}) "
        f"to {share(each.accuracy[best])} ({readable(names[best])})."
    )
    low, high = each.interval
    rows = [
        (
            readable(names[k]),
            f"{each.examples[k]:,}",
            share(each.accuracy[k]),
            f"{share(low[k])} to {share(high[k])}",
            "-" if not each.predicted[k] else share(each.precision[k]),
        )
        for k in map(int, ranked[:_CLASSES])
    ]
    header = ("class", "examples", "accuracy", "its 95 % interval", "precision")
    return [
        picture(accuracy_of_classes(each, names), alt),
        Table("Every class, the worst first", [header, *rows], folded=True, sortable=True),
    ]


def calibration(run: Any) -> list[Any]:
    """Whether the probabilities match the accuracy."""
    found = outcomes.calibration(run.evaluation.outcomes)
    bins = [
        (f"{low:.2f} to {high:.2f}", f"{count:,}", *map(share, pair))
        for low, high, count, *pair in zip(
            found.edges,
            found.edges[1:],
            found.examples,
            found.confidence,
            found.accuracy,
            strict=False,
        )
        if count
    ]
    gaps = np.where(found.examples, found.accuracy - found.confidence, 0.0)
    side = "more sure than right" if float(gaps @ found.examples) < 0 else "more right than sure"
    alt = (
        f"Reliability diagram, {len(bins)} bins: expected calibration error {share(found.ece)}; on "
        f"the whole the network is {side}."
    )
    header = ("probability", "examples", "mean probability", "accuracy")
    said = (
        "Of the predictions with a probability of 80 %, four out of five should be right: then "
        "bars end on the dashed line."
    )
    return [
        Text(said),
        picture(reliability(found), alt),
        Table("The reliability diagram in numbers", [header, *bins], folded=True),
    ]


def _table(run: Any, caption: str, places: Sequence[int] | np.ndarray) -> Table:
    """Examples one by one: their class and the prediction."""
    found, rows = run.evaluation.outcomes, []
    for place in places:
        true, said = int(found.labels[place]), int(found.predicted[place])
        rows.append(
            (
                run.evaluation.source.name(int(found.index[place])),
                readable(found.class_names[true]),
                readable(found.class_names[said]),
                share(float(found.probabilities[place, said])),
                share(float(found.probabilities[place, true])),
            )
        )
    return Table(
        caption,
        [("example", "class", "prediction", "its probability", "of the class"), *rows],
        texts=3,
        folded=True,
    )


def mistakes_figure(evaluation: Any, shown: Callable[[int], Any], most: int, title: str) -> Any:
    """The mistakes with the highest losses; see `Task.pictures`."""
    found = evaluation.outcomes
    places = outcomes.worst(found, most or _WORST)
    wrong = int((found.predicted != found.labels).sum())
    below = (
        f"those with the highest loss, of {wrong:,} mistakes in {len(found):,} examples; --example "
        "takes their numbers"
    )
    names = [f"#{found.index[place]}" for place in places]
    images = [shown(int(found.index[place])) for place in places]
    return examples.mistakes(images, found, places, names, title, below if wrong else "")


def confusions_figure(evaluation: Any, shown: Callable[[int], Any], most: int, title: str) -> Any:
    """Which classes are mistaken for which, with examples; see `Task.pictures`."""
    found, most = evaluation.outcomes, most or _PAIRS
    counts = outcomes.confusion(found)
    pairs = most_confused(counts, most)
    each = outcomes.confused_examples(found, pairs)
    images = [[shown(int(found.index[place])) for place in places] for places in each]
    return confusions(counts, found.class_names, pairs, images, most, title)


def classes_figure(evaluation: Any, shown: Callable[[int], Any], most: int, title: str) -> Any:
    """The accuracy of each class, the worst first; see `Task.pictures`."""
    found = evaluation.outcomes
    return accuracy_of_classes(outcomes.per_class(found), found.class_names, title)
