"""The results of every example of a set, from confusions of pixels; and the figures of a set.

IoU        of a class: pixels that are both of it and taken for it / those that are either
Dice       2 x both / (of it + taken for it)
mean IoU, mean Dice   over the classes that occur in truth or prediction
accuracy   share of the pixels that are taken for their class
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxconv.tasks.intervals import CONFIDENCE


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """What was measured of N examples.

    Attributes:
      confusions: [N, K (truth), K (prediction)] pixels.
      losses: [N].
      class_names: K.
      index: [N] the examples' positions in their source.
    """

    confusions: np.ndarray
    losses: np.ndarray
    class_names: tuple[str, ...]
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


def of_classes(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """`iou` and `dice` [..., K] of confusions [..., K, K]; NaN for classes that do not occur."""
    counts = np.asarray(confusion, np.float64)
    both = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(axis=-1) + counts.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        return {"iou": both / (total - both), "dice": 2 * both / total}


def figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """`miou`, `accuracy` and `dice` [...] of confusions [..., K, K]; 0 without any pixel."""
    each, counts = of_classes(confusion), np.asarray(confusion, np.float64)
    occurs = np.isfinite(each["iou"])
    number = np.maximum(occurs.sum(axis=-1), 1)
    means = {name: np.where(occurs, value, 0).sum(-1) / number for name, value in each.items()}
    right = np.trace(counts, axis1=-2, axis2=-1)
    pixels = np.maximum(counts.sum(axis=(-2, -1)), 1)
    return {"miou": means["iou"], "accuracy": right / pixels, "dice": means["dice"]}


def finished(confusion: Any, loss: float) -> dict[str, float]:
    """The figures of a set with its mean loss."""
    return {"loss": float(loss)} | {k: float(v) for k, v in figures(confusion).items()}


def intervals(outcomes: Outcomes, resamples: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """(low, high) of each figure by the bootstrap over images: `resamples` sets of as many."""
    random, count = np.random.default_rng(seed), len(outcomes)
    times = random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    classes = len(outcomes.class_names)
    sums = times @ outcomes.confusions.reshape(count, -1).astype(np.float64)
    found = figures(sums.reshape(resamples, classes, classes))
    found["loss"] = times @ outcomes.losses / count
    tails = 100 * np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    between = {name: np.percentile(values, tails) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in between.items()}


def worst(outcomes: Outcomes, most: int) -> np.ndarray:
    """Rows of the examples with the lowest mean IoU, that first."""
    return np.argsort(figures(outcomes.confusions)["miou"], kind="stable")[:most]


def rows(outcomes: Outcomes) -> list[Mapping[str, Any]]:
    """For each class its `name`, `pixels`, `iou`, `dice` and what it is `taken_for` most."""
    total = outcomes.confusions.sum(axis=0, dtype=np.int64)
    each, found = of_classes(total), []
    for k, name in enumerate(outcomes.class_names):
        others = np.where(np.arange(len(total)) == k, 0, total[k])
        other = int(np.argmax(others))
        found.append(
            {
                "name": name,
                "pixels": int(total[k].sum()),
                "iou": float(each["iou"][k]),
                "dice": float(each["dice"][k]),
                "taken_for": outcomes.class_names[other] if others[other] else "",
            }
        )
    return found
