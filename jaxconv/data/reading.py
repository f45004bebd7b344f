"""What was read, as what, and what was not: the lines that every training begins with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxconv.data.interface import Arrays, Element, Source, size_in_words
from jaxconv.data.layout import check_finite
from jaxconv.data.stored import StoredSource
from jaxconv.errors import short

# Beyond this, the mean and deviation of the config do not fit the numbers.
_FAR = 50.0


def read_as(source: Source, split: str) -> str:
    """A line on what a split holds, and as what it was read: `train: 40 images of ...`."""
    parts = [f"{len(source):,} {element_in_words(source.element)}", *_scale(source)]
    counts = count_classes(source)
    if "label" in source.targets:
        parts.append(_classes(source.class_names, counts))
    others = [name for name in source.targets if name != "label"]
    if others:
        parts.append(f"with {', '.join(others)}")
    return f"{split}: {', '.join(parts)}"


def notes_of(source: Source, split: str, settings: Any = None) -> tuple[str, ...]:
    """What is worth knowing about a split: the source's own notes, and what its examples show.

    Args:
      source: the split.
      split: its name.
      settings: `config.data`, for what its mean and deviation make of the numbers.

    Raises:
      UserError: numbers in memory are infinite or NaN.
    """
    notes = list(source.notes)
    if isinstance(source, Arrays) and len(source) and source.images.size:
        notes += _of_numbers(source, split, settings)
    counts = count_classes(source)
    if counts is not None:
        none = [source.class_names[k] for k in np.flatnonzero(counts == 0)]
        if none:
            notes.append(
                f"no example of {len(none):,} of {len(counts):,} classes: "
                f"{short(', '.join(map(repr, none)), 60)}"
            )
        if len(counts) > 2 and 2 * np.count_nonzero(counts) > len(source) > 10:
            notes.append(
                f"{np.count_nonzero(counts):,} classes have an example, of {len(source):,} examples"
            )
    return tuple(f"{split}: {note}" for note in notes)


def element_in_words(element: Element) -> str:
    """`images of 32x32 pixels with 3 channels`, `signals of 100 with 2 channels`, ..."""
    if element.kind == "text":
        return f"texts of {element.shape[0]} codes, {element.codes} different"
    size = size_in_words(
        element.shape if element.kind == "image" else element.shape[:-1], element.kind
    )
    channels = element.shape[-1]
    return f"{element.kind}s of {size} with {channels} channel{'s' * (channels != 1)}"


def count_classes(source: Source) -> np.ndarray | None:
    """Examples of each class [K]; None without labels, or if they are known only by reading."""
    known = isinstance(source, Arrays) or (
        isinstance(source, StoredSource) and source.records.has_labels
    )
    if not known or "label" not in source.targets or not source.class_names:
        return None
    labels = np.asarray(source.labels_of_all())
    if labels.ndim != 1 or (len(labels) and not 0 <= labels.min() <= labels.max() < 2**31):
        return None  # invalid labels are rejected when they are read
    counts = np.bincount(labels, minlength=len(source.class_names))
    return counts if len(counts) == len(source.class_names) else None


def _classes(names: Sequence[str], counts: np.ndarray | None) -> str:
    said = f"{len(names):,} classes"
    if counts is None or not len(counts):
        return said
    low, high = int(counts.min()), int(counts.max())
    return f"{said} of {low:,}{f' to {high:,}' if high > low else ''} examples"


def _scale(source: Source) -> list[str]:
    """The type of the numbers, and their ends where they are in memory."""
    element = source.element
    if element.kind == "text":
        return []
    if not isinstance(source, Arrays) or not source.images.size:
        return [element.dtype]
    return [f"{element.dtype} from {source.images.min():.4g} to {source.images.max():.4g}"]


def _of_numbers(source: Arrays, split: str, settings: Any) -> list[str]:
    """What the numbers of examples in memory show."""
    if source.images.dtype.kind != "f":
        same = source.images.min() == source.images.max()
        return ["every number of every example is the same"] if same else []
    low, high = check_finite(source.images, f"split {split!r}")
    if low == high:
        return ["every number of every example is the same"]
    if settings is None:
        return []
    mean, std = (np.mean(settings[name]) for name in ("mean", "std"))
    far = max(abs(low - mean), abs(high - mean)) / std
    if far <= _FAR:
        return []
    return [
        f"numbers from {low:.4g} to {high:.4g} become as large as {far:.4g} by config.data.mean "
        "and config.data.std; `jaxconv data` prints those of the data"
    ]
