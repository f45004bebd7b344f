"""Files with the results of every example of a set."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.files import PRINTABLE, whole_file


def write_values(path: Path, evaluation: Any) -> None:
    """Write what was measured of every example, atomically.

    .npz: each value [N, ...] by its name, `index` [N] (the examples' positions in the split)
    and `names` [N]. .csv: a line per example: index, name, and the values that are a single number.

    Args:
      path: of the file.
      evaluation: see evaluation/evaluation.py; its outcomes are `Measured`.
    """
    outcomes = evaluation.outcomes
    names = [evaluation.source.name(int(i)) for i in outcomes.index]
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".npz":
            arrays = {**outcomes.values, "index": outcomes.index, "names": np.array(names)}
            np.savez(temporary, **arrays)
        else:
            single = {name: v for name, v in outcomes.values.items() if np.ndim(v) == 1}
            numbers = zip(*(values.tolist() for values in single.values()), strict=True)
            rows = zip(outcomes.index.tolist(), names, numbers, strict=True)
            lines = ([i, name, *values] for i, name, values in rows)
            write_rows(temporary, [["index", "name", *single], *lines])


def write_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV, in UTF-8."""
    with open(path, "w", newline="", encoding="utf-8", errors=PRINTABLE) as file:
        csv.writer(file).writerows(rows)
