"""Cross-validation: a split is cut into equal folds at random, by (data.fold_seed, data.folds).

    --config.data.train_split='train[!fold]' --config.data.eval_split='train[fold]'
    jaxconv sweep ... --grid='data.fold=0:10'      ten runs, each of which leaves one fold out

It works with every source. What a source makes of its training split, such as a vocabulary of
words, it makes without the fold.
"""

import dataclasses
import re
import zlib
from typing import Any, NamedTuple

import numpy as np

from jaxconv.data.interface import Arrays, Part, Source, generator
from jaxconv.data.stored import Records, StoredSource
from jaxconv.errors import UserError

_FOLD = re.compile(r"(.+)\[(!?)fold\]")


class Cut(NamedTuple):
    """What a split's name says: the split itself, and which part of it.

    Attributes:
      split: the name without the brackets.
      part: `fold`, `rest`, or empty for the whole.
    """

    split: str
    part: str


def parse_split(name: str) -> Cut:
    """`train[!fold]` -> (train, rest)."""
    found = _FOLD.fullmatch(name)
    if not found:
        return Cut(name, "")
    return Cut(found[1], "rest" if found[2] else "fold")


def places_of(count: int, part: str, folds: int, fold: int, seed: int) -> np.ndarray:
    """The indices of a fold, or of the rest, among `count` examples, in ascending order.

    Raises:
      UserError: there are fewer examples than folds.
    """
    if count < folds:
        raise UserError(f"config.data.folds is {folds}, and the split has {count:,} examples")
    number = np.empty(count, np.int64)
    number[generator(seed, "folds").permutation(count)] = np.arange(count) % folds
    return np.flatnonzero((number == fold) == (part == "fold"))


class _Chosen:
    """Some of other records, in their order."""

    def __init__(self, records: Records, places: np.ndarray):
        self._records, self._places = records, places
        self.has_labels = records.has_labels
        self.notes = getattr(records, "notes", ())

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self._records[int(self._places[i])]

    def labels_of_all(self) -> np.ndarray:
        return self._records.labels_of_all()[self._places]

    def name(self, i: int) -> str:
        return self._records.name(int(self._places[i]))

    def checksum(self) -> int:
        return zlib.crc32(self._places, self._records.checksum())


def cut_source(source: Source, part: str, config: Any) -> Source:
    """The part of a source that `parse_split` found.

    Args:
      source: the whole split.
      part: `fold`, `rest`, or empty for all of it.
      config: `config.data`.

    Raises:
      UserError: see `places_of`.
    """
    if not part:
        return source
    places = places_of(len(source), part, config.folds, config.fold, config.fold_seed)
    if isinstance(source, StoredSource):
        return dataclasses.replace(source, records=_Chosen(source.records, places))
    if isinstance(source, Arrays):
        return dataclasses.replace(
            source,
            images=source.images[places],
            values={name: value[places] for name, value in source.arrays.items()},
            name_of=lambda i: source.name_of(int(places[i])),
        )
    return Part(source, places)
