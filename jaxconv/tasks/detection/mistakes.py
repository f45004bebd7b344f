"""What a detector's mistakes are, and what they cost, at an IoU of 0.5.

TIDE (Bolya et al. 2020, arXiv:2008.08115, section 2.2) gives each wrong detection one kind, by the
object of its class and the object of another class with which it overlaps most:

    kind            IoU with its class    with another           when it is mended
    localisation    0.1 to 0.5                                   right, or gone
    class           below 0.1             from 0.5               right, or gone
    duplicate       from 0.5, of an object that is found         gone
    background      up to 0.1             up to 0.1              gone
    both            the rest                                     gone
    missed          an object that is neither found nor the one of a mistake in class or
                    localisation; mended, it is no object

Of the mistakes about one object that is not found, the one with the highest score becomes right.
The cost of a kind is how much AP50 rises when all of that kind are mended. As in TIDE's own code, a
class whose objects were all missed has an AP50 of 0.

What pairs of classes are confused is told by detections with a score of at least `SHOWN`: each is
paired with an object of its class, else of another class, else with the background.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxconv.data.objects import areas, common_areas
from jaxconv.tasks.detection.matches import IOU, overlaps
from jaxconv.tasks.detection.precision import Matches

KINDS = ("class", "localisation", "both", "duplicate", "background", "missed")
# Below this IoU, a detection lies on the background.
NEAR = 0.1
# The least score of what pictures, people and the confusion of classes are shown.
SHOWN = 0.4


@dataclasses.dataclass(frozen=True, eq=False)
class Mistakes:
    """The D detections that count, and the mistakes.

    Attributes:
      image, row: [D] of each detection.
      classes, scores: [D].
      kind: [D] index in `KINDS`; -1: it is right.
      becomes: [D] the class in which it is right when its kind is mended; -1 if it is then gone.
      missed: [n, 2] image and row of each missed object.
      missed_classes: [n].
      objects: [K] of each class.
    """

    image: np.ndarray
    row: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    kind: np.ndarray
    becomes: np.ndarray
    missed: np.ndarray
    missed_classes: np.ndarray
    objects: np.ndarray

    def counts(self) -> dict[str, int]:
        """How many mistakes of each kind there are."""
        each = np.bincount(self.kind[self.kind >= 0], minlength=len(KINDS))
        return dict(zip(KINDS, [*each[:-1].tolist(), len(self.missed)], strict=True))

    def ap50(self, mended: str = "") -> float:
        """AP50 over classes with objects, with all mistakes of a kind mended."""
        objects, known = self.objects, self.objects > 0
        classes, right, left = self.classes, self.kind < 0, np.ones(len(self.kind), bool)
        if mended == "missed":
            objects = objects - np.bincount(self.missed_classes, minlength=len(objects))
        elif mended:
            own = self.kind == KINDS.index(mended)
            mends, left = own & (self.becomes >= 0), ~own | (self.becomes >= 0)
            classes, right = np.where(mends, self.becomes, classes), right | mends
        classes, right, scores = classes[left], right[left], self.scores[left]
        order = np.lexsort((-scores, classes))
        nothing, counts = np.zeros(len(order), np.int64), np.ones((1, 1, len(order)), bool)
        found = Matches(
            nothing, classes[order], scores[order], nothing, right[order][None, None], counts,
            objects[None, :, None],
        )  # fmt: skip
        each = found.curves.at().average().reshape(-1)
        return float(np.nan_to_num(each)[known].mean()) if known.any() else 0.0

    def costs(self) -> dict[str, float]:
        """How much AP50 rises, from 0 to 1, by mending the mistakes of each kind."""
        base = self.ap50()
        return {kind: max(0.0, self.ap50(kind) - base) for kind in KINDS}


def mistakes(kept: Mapping[str, np.ndarray], classes: int) -> Mistakes:
    """The mistakes in N images, of what `Detection.keep` returned."""
    rows: list[tuple[int, int, int, int]] = []
    missed: list[tuple[int, int]] = []
    objects = np.zeros(classes, np.int64)
    for n in range(len(kept["valid"])):
        one = _Image(kept, n)
        objects += np.bincount(one.truth_classes, minlength=classes)
        found = _found(one.own)
        taken = np.isin(np.arange(len(one.truth)), found)
        # The objects that a mistake could find.
        about = np.zeros(len(one.truth), bool)
        for d, row in enumerate(one.rows.tolist()):
            if found[d] >= 0:
                rows.append((n, row, -1, -1))
            elif not one.in_crowd[d]:
                kind, m = _kind(one.own[d], one.others[d], taken)
                mends = m >= 0 and not taken[m] and not about[m]
                if m >= 0:
                    about[m] |= not taken[m]
                rows.append((n, row, kind, one.truth_classes[m] if mends else -1))
        missed += [(n, int(m)) for m in one.truth[~taken & ~about]]
    image, row, kind, becomes = np.array(rows, np.int64).reshape(-1, 4).T
    nowhere = np.array(missed, np.int64).reshape(-1, 2)
    of_missed = np.asarray(kept["true_classes"])[nowhere[:, 0], nowhere[:, 1]]
    labels, scores = (np.asarray(kept[name])[image, row] for name in ("classes", "scores"))
    return Mistakes(
        image, row, labels.astype(np.int64), scores.astype(np.float64), kind, becomes, nowhere,
        of_missed.astype(np.int64), objects,
    )  # fmt: skip


class _Image:
    """The detections of one image, the best first, and its objects.

    Attributes:
      rows: [d] of its detections; classes: [d].
      truth: [m] rows of its objects without crowds; truth_classes: [m].
      own, others: [d, m] IoU with objects of the same class and of others; else -1.
      in_crowd: [d] bool: it lies in a crowd of its class.
    """

    def __init__(self, kept: Mapping[str, np.ndarray], n: int, least: float = 0.0):
        scores, valid = np.asarray(kept["scores"][n]), np.asarray(kept["valid"][n])
        order = np.argsort(-scores, kind="stable")
        self.rows = order[valid[order] & (scores[order] >= least)]
        there, crowd = np.asarray(kept["true_valid"][n]), np.asarray(kept["true_crowd"][n])
        self.truth, crowds = np.flatnonzero(there & ~crowd), np.flatnonzero(there & crowd)
        true_classes = np.asarray(kept["true_classes"][n])
        self.classes, self.truth_classes = kept["classes"][n][self.rows], true_classes[self.truth]
        iou = overlaps(kept, n)[self.rows][:, self.truth]
        same = self.classes[:, None] == self.truth_classes[None]
        self.own, self.others = np.where(same, iou, -1), np.where(same, -1, iou)
        inside = _share_inside(kept["boxes"][n][self.rows], kept["true_boxes"][n][crowds])
        same = self.classes[:, None] == true_classes[crowds][None]
        self.in_crowd = ((inside >= IOU) & same).any(axis=1)


def _share_inside(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """[d, c] the share of each box [d, 4] that lies in each crowd [c, 4]."""
    boxes, crowds = (np.asarray(some, np.float64) for some in (boxes[:, None], crowds[None]))
    return common_areas(boxes, crowds) / np.maximum(areas(boxes), 1e-12)


def _found(iou: np.ndarray, found: np.ndarray | None = None) -> np.ndarray:
    """[d] the object that each detection finds, of IoUs [d, m]; -1 for none.

    Each takes the free object with which it overlaps most. `found` are those of before.
    """
    found = np.full(len(iou), -1) if found is None else found.copy()
    left = iou.copy()
    left[:, found[found >= 0]] = -1
    if not left.shape[1]:
        return found
    # Only these can find anything.
    for d in np.flatnonzero((found < 0) & (left.max(axis=1) >= IOU)).tolist():
        m = int(left[d].argmax())
        if left[d, m] >= IOU:
            found[d], left[:, m] = m, -1
    return found


def _kind(own: np.ndarray, others: np.ndarray, taken: np.ndarray) -> tuple[int, int]:
    """The kind of a wrong detection, and the object that it is about, -1 for none."""
    if not len(own):
        return KINDS.index("background"), -1
    m, k = int(own.argmax()), int(others.argmax())
    if NEAR <= own[m] <= IOU:
        return KINDS.index("localisation"), m
    if others[k] >= IOU:
        return KINDS.index("class"), k
    if np.where(taken, own, -1).max() >= IOU:
        return KINDS.index("duplicate"), -1
    if max(own[m], others[k]) <= NEAR:
        return KINDS.index("background"), -1
    return KINDS.index("both"), -1


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Objects and what they were taken for: P pairs, in N images.

    Attributes:
      image: [P].
      truth: [P] row of the object; -1 for the background.
      found: [P] row of the detection; -1 for a missed object.
      true_class, class_: [P]; K for the background and for missed.
      counts: [K + 1, K + 1] how often each class was taken for each.
      f1: [N] 2 right / (2 right + wrong + missed) of each image; 1 where nothing is to be found.
      wrong: [N] wrong detections and missed objects.
    """

    image: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    true_class: np.ndarray
    class_: np.ndarray
    counts: np.ndarray
    f1: np.ndarray
    wrong: np.ndarray


