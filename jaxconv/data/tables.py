"""Boxes in a table: `csv:PATH`, a file with a column `split`, or a folder with <split>.csv.

    image,xmin,ymin,xmax,ymax,class[,split][,crowd]     in any order, among any other columns
    path,x1,y1,x2,y2,class                              without a header, as Keras-RetinaNet's

One row is one object; a row without a box and a class is an image, which may have no objects.
`COLUMNS` has other names of the columns. Numbers are pixels, or with `data.csv.relative` shares of
the image's width and height. Paths are absolute, or relative to `data.csv.images`, or else to the
table, to a folder named after the split, or to `images`, beside it. In a folder, DIR/<split>.csv or
another of `FILES` is taken.
"""

import csv
import dataclasses
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.data.annotated import OFFERED, AnnotatedFiles, Pictures, present, wanted_of
from jaxconv.data.folder import read_content
from jaxconv.data.geometry import Size
from jaxconv.data.interface import DamagedError
from jaxconv.data.objects import Faults, Objects, mended
from jaxconv.data.pictures import size_or_zeros
from jaxconv.errors import UserError, short, some
from jaxconv.files import at_home

# What the columns may be called, in any case; `split` and `crowd` may be missing.
COLUMNS = {
    "image": ("image", "filename", "file_name", "file", "path", "image_path", "image_name"),
    "left": ("xmin", "x_min", "x1", "left"),
    "top": ("ymin", "y_min", "y1", "top"),
    "right": ("xmax", "x_max", "x2", "right"),
    "bottom": ("ymax", "y_max", "y2", "bottom"),
    "class": ("class", "class_name", "label", "name", "category"),
    "split": ("split", "set", "subset"),
    "crowd": ("crowd", "is_crowd", "iscrowd", "difficult", "is_difficult"),
}
_NEEDED = ("image", "left", "top", "right", "bottom", "class")
_BOX = ("left", "top", "right", "bottom")
# The table of a split in a folder; the first that is there is taken.
FILES = (
    "{split}.csv",
    "{split}_labels.csv",
    "annotations/{split}.csv",
    "{split}/_annotations.csv",
)
FOLDERS = (".", "{split}", "images", "images/{split}")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: its line in the file, from 1, and its cells by the names of `COLUMNS`."""

    line: int
    cells: Mapping[str, str]


def open_table(
    place: str,
    split: str,
    settings: Any,
    needs: Sequence[str],
    size: Size | None,
    trained: Sequence[str],
) -> AnnotatedFiles:
    """The records of a split.

    Args:
      place: PATH.
      split: the split's name.
      settings: `config.data`; `csv`, `annotations` and `max_boxes` are used.
      needs: the targets that the task needs; empty for label and boxes.
      size: unused: a table has no masks.
      trained: the classes of the training split; empty for this table's own, sorted.

    Raises:
      UserError: there is no such table or split, it cannot be read, or it is faulty and that is
        refused.
    """
    path = find(at_home(place, "config.data.source"), split)
    try:
        content = read_content(path)
    except DamagedError as error:
        raise UserError(f"{path}: {error}", exit_code=1) from error
    rows = read_rows(content, path)
    names = trained or sorted({row.cells["class"] for row in rows if row.cells["class"]})
    if not names:
        raise UserError(f"{path}: no row has a class", exit_code=1)
    faults = Faults(str(path), settings.annotations)
    rows = _of_split(rows, split, path, path == at_home(place, "config.data.source"))
    files = [*dict.fromkeys(row.cells["image"] for row in rows)]
    folder = _folder(path, split, settings.csv.images, files)
    there = present(folder, files, faults)
    kept = [files[i] for i in there]
    sizes = np.array([size_or_zeros(folder / name) for name in kept], np.int64)
    objects = _objects(rows, kept, names, sizes, settings.csv.relative, faults)
    wanted = wanted_of(needs, OFFERED[1:], ("label", "boxes"))
    return AnnotatedFiles(
        Pictures(folder, kept, sizes), mended(objects, sizes, faults), tuple(names), wanted,
        settings.max_boxes, size, None, zlib.crc32(content), faults,
    )  # fmt: skip


def find(place: Path, split: str) -> Path:
    """The table of a split; raises UserError if there is none."""
    if place.is_file():
        return place
    tried = [name.replace("{split}", split) for name in FILES]
    for name in tried:
        if (place / name).is_file():
            return place / name
    if not place.is_dir():
        raise UserError(f"csv:{place}: file not found", exit_code=1)
    has = sorted(str(p.relative_to(place)) for p in (*place.glob("*.csv"), *place.glob("*/*.csv")))
    raise UserError(
        f"csv:{place}: has no table of the split {split!r}: none of {', '.join(tried)}; there is "
        f"{some(has) or 'no .csv file'}: set --config.data.train_split and "
        "--config.data.eval_split, or name a file with a column split",
        exit_code=1,
    )


def read_rows(content: bytes, path: Path) -> list[Row]:
    """The rows of a table with a cell for each of `COLUMNS`, stripped; "" where there is none.

    Raises:
      UserError: it is no such table, or a row has no image, or fewer cells than columns.
    """
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({short(error)})", exit_code=1) from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise UserError(f"{path}: has no rows", exit_code=1)
    columns, header = _columns(lines[0][1], path)
    rows = []
    for number, cells in lines[header:]:
        if len(cells) <= max(columns.values()):
            raise UserError(
                f"{path}, line {number}: has {len(cells)} cells, and the table has "
                f"{1 + max(columns.values())} columns: {short(','.join(cells))}",
                exit_code=1,
            )
        row = Row(number, {n: cells[columns[n]] if n in columns else "" for n in COLUMNS})
        if not row.cells["image"]:
            raise UserError(f"{path}, line {number}: names no image", exit_code=1)
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: has no rows but its header", exit_code=1)
    return rows


def _columns(first: Sequence[str], path: Path) -> tuple[dict[str, int], int]:
    """The place of each column, and 1 if the first line names them."""
    named = [cell.lower() for cell in first]
    found = {
        column: next(named.index(name) for name in names if name in named)
        for column, names in COLUMNS.items()
        if any(name in named for name in names)
    }
    if all(column in found for column in _NEEDED):
        return found, 1
    numbers = [_number(cell) for cell in first[1:5]]
    if len(first) == len(_NEEDED) and not found and all(
        cell == "" or number is not None for cell, number in zip(first[1:5], numbers, strict=True)
    ):  # fmt: skip
        return {column: n for n, column in enumerate(_NEEDED)}, 0
    lacks = [COLUMNS[column][0] for column in _NEEDED if column not in found]
    raise UserError(
        f"{path}, line 1: {short(','.join(first))}: lacks the columns {', '.join(lacks)}; name "
        "them, or give path,x1,y1,x2,y2,class in each row, without a header",
        exit_code=1,
    )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _of_split(rows: Sequence[Row], split: str, path: Path, one_file: bool) -> list[Row]:
    """The rows of a split, by the column; in a folder, a table without it is one split."""
    splits = [*dict.fromkeys(row.cells["split"] for row in rows)]
    if splits == [""]:
        if one_file:
            raise UserError(
                f"{path}: has no column split; add one, or name a folder with {{split}}.csv for "
                "each split",
                exit_code=1,
            )
        return [*rows]
    if split not in splits:
        raise UserError(
            f"{path}: has no row of the split {split!r}; there is {some(splits)}: set "
            "--config.data.train_split and --config.data.eval_split",
            exit_code=1,
        )
    return [row for row in rows if row.cells["split"] == split]


def _folder(path: Path, split: str, images: str, files: Sequence[str]) -> Path:
    """The folder that the images' paths are relative to; the first one with any of ten of them."""
    tried = [path.parent / n.replace("{split}", split) for n in ([images] if images else FOLDERS)]
    for folder in tried:
        if any(os.path.isfile(folder / name) for name in files[:10]):
            return folder
    return tried[0]


