"""Which classes the labels of arrays mean: numbers from 0, one per class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxconv.data.layout import Reading, as_array

_NUMBER_THEM = "number them by names, labels = numpy.unique(labels, return_inverse=True)"


def read_labels(
    labels: Any, class_names: Sequence[str], count: int, reading: Reading
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels [N] int32 from 0, and one name per class.

    Args:
      labels: [N] or [N, 1] integers, or one-hot rows [N, K]; or a list or tensor of these.
      class_names: one per class; if empty those that the network was trained with, or by default
        the numbers up to the largest label.
      count: N.
      reading: how arrays are to be read.

    Raises:
      UserError: the labels do not number the classes.
    """
    labels = as_array(labels, reading, "labels")
    labels, classes = _as_numbers(labels, count, reading)
    low, high = int(labels.min()) - reading.first_label, int(labels.max()) - reading.first_label
    names = tuple(map(str, class_names))
    like = reading.like or {}
    trained = not names and "class_names" in like
    if trained:
        names = tuple(like["class_names"])
    if not names:
        names = _numbers(labels, low, high, classes, reading)
    if low < 0 or high >= len(names):
        raise reading.error(_out_of_range(low, high, names, trained, reading))
    return (labels - reading.first_label).astype(np.int32), names


def one_hot(labels: np.ndarray) -> bool:
    """Whether rows [N, K] are all 0 but for a single 1."""
    return bool(
        labels.ndim == 2
        and labels.shape[1] > 1
        and labels.dtype.kind in "biuf"
        and np.all((labels == 0) | (labels == 1))
        and np.all((labels != 0).sum(axis=1) == 1)
    )


def _as_numbers(labels: np.ndarray, count: int, reading: Reading) -> tuple[np.ndarray, int]:
    """Integers [N], and how many classes there are at least."""
    classes, advice = 0, ""
    if one_hot(labels):
        classes = labels.shape[1]
        labels = labels.argmax(axis=1)
    elif labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int32)
    if labels.ndim == 2:
        advice = ": the rows are not one-hot, which is a single 1 in each"
    elif labels.dtype.kind in "US":
        advice = f": {_NUMBER_THEM}, and give class_names=names"
    elif labels.dtype.kind == "f" and len(labels) == count:
        whole = np.isfinite(labels) & (labels == np.round(labels))
        advice = (
            ": make them integers, labels.astype(int)"
            if whole.all()
            else f": label {np.argmin(whole)} is {labels[np.argmin(whole)]}"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != count:
        raise reading.error(
            f"the labels are {labels.dtype} {labels.shape}; they must be integers [{count}], one "
            f"per example{advice}"
        )
    return labels.astype(np.int64, copy=False), classes


def _numbers(
    labels: np.ndarray, low: int, high: int, classes: int, reading: Reading
) -> tuple[str, ...]:
    """The names of classes that are only numbered, from 0 to the largest label.

    Raises:
      UserError: most of these classes have no example, or the first has none.
    """
    if low > 0 and not classes:
        labels_of = int(labels.min())
        raise reading.error(
            f"the labels go from {labels_of} to {int(labels.max())}, so that no example has the "
            f"class {reading.first_label}; if {labels_of} is the first class, set "
            f"{reading.setting('first_label', labels_of)}, and else give class_names"
        )
    count, present = max(2, classes, high + 1), len(np.unique(labels))
    if low >= 0 and not classes and 2 * present < count:
        raise reading.error(
            f"the labels are {present:,} different numbers from {low:,} to {high:,}, so that "
            f"{count - present:,} of {count:,} classes would have no example; {_NUMBER_THEM}, or "
            "give class_names if they are right"
        )
    return tuple(map(str, range(count)))


def _out_of_range(
    low: int, high: int, names: Sequence[str], trained: bool, reading: Reading
) -> str:
    """Why labels do not fit the classes, and what to do."""
    first = reading.first_label
    message = f"the labels go from {low + first} to {high + first}, but there are {len(names)} "
    if trained:
        return (
            f"{message}classes in the training split, {first} to {len(names) - 1 + first}; add "
            "examples of the others to it, or give class_names with all of them"
        )
    if low == 1 and high == len(names):
        return f"{message}classes: count from 0, or set {reading.setting('first_label', 1)}"
    if low < 0:
        return (
            f"{message}classes, {first} to {len(names) - 1 + first}; leave out what has no class, "
            f"or {_NUMBER_THEM}"
        )
    return f"{message}classes"
