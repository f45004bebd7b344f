"""The files that `jaxconv evaluate` writes of detections."""

import json
from pathlib import Path
from typing import Any

from jaxconv.data.coco import numbers_of
from jaxconv.data.sources import eval_size
from jaxconv.drawing.fonts import save_figure
from jaxconv.errors import UserError
from jaxconv.files import whole_file
from jaxconv.tasks.classification.examples import confusions
from jaxconv.tasks.detection.matches import as_coco
from jaxconv.tasks.files import write_rows


def write_detections(path: Path, evaluation: Any) -> None:
    """Write all detections as COCO's server takes them, atomically.

    They are a list of `image_id`, `category_id`, `bbox` [left, top, width, height] in pixels of the
    file, and `score` (cocodataset.org, format-results). Images and categories have the numbers of
    the annotations of `coco:DIR`; those of other sources are counted from 1, in their order. Masks
    are left out: an evaluation keeps only their overlaps.

    Raises:
      UserError: of images in files, the network saw a crop of unknown place.
    """
    found, source, data = evaluation.outcomes, evaluation.source, evaluation.task.config.data
    images, categories = [int(i) + 1 for i in found.index], []
    kind, colon, folder = data.source.partition(":")
    if colon and "size" not in found.values and eval_size(data):
        raise UserError(
            f"--detections: the images of {data.source} were cropped, so that places in their "
            "files are not known; train and evaluate on a canvas, --config.data.canvas=H,W"
        )
    if kind == "coco" and evaluation.data == data.source:
        by_path, by_name = numbers_of(folder, evaluation.split, data)
        images = [by_path[source.name(int(i))] for i in found.index]
        categories = [by_name[name] for name in found.class_names]
    names = ("image_id", "category_id", "bbox", "score")
    rows = as_coco(found.values, len(found.class_names), images, categories)[1]
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps([{name: row[name] for name in names} for row in rows]))


def write_confusion(path: Path, evaluation: Any) -> None:
    """Write what each class was taken for, one row per true class, as .csv or as a picture.

    The last row and column are the background, see mistakes.py.
    """
    found = evaluation.outcomes
    counts, names = found.pairs.counts, (*found.class_names, "background")
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".csv":
            lines = ([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
            write_rows(temporary, [["true \\ detected", *names], *lines])
        else:
            save_figure(confusions(counts, names, title=evaluation.name), temporary, dpi=120)
