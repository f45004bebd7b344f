"""Average precision and recall, from matches: COCO's figures and VOC's.

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

import numpy as np

from jaxconv.tasks.detection.matches import MOST, SIZES, Matches

RECALLS = np.linspace(0, 1, 101)


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """The curves of precision of all sizes, IoUs and classes: C = S * T * K, in this order.

    Attributes:
      shape: (S, T, K).
      image: [P] of each point, which is a detection that has found an object; sorted by curve, the
        best first.
      rank: [P] see `Matches`.
      score: [P].
      curve: [P].
      start: [C] the first point of each curve.
      counted: two lists of images of detections that count, with the ends in it for each point:
        (images [L], first [P], end [P]). One has the detections that count at all IoUs, the other
        the rest.
      objects: [S, K, N].
    """

    shape: tuple[int, int, int]
    image: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    curve: np.ndarray
    start: np.ndarray
    counted: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    objects: np.ndarray

    @functools.cached_property
    def once(self) -> np.ndarray:
        """[N] ones: every image counts once."""
        return np.ones(self.objects.shape[-1])

    def totals(self, times: np.ndarray) -> np.ndarray:
        """[C] objects of each curve, counted `times` [N]."""
        return np.broadcast_to((self.objects @ times)[:, None], self.shape).reshape(-1)

    def points(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall [P]; the precision is the highest at this recall or a higher one."""
        sums = np.cumsum(times[self.image])
        found = sums - np.concatenate([[0.0], sums])[self.start[self.curve]]
        taken = np.zeros(len(found))
        for images, first, end in self.counted:
            before = np.concatenate([[0.0], np.cumsum(times[images])])
            taken = taken + before[end] - before[first]
        # From the end of each curve to its beginning; those further on stay below.
        lifted = found / (taken + np.spacing(1)) + 2.0 * (len(self.start) - 1 - self.curve)
        highest = np.maximum.accumulate(lifted[::-1])[::-1]
        precision = highest - 2.0 * (len(self.start) - 1 - self.curve)
        return precision, found / np.maximum(self.totals(times), 1)[self.curve]

    def average(self, times: np.ndarray, recalls: int = 101) -> np.ndarray:
        """AP [S, T, K] over so many recalls from 0 to 1; 0: over all. NaN without an object."""
        precision, recall = self.points(times)
        reached = recall
        if recalls:
            each = np.linspace(0, 1, recalls)
            nearest = np.rint(recall * (recalls - 1)).astype(np.int64)
            reached = (nearest + (each[nearest] <= recall)) / recalls
        before = np.concatenate([[0.0], reached[:-1]])
        before[self.start[self.start < len(before)]] = 0
        return self._sums(precision * (reached - before), times)

    def recall(self, times: np.ndarray, most: int = MOST[-1]) -> np.ndarray:
        """Recall [S, T, K] with up to `most` detections of an image and a class."""
        found = np.where(self.rank < most, times[self.image], 0)
        return self._sums(found, times) / np.maximum(self.totals(times), 1).reshape(self.shape)

    def _sums(self, values: np.ndarray, times: np.ndarray) -> np.ndarray:
        sums = np.bincount(self.curve, weights=values, minlength=len(self.start))
        return np.where(self.totals(times) > 0, sums, np.nan).reshape(self.shape)

    def precisions(self) -> np.ndarray:
        """The precision at each of `RECALLS`: [S, T, K, 101]; NaN without an object."""
        precision, recall = self.points(self.once)
        drawn = np.zeros((len(self.start), len(RECALLS)))
        ends = [*self.start[1:], len(self.curve)]
        for c, (start, end) in enumerate(zip(self.start, ends, strict=True)):
            places = np.searchsorted(recall[start:end], RECALLS, side="left")
            drawn[c] = np.concatenate([precision[start:end], [0.0]])[places]
        drawn[self.totals(self.once) == 0] = np.nan
        return drawn.reshape(*self.shape, len(RECALLS))


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
    points = matches.image[row], matches.rank[row], matches.scores[row]
    shape = (sizes, ious, classes)
    return Curves(shape, *points, curve, start, tuple(counted), matches.objects)


def figures(matches: Matches, times: np.ndarray | None = None) -> dict[str, float]:
    """COCO's figures of all classes, see the module.

    Args:
      matches: COCO's.
      times: [N] how often each image counts, whole numbers; once by default.
    """
    curves = matches.curves
    times = curves.once if times is None else times
    known = curves.totals(times).reshape(curves.shape)[:, 0] > 0
    if not known.any():
        return dict.fromkeys(("ap", "ap50", "ap75", "ar"), 0.0)
    precision, recall = curves.average(times), curves.recall(times)
    of_all, some = precision[0][:, known[0]], recall[0][:, known[0]]
    result = {
        "ap": of_all.mean(),
        "ap50": of_all[0].mean(),
        "ap75": of_all[5].mean(),
        "ar": some.mean(),
    }
    for most in MOST[:-1]:
        result[f"ar{most}"] = curves.recall(times, most)[0][:, known[0]].mean()
    for n, name in enumerate(SIZES):
        if n and known[n].any():
            result[f"ap_{name}"] = precision[n][:, known[n]].mean()
            result[f"ar_{name}"] = recall[n][:, known[n]].mean()
    return {name: float(value) for name, value in result.items()}


def of_classes(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """AP and recall [10, K] of each class at each of `IOUS`; NaN without an object."""
    curves = matches.curves
    return curves.average(curves.once)[0], curves.recall(curves.once)[0]


def voc_figures(matches: Matches, times: np.ndarray | None = None) -> dict[str, float]:
    """`voc07` and `voc10` of VOC's matches; `times` as for `figures`."""
    curves = matches.curves
    times = curves.once if times is None else times
    known = curves.totals(times) > 0
    if not known.any():
        return {"voc07": 0.0, "voc10": 0.0}
    each = {"voc07": curves.average(times, 11), "voc10": curves.average(times, 0)}
    return {name: float(value.reshape(-1)[known].mean()) for name, value in each.items()}
