"""What `jaxconv evaluate` prints about the classes, and the files that it writes."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxconv.drawing.confusions import confusions
from jaxconv.drawing.fonts import save_figure
from jaxconv.files import whole_file
from jaxconv.tasks.confused import most_confused
from jaxconv.tasks.files import write_rows
from jaxconv.tasks.segmentation.outcomes import Outcomes, figures, rows


def class_lines(outcomes: Outcomes) -> list[str]:
    """A table of all classes, the lowest IoU first."""
    ranked = sorted(rows(outcomes), key=lambda row: np.nan_to_num(row["iou"], nan=2.0))
    width = max(len(row["name"]) for row in ranked)
    return [f"{'class':{width}}  {'pixels':>12}  {'IoU':>8}  {'Dice':>8}  taken for most"] + [
        f"{row['name']:{width}}  {row['pixels']:12,}  {100 * row['iou']:6.2f} %  "
        f"{100 * row['dice']:6.2f} %  {row['taken_for']}"
        for row in ranked
    ]


def write_predictions(path: Path, evaluation: Any) -> None:
    """Write what was measured of every example, atomically.

    .npz: `confusions` [N, K (truth), K (prediction)] pixels, `losses` [N], `index` [N] (the
    examples' positions in the split), `names` [N], `class_names` [K]. .csv: a line per example:
    index, name, mean IoU, accuracy, mean Dice and loss.
    """
    outcomes = evaluation.outcomes
    names = [evaluation.source.name(int(i)) for i in outcomes.index]
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".npz":
            np.savez(
                temporary,
                confusions=outcomes.confusions,
                losses=outcomes.losses,
                index=outcomes.index,
                names=np.array(names),
                class_names=np.array(outcomes.class_names),
            )
            return
        each = {**figures(outcomes.confusions), "loss": outcomes.losses}
        numbers = zip(*(values.tolist() for values in each.values()), strict=True)
        lines = zip(outcomes.index.tolist(), names, numbers, strict=True)
        write_rows(temporary, [["index", "name", *each], *([i, n, *v] for i, n, v in lines)])


def write_confusion(path: Path, evaluation: Any) -> None:
    """Write the confusion of all pixels, one row per true class, as .csv or as a picture."""
    counts = evaluation.outcomes.confusions.sum(axis=0, dtype=np.int64)
    names = evaluation.outcomes.class_names
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".csv":
            lines = ([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
            write_rows(temporary, [["true \\ predicted", *names], *lines])
        else:
            figure = confusions(counts, names, most_confused(counts, 10), title=evaluation.name)
            save_figure(figure, temporary, dpi=120)
