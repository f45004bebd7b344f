"""Statistics of a network's predictions on a set: error rates, confusions, calibration.

    top-k         the true class has one of the k highest logits; among equal logits the first class
                  ranks higher
    loss          -log of the true class's probability, in nats
    confusion     how many examples of each class were predicted as each class
    calibration   whether four out of five predictions with a probability of 80% are right
                  (Guo et al. 2017, arXiv:1706.04599)
    height        how far off a prediction is in WordNet (Russakovsky et al. 2015, arXiv:1409.0575)

Plain NumPy functions of arrays.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxconv import moved
from jaxconv.data.wordnet import mistake_heights, wordnet_ids
from jaxconv.tasks.intervals import share_interval

BINS = 15


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """The logits of a network for every example of a set.

    Attributes:
      labels: [N] the true classes.
      logits: [N, K] logits or log probabilities; their softmax are the probabilities.
      class_names: K names.
      index: [N] the examples' positions in their source; unreadable ones are missing. By default
        0 ... N - 1.

    Raises:
      ValueError: the shapes do not match, or a label is out of range.
    """

    labels: np.ndarray
    logits: np.ndarray
    class_names: tuple[str, ...]
    index: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        labels, logits, count = np.asarray(self.labels), np.asarray(self.logits), len(self.labels)
        index = np.asarray(self.index) if len(self.index) else np.arange(count)
        if logits.shape != (count, len(self.class_names)) or index.shape != (count,) or not count:
            raise ValueError(
                f"logits {list(logits.shape)} and index {list(index.shape)} do not fit {count} "
                f"labels and {len(self.class_names)} classes"
            )
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise ValueError(
                f"label {wrong} is out of range; it must be at least 0 and less than the number of "
                f"classes, {len(self.class_names)}"
            )
        for name, value in (
            ("labels", labels),
            ("logits", logits),
            ("index", index),
            ("class_names", tuple(self.class_names)),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """[N, K] float32."""
        return np.exp(_log_softmax(self.logits), dtype=np.float32)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """[N] the classes with the highest logits."""
        return self.logits.argmax(axis=1)

    @functools.cached_property
    def confidence(self) -> np.ndarray:
        """[N] float64, the probability of each predicted class."""
        return self.probabilities.max(axis=1).astype(np.float64)

    @functools.cached_property
    def ranks(self) -> np.ndarray:
        """[N] how many classes have a higher logit than the true one: 0 for a right prediction."""
        own = self._of_true(self.logits)[:, None]
        before = np.arange(self.logits.shape[1]) < self.labels[:, None]
        # Not `logits > own`, which would count a NaN logit of the true class as the highest.
        return (~(self.logits <= own) | ((self.logits == own) & before)).sum(axis=1)

    @functools.cached_property
    def losses(self) -> np.ndarray:
        """[N] float64, softmax cross entropy in nats."""
        return -self._of_true(_log_softmax(self.logits)).astype(np.float64)

    def _of_true(self, values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, self.labels[:, None], axis=1)[:, 0]


def within(outcomes: Outcomes, k: int) -> np.ndarray:
    """[N] bool, whether the true class has one of the k highest logits."""
    return outcomes.ranks < k


@dataclasses.dataclass(frozen=True, eq=False)
class PerClass:
    """Counts [K] of each class: its examples, how many are right, how often it is predicted."""

    examples: np.ndarray
    right: np.ndarray
    predicted: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """[K] the share of each class's examples that is right (recall); NaN without any."""
        return _share(self.right, self.examples)

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """(low [K], high [K]) of the accuracies, see `tasks.intervals.share_interval`."""
        return share_interval(self.right, self.examples)

    @property
    def precision(self) -> np.ndarray:
        """[K] the share of each class's predictions that is right; NaN without any."""
        return _share(self.right, self.predicted)

    def ranked(self) -> np.ndarray:
        """Classes that have examples, the worst first; ties go to the one with more examples."""
        known = np.flatnonzero(self.examples)
        return known[np.lexsort((known, -self.examples[known], self.accuracy[known]))]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def per_class(outcomes: Outcomes) -> PerClass:
    """Counts of each class."""
    classes = len(outcomes.class_names)
    right = outcomes.labels[within(outcomes, 1)]
    return PerClass(
        *(
            np.bincount(values, minlength=classes)
            for values in (outcomes.labels, right, outcomes.predicted)
        )
    )


