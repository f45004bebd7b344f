"""Matches, and average precision and recall made of them: COCO's figures and VOC's.

    AP      the mean over 101 recalls of the highest precision at that recall or a higher one
    ap      the mean AP of all classes with objects and all ten IoUs; ap50 and ap75 of one IoU;
            ap_small, ap_medium and ap_large of objects up to 32^2, up to 96^2 and above, in pixels
            of the file
    ar      the mean recall, with up to 100 detections of an image and a class; ar1 and ar10 with
            less; ar_small, ar_medium and ar_large
    voc07   VOC's AP until 2009, over 11 recalls, at an IoU of 0.5
    voc10   VOC's AP since 2010, over all recalls: the area below the curve

As in COCOeval (https://github.com/cocodataset/cocoapi) and VOC's development kit. They are 0 if
there is no object at all; sizes without an object have no figures.

Only the detections that have found an object raise a curve, so curves are made of these alone, all
together in flat arrays. Images can be counted several times, so that the bootstrap takes no
further matching.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import numpy as np

from jaxconv.data.objects import SIZES as SIDES

IOUS = np.linspace(0.5, 0.95, 10)
# Areas in pixels of the file, from and to; `all` is the first.
_ENDS = [0.0, *(min(side**2, 1e10) for side in SIDES.values())]
SIZES = {"all": (0.0, 1e10), **dict(zip(SIDES, itertools.pairwise(_ENDS), strict=True))}
# Detections of an image and a class.
MOST = (1, 10, 100)
RECALLS = np.linspace(0, 1, 101)


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """D detections in N images, sorted by class and then by score, at T IoUs and for S sizes.

    Attributes:
      image: [D] the row of each detection's image.
      classes: [D].
      scores: [D].
      rank: [D] how many of its image and class have a higher score.
      right: [S, T, D] bool: it has found an object.
      counts: [S, T, D] bool: those that do not count found what does not.
      objects: [S, K, N] of each class in each image.
    """

    image: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    rank: np.ndarray
    right: np.ndarray
    counts: np.ndarray
    objects: np.ndarray

    @functools.cached_property
    def curves(self) -> "Curves":
        """Their curves of precision."""
        return curves_of(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """The curves of precision of all sizes, IoUs and classes: C = S * T * K, in this order.

    Attributes:
      shape: (S, T, K).
      image: [P] of each point, which is a detection that has found an object; sorted by curve, the
        best first.
      rank: [P] see `Matches`.
      curve: [P].
      start: [C] the first point of each curve.
      counted: of which images are the detections that count, up to each point: twice (images [L],
        first [P], end [P]). One has the detections that count at all IoUs, the other the rest.
      objects: [S, K, N] float64.
    """

    shape: tuple[int, int, int]
    image: np.ndarray
    rank: np.ndarray
    curve: np.ndarray
    start: np.ndarray
    counted: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    objects: np.ndarray

    @functools.cached_property
    def first(self) -> np.ndarray:
        """[P] the first point of each one's curve."""
        return self.start[self.curve]

    @functools.cached_property
    def lift(self) -> np.ndarray:
        """[P] numbers that set each curve above those after it."""
        return 2.0 * (len(self.start) - 1 - self.curve)

    @functools.cached_property
    def within(self) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The points among the first detections of an image and a class, by each of `MOST`.

        They are their places, the curves that have any, and the first of each of these.
        """
        found = {}
        for most in MOST:
            places = np.flatnonzero(self.rank < most)
            found[most] = places, *np.unique(self.curve[places], return_index=True)
        return found

    def at(self, times: np.ndarray | None = None) -> "Measured":
        """What the curves say if the images count `times` [N], whole numbers; once by default."""
        return Measured(self, np.ones(self.objects.shape[-1]) if times is None else times)


class Measured:
    """Curves with each image counted some times.

    Attributes:
      totals: [S, T, K] objects.
      known: [S, K] bool: there is an object.
      precision: [P] at each point the highest precision at its recall or a higher one.
      recall: [P] at each point.
    """

    def __init__(self, curves: Curves, times: np.ndarray):
        self._curves, self._weights = curves, times[curves.image]
        objects = curves.objects @ times
        self.known = objects > 0
        self.totals = np.broadcast_to(np.maximum(objects, 1)[:, None], curves.shape)
        sums = np.concatenate([[0.0], np.cumsum(self._weights)])
        found = sums[1:] - sums[curves.first]
        taken = np.zeros(len(found))
        for images, first, end in curves.counted:
            before = np.concatenate([[0.0], np.cumsum(times[images])])
            taken += before[end] - before[first]
        # From the end of each curve to its beginning; those further on stay below.
        lifted = found / (taken + np.spacing(1)) + curves.lift
        self.precision = np.maximum.accumulate(lifted[::-1])[::-1] - curves.lift
        self.recall = found / self.totals.reshape(-1)[curves.curve]

    def average(self, recalls: int = 101) -> np.ndarray:
        """AP [S, T, K] over so many recalls from 0 to 1, or 0: over all. NaN without an object."""
        reached = self.recall
        if recalls:
            nearest = np.rint(reached * (recalls - 1)).astype(np.int64)
            reached = (nearest + (np.linspace(0, 1, recalls)[nearest] <= reached)) / recalls
        before = np.concatenate([[0.0], reached[:-1]])
        start = self._curves.start
        before[start[start < len(before)]] = 0
        return self._sums(self.precision * (reached - before), MOST[-1])

    def found(self, most: int = MOST[-1]) -> np.ndarray:
        """Recall [S, T, K] with up to `most` detections of an image and a class."""
        return self._sums(self._weights, most) / self.totals

    def _sums(self, values: np.ndarray, most: int) -> np.ndarray:
        """Sums of values [P] over each curve, with up to `most` detections: [S, T, K]."""
        places, curves, first = self._curves.within[most]
        sums = np.zeros(len(self._curves.start))
        if len(curves):
            sums[curves] = np.add.reduceat(values[places], first)
        return np.where(self.known[:, None], sums.reshape(self._curves.shape), np.nan)

    def precisions(self) -> np.ndarray:
        """The precision at each of `RECALLS`: [S, T, K, 101]; NaN without an object."""
        start = self._curves.start
        drawn = np.zeros((len(start), len(RECALLS)))
        ends = [*start[1:], len(self.recall)]
        for c, (first, end) in enumerate(zip(start, ends, strict=True)):
            places = np.searchsorted(self.recall[first:end], RECALLS, side="left")
            drawn[c] = np.concatenate([self.precision[first:end], [0.0]])[places]
        drawn = drawn.reshape(*self._curves.shape, len(RECALLS))
        return np.where(self.known[:, None, :, None], drawn, np.nan)


def curves_of(matches: Matches) -> Curves:
    """The curves of matches."""
    sizes, ious, count = matches.right.shape
    classes = matches.objects.shape[1]
    size, iou, row = np.nonzero(matches.right)
    curve = (size * ious + iou) * classes + matches.classes[row]
    # After the last that is right, for any IoU, nothing changes a curve.
    last = np.full((sizes, classes), -1)
    np.maximum.at(last, (size, matches.classes[row]), row)
    matters = np.arange(count)[None] <= last[:, matches.classes]
    counts = matches.counts & matters[:, None]
    always = counts.all(axis=1)
    of_class = np.searchsorted(matches.classes, np.arange(classes))[matches.classes[row]]
    counted = []
    for mask, group in (
        (always, size * count),
        (counts & ~always[:, None], (size * ious + iou) * count),
    ):
        flat = np.flatnonzero(mask)
        first, end = np.searchsorted(flat, group + of_class), np.searchsorted(flat, group + row + 1)
        counted.append((matches.image[flat % max(1, count)], first, end))
    start = np.searchsorted(curve, np.arange(sizes * ious * classes))
    points = matches.image[row], matches.rank[row]
    shape = (sizes, ious, classes)
    return Curves(shape, *points, curve, start, tuple(counted), matches.objects.astype(float))


def figures(matches: Matches, times: np.ndarray | None = None) -> dict[str, float]:
    """COCO's figures of all classes, see the module.

    Args:
      matches: COCO's.
      times: [N] how often each image counts, whole numbers; once by default.
    """
    measured = matches.curves.at(times)
    known = measured.known
    if not known[0].any():
        return dict.fromkeys(("ap", "ap50", "ap75", "ar"), 0.0)
    precision, recall = measured.average(), measured.found()
    of_all, some = precision[0][:, known[0]], recall[0][:, known[0]]
    result = {
        "ap": of_all.mean(),
        "ap50": of_all[0].mean(),
        "ap75": of_all[5].mean(),
        "ar": some.mean(),
    }
    for most in MOST[:-1]:
        result[f"ar{most}"] = measured.found(most)[0][:, known[0]].mean()
    for n, name in enumerate(SIZES):
        if n and known[n].any():
            result[f"ap_{name}"] = precision[n][:, known[n]].mean()
            result[f"ar_{name}"] = recall[n][:, known[n]].mean()
    return {name: float(value) for name, value in result.items()}


def more_figures(more: Mapping[str, Matches], times: np.ndarray | None = None) -> dict[str, float]:
    """`mask_ap`, `mask_ap50`, `mask_ap75`, `keypoint_ap`, `keypoint_ap50`, those there are."""
    names = {"masks": ("ap", "ap50", "ap75"), "keypoints": ("ap", "ap50")}
    found: dict[str, float] = {}
    for kind, matches in more.items():
        values = figures(matches, times)
        found |= {f"{kind[:-1]}_{name}": values[name] for name in names[kind]}
    return found


def of_classes(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """AP and recall [10, K] of each class at each of `IOUS`; NaN without an object."""
    measured = matches.curves.at()
    return measured.average()[0], measured.found()[0]


def voc_figures(matches: Matches, times: np.ndarray | None = None) -> dict[str, float]:
    """`voc07` and `voc10` of VOC's matches; `times` as for `figures`."""
    measured = matches.curves.at(times)
    known = measured.known[0]
    if not known.any():
        return {"voc07": 0.0, "voc10": 0.0}
    each = {"voc07": measured.average(11), "voc10": measured.average(0)}
    return {name: float(value[0, 0][known].mean()) for name, value in each.items()}
