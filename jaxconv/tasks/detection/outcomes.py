"""What was found in every image of a set: figures with their intervals, and the table of classes.

matches.py says which detection is which object, precision.py makes figures of that, mistakes.py
says what the mistakes are.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from jaxconv.tasks.detection.matches import (
    as_coco,
    matched,
    more_matched,
    voc_matched,
)
from jaxconv.tasks.detection.mistakes import Mistakes, Pairs, mistakes, pairs
from jaxconv.tasks.detection.precision import (
    Matches,
    figures,
    more_figures,
    of_classes,
    voc_figures,
)
from jaxconv.tasks.intervals import CONFIDENCE

__all__ = [
    "Outcomes",
    "as_coco",
    "class_lines",
    "figures",
    "intervals",
    "matched",
    "more_figures",
    "more_matched",
    "voc_figures",
    "worst",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """What was found in N images.

    Attributes:
      values: [N, ...] by name, what `Detection.keep` returned; an averaged prediction has no
        `loss`.
      class_names: K.
      index: [N] the examples' positions in their source.
      matches: COCO's, by boxes.
      more: by masks and keypoints, if the network has them.
    """

    values: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    index: np.ndarray
    matches: Matches
    more: Mapping[str, Matches] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @functools.cached_property
    def voc(self) -> Matches:
        """VOC's matches."""
        return voc_matched(self.values, len(self.class_names))

    @functools.cached_property
    def mistakes(self) -> Mistakes:
        """By their kind."""
        return mistakes(self.values, len(self.class_names))

    @functools.cached_property
    def pairs(self) -> Pairs:
        """What was taken for what."""
        return pairs(self.values, len(self.class_names))


def all_figures(outcomes: Outcomes, times: np.ndarray | None = None) -> dict[str, float]:
    """COCO's and VOC's figures; `times` as for `precision.figures`."""
    found = figures(outcomes.matches, times) | voc_figures(outcomes.voc, times)
    return found | more_figures(outcomes.more, times)


def intervals(outcomes: Outcomes, resamples: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """(low, high) of each figure by the bootstrap over images: `resamples` sets of as many.

    A resample without any object of a size does not count for the figures of that size.
    """
    random, count = np.random.default_rng(seed), len(outcomes)
    times = random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    each = [all_figures(outcomes, one) for one in times]
    if "loss" in outcomes.values:
        losses = times @ np.asarray(outcomes.values["loss"], np.float64) / count
        each = [{**one, "loss": loss} for one, loss in zip(each, losses, strict=True)]
    tails = 100 * np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    names = dict.fromkeys(name for one in each for name in one)
    found = {
        name: np.percentile([one[name] for one in each if name in one], tails) for name in names
    }
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def remark_rows(outcomes: Outcomes, who: str) -> list[tuple[str, str]]:
    """Rows (name, text) about recalls, VOC's AP, and what the mistakes cost."""
    found = all_figures(outcomes)

    def shares(**titles: str) -> str:
        each = (
            f"{title} {100 * found[key]:.2f} %" for key, title in titles.items() if key in found
        )
        return ", ".join(each)

    sizes = shares(ar_small="small", ar_medium="medium", ar_large="large")
    wrong, costs = outcomes.mistakes.counts(), outcomes.mistakes.costs()
    lost = [f"{wrong[kind]:,} {kind} {100 * cost:.2f} %" for kind, cost in costs.items()]
    return [
        (f"AR{who}", f"{shares(ar1='1 detection', ar10='10 detections', ar='100 detections')}"),
        ("", f"{sizes or 'no objects'}"),
        ("VOC's AP", shares(voc07="11 recalls (2007)", voc10="all recalls (2010)")),
        ("mistakes, AP50 lost", ", ".join(lost)),
    ]


def class_lines(outcomes: Outcomes) -> list[str]:
    """The table of all classes, the lowest AP first; classes without objects are left out."""
    rows = class_rows(outcomes)
    width = max([5, *(len(row[0]) for row in rows)])
    head = f"{'class':{width}}  {'objects':>8}  {'AP':>6}  {'AP50':>6}  {'AP75':>6}  {'AR':>6}"
    lines = [
        f"{name:{width}}  {objects:8,}  " + "  ".join(f"{100 * number:6.2f}" for number in numbers)
        for name, objects, *numbers in rows
    ]
    return [head, *lines]


def class_rows(outcomes: Outcomes) -> list[tuple[str, int, float, float, float, float]]:
    """Name, objects, AP, AP50, AP75 and AR of each class with objects, the lowest AP first."""
    precision, recall = of_classes(outcomes.matches)
    objects = outcomes.matches.objects[0].sum(axis=1)
    columns = precision.mean(axis=0), precision[0], precision[5], recall.mean(axis=0)
    rows = zip(outcomes.class_names, objects.tolist(), *(c.tolist() for c in columns), strict=True)
    return sorted((row for row in rows if row[1]), key=lambda row: row[2])


def worst(outcomes: Outcomes, most: int) -> np.ndarray:
    """Rows of the `most` images with the lowest F1, the worst first; see `mistakes.Pairs`.

    Among equals, those with more mistakes come first.
    """
    return np.lexsort((-outcomes.pairs.wrong, outcomes.pairs.f1))[:most]