def _objects(
    rows: Sequence[Row],
    files: Sequence[str],
    names: Sequence[str],
    sizes: np.ndarray,
    relative: bool,
    faults: Faults,
) -> Objects:
    """The objects of those images that are there and can be opened."""
    place = {name: n for n, name in enumerate(files)}
    order = {name: k for k, name in enumerate(names)}
    kept: list[tuple[int, Row, list[float]]] = []
    unread, classless, unknown = [], [], []
    for row in rows:
        cells, name = [row.cells[column] for column in _BOX], f"line {row.line}"
        n, kind = place.get(row.cells["image"]), row.cells["class"]
        if n is None or not (any(cells) or kind) or not all(sizes[n]):
            continue
        numbers = [_number(cell) for cell in cells]
        if None in numbers:
            unread.append(f"{name} ({short(','.join(cells))})")
        elif not kind:
            classless.append(name)
        elif kind not in order:
            unknown.append(f"{name} ({kind})")
        else:
            kept.append((n, row, [number for number in numbers if number is not None]))
    faults.add("rows whose box is not four numbers, left out", unread)
    faults.add("rows with a box and no class, left out", classless)
    faults.add("rows of an unknown class, left out", unknown)
    image = np.array([n for n, _, _ in kept], np.int64)
    with np.errstate(over="ignore"):  # a number beyond float32 is infinite, which is a fault
        boxes = np.array([box for *_, box in kept], np.float64).reshape(-1, 4).astype(np.float32)
    boxes = boxes[:, [1, 0, 3, 2]]
    if relative:
        boxes = boxes * np.tile(sizes, 2)[image].astype(np.float32)
    elif len(boxes) and np.nanmax(np.abs(boxes)) <= 1:
        raise UserError(
            f"{faults.place}: no number of its boxes is more than 1; if they are shares of the "
            "image's width and height, set --config.data.csv.relative=True",
            exit_code=1,
        )
    return Objects(
        image,
        boxes,
        np.array([order[row.cells["class"]] for _, row, _ in kept], np.int32),
        np.array([row.cells["crowd"].lower() in ("1", "true", "yes") for _, row, _ in kept], bool),
        [f"line {row.line}" for _, row, _ in kept],
    )