def confusion(outcomes: Outcomes) -> np.ndarray:
    """[K, K] int64: the number of examples of class i that were predicted as class j."""
    classes = len(outcomes.class_names)
    return np.bincount(
        outcomes.labels * classes + outcomes.predicted, minlength=classes**2
    ).reshape(classes, classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """The reliability diagram: examples by confidence, in bins of equal width.

    Attributes:
      edges: [B + 1] of the bins, from 0 to 1; a bin includes its upper edge.
      examples: [B] in each bin.
      confidence, accuracy: [B] the mean probability of the predictions, and the share of right
        ones; NaN in empty bins.
    """

    edges: np.ndarray
    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """The expected calibration error: mean |accuracy - confidence| of the examples' bins."""
        filled = self.examples > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float(np.sum(gaps * self.examples[filled]) / self.examples.sum())


def calibration(outcomes: Outcomes, bins: int = BINS) -> Calibration:
    """The points of the reliability diagram (Guo et al. 2017, section 2, with 15 bins)."""
    edges, place = np.arange(bins + 1) / bins, bin_of(outcomes, bins)
    examples = np.bincount(place, minlength=bins)
    confidence, right = (
        np.bincount(place, values, bins) for values in (outcomes.confidence, within(outcomes, 1))
    )
    return Calibration(edges, examples, _share(confidence, examples), _share(right, examples))


def bin_of(outcomes: Outcomes, bins: int = BINS) -> np.ndarray:
    """[N] the index of the bin of `calibration` that each prediction falls into."""
    return np.searchsorted(np.arange(1, bins) / bins, outcomes.confidence)


def confused_examples(
    outcomes: Outcomes, pairs: Sequence[tuple[int, int, int]], most: int = 4
) -> list[np.ndarray]:
    """The first examples of each of the pairs of `most_confused`, by their row in the outcomes."""
    return [
        np.flatnonzero((outcomes.labels == true) & (outcomes.predicted == said))[:most]
        for true, said, _ in pairs
    ]


def worst(outcomes: Outcomes, most: int) -> np.ndarray:
    """The rows of the `most` mistakes with the highest losses, in descending order."""
    wrong = np.flatnonzero(~within(outcomes, 1))
    return wrong[np.argsort(-outcomes.losses[wrong], kind="stable")][:most]


def heights(outcomes: Outcomes) -> np.ndarray:
    """[N] heights in WordNet of the lowest common ancestor of prediction and truth; 0 if right.

    Raises:
      ValueError: the classes are not WordNet's, see `wordnet_ids`.
    """
    ids = wordnet_ids(outcomes.class_names)
    if not ids:
        raise ValueError(
            f"the classes are not those of WordNet: {', '.join(outcomes.class_names[:3])} ..."
        )
    return _costs(ids)[outcomes.labels, outcomes.predicted]


def greatest_height(outcomes: Outcomes) -> float:
    """The largest possible value of `heights`, over all pairs of classes."""
    return float(_costs(wordnet_ids(outcomes.class_names)).max())


@functools.lru_cache(maxsize=2)
def _costs(ids: tuple[str, ...]) -> np.ndarray:
    return mistake_heights(ids)


def figures(outcomes: Outcomes, bins: int = BINS) -> dict[str, float]:
    """`loss`, `top1`, `ece`; `top5` for over 5 classes; mean `height` for WordNet's classes."""
    means = {name: float(np.mean(values)) for name, values in per_example(outcomes).items()}
    return means | {"ece": calibration(outcomes, bins).ece}


def per_example(outcomes: Outcomes) -> dict[str, np.ndarray]:
    """The values whose means are the figures, [N] float64 each."""
    values: dict[str, Any] = {"loss": outcomes.losses, "top1": within(outcomes, 1)}
    if len(outcomes.class_names) > 5:
        values["top5"] = within(outcomes, 5)
    if wordnet_ids(outcomes.class_names):
        values["height"] = heights(outcomes)
    return {name: np.asarray(value, np.float64) for name, value in values.items()}


def averaged(each: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of the mean of several networks' probabilities, for the same examples.

    Raises:
      ValueError: their examples or classes differ.
    """
    first = each[0]
    for other in each[1:]:
        same = [
            np.array_equal(getattr(first, name), getattr(other, name))
            for name in ("labels", "index", "class_names")
        ]
        if not all(same):
            raise ValueError("the outcomes have different examples or classes")
    return dataclasses.replace(first, logits=log_mean([outcomes.logits for outcomes in each]))


def log_mean(logits: Sequence[np.ndarray]) -> np.ndarray:
    """The logarithms [N, K] float32 of the mean probabilities of several logits.

    A single array is returned unchanged.
    """
    if len(logits) == 1:
        return logits[0]
    total = functools.reduce(np.logaddexp, (_log_softmax(x) for x in logits))
    return (total - np.log(len(logits))).astype(np.float32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # logits of a diverged network
        shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


__getattr__ = moved.names_of(__name__)
