"""The files that `jaxconv evaluate` writes of detections."""

import json
from pathlib import Path
from typing import Any

from jaxconv.data.coco import numbers_of
from jaxconv.data.sources import eval_size
from jaxconv.drawing.confusions import confusions
from jaxconv.drawing.fonts import save_figure
from jaxconv.errors import UserError
from jaxconv.files import whole_file
from jaxconv.tasks.confused import most_confused
from jaxconv.tasks.detection.masks import paste_mask
from jaxconv.tasks.detection.matches import as_coco, in_file
from jaxconv.tasks.detection.shown import run_lengths
from jaxconv.tasks.files import write_rows


def write_detections(path: Path, evaluation: Any) -> None:
    """Write all detections as COCO's server takes them, atomically.

    They are a list of `image_id`, `category_id`, `bbox` [left, top, width, height] in pixels of the
    file, and `score`; with the heads also `segmentation`, run lengths of the mask in the file's
    size, and `keypoints`, x, y and score of each (cocodataset.org, format-results). Images and
    categories have the numbers of the annotations of `coco:DIR`; those of other sources are counted
    from 1, in their order.

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
        by_path, by_name = numbers_of(folder, evaluation.split, data, "keypoints" in found.values)
        images = [by_path[source.name(int(i))] for i in found.index]
        categories = [by_name[name] for name in found.class_names]
    names = ("image_id", "category_id", "bbox", "score", "segmentation", "keypoints")
    rows = as_coco(found.values, len(found.class_names), images, categories)[1]
    if "masks" in found.values:
        boxes, place_of = in_file(found.values), {number: n for n, number in enumerate(images)}
        sizes = found.values.get("size", [evaluation.task.size] * len(images))
        for row in rows:
            n, d = place_of[row["image_id"]], row["place"]
            size = int(sizes[n][0]), int(sizes[n][1])
            mask = paste_mask(found.values["masks"][n, d], boxes[n, d], size) > 0.5
            row["segmentation"] = run_lengths(mask)
    shown = [{name: row[name] for name in names if name in row} for row in rows]
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(shown))


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
            figure = confusions(counts, names, most_confused(counts, 10), title=evaluation.name)
            save_figure(figure, temporary, dpi=120)