def pairs(kept: Mapping[str, np.ndarray], classes: int, least: float = SHOWN) -> Pairs:
    """The pairs of N images, of detections with a score of at least `least`."""
    rows: list[tuple[Any, ...]] = []
    for n in range(len(kept["valid"])):
        one = _Image(kept, n, least)
        found = _found(np.maximum(one.own, one.others), _found(one.own))
        for d, m in enumerate(found.tolist()):
            if m >= 0:
                of = one.truth[m], one.rows[d], one.truth_classes[m], one.classes[d]
                rows.append((n, *of))
            elif not one.in_crowd[d]:
                rows.append((n, -1, one.rows[d], classes, one.classes[d]))
        for m in np.setdiff1d(np.arange(len(one.truth)), found).tolist():
            rows.append((n, one.truth[m], -1, one.truth_classes[m], classes))
    image, truth, found, true_class, said = np.array(rows, np.int64).reshape(-1, 5).T
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(counts, (true_class, said), 1)
    images = len(kept["valid"])
    right = np.bincount(image[true_class == said], minlength=images)
    # An object that was taken for another class is both missed and found wrongly.
    wrong = sum(
        np.bincount(image[(true_class != said) & (rows_ >= 0)], minlength=images)
        for rows_ in (truth, found)
    )
    f1 = np.where(right + wrong > 0, 2 * right / np.maximum(2 * right + wrong, 1), 1.0)
    return Pairs(image, truth, found, true_class, said, counts, f1, np.asarray(wrong))


def unpaired(
    targets: Mapping[str, Any], served: Mapping[str, Any], least: float = SHOWN
) -> tuple[np.ndarray, np.ndarray]:
    """Which objects of an image are missed, and which detections wrong, [m] and [d] bool.

    Args:
      targets: `boxes`, `classes` and `valid` of the image's objects; m are valid.
      served: what `Detection.serve` returns of it; d have a score of at least `least`.
    """
    kept = {f"true_{name}": np.asarray(targets[name])[None] for name in ("boxes", "classes")}
    valid = np.asarray(targets["valid"])
    kept |= {"true_valid": valid[None], "true_crowd": np.zeros_like(valid)[None]}
    names = ("boxes", "classes", "scores", "valid")
    kept |= {name: np.asarray(served[name])[None] for name in names}
    classes = 1 + max([0, *kept["true_classes"][0][valid], *kept["classes"][0]])
    found = pairs(kept, classes, least)
    right = found.true_class == found.class_
    shown = np.flatnonzero(kept["valid"][0] & (kept["scores"][0] >= least))
    missed = ~np.isin(np.flatnonzero(valid), found.truth[right])
    return missed, ~np.isin(shown, found.found[right])
