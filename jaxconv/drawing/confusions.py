"""Which classes are taken for which: the confusion matrix beside the most confused pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxconv.drawing.samples import draw_example, short_name
from jaxconv.drawing.sheet import FAINT, RIGHT, WRONG, Sheet, new_sheet

# Inches above the matrix.
_TOP = 0.75
# The most classes for which a confusion matrix shows numbers, and names.
_NUMBERED, _NAMED = 20, 60


def confusions(
    counts: np.ndarray,
    class_names: Sequence[str],
    pairs: Sequence[tuple[int, int, int]],
    examples: Sequence[Sequence[Any]] = (),
    most: int = 10,
    title: str = "",
    below: str = "",
) -> Figure:
    """The most confused pairs of classes, next to the confusion matrix.

    Args:
      counts: [K, K], how many of class i were predicted as class j.
      class_names: K names.
      pairs: (true class, predicted class, times), the most frequent first, see
        `tasks.confused.most_confused`.
      examples: images for each of the pairs.
      most: of classes to list, where there are too many for a matrix.
      title: above the picture.
      below: the line below the title, by default how many are right.
    """
    few = len(class_names) <= _NAMED
    side = float(np.clip(0.7 * len(class_names), 2.8, 8.0)) if few else 3.4
    row = 0.62 if len(examples) else 0.36
    beside = row * max(len(pairs), 0 if few else most)
    sheet = new_sheet(
        side + 7.0,
        max(side + 1.8 if few else 0.0, _TOP + 0.5 + beside),
        f"{title}{': ' if title else ''}confusions",
    )
    right, total = int(np.trace(counts)), int(counts.sum())
    rows = "; rows are the true classes, columns the predicted ones" if few else ""
    sheet.text(0.2, 0.38, below or f"{right:,} of {total:,} are right{rows}", 8, color=FAINT)
    if few:
        _matrix(sheet, counts, class_names, (1.4, 1.6, side, side))
    else:
        _worst_classes(sheet, counts, class_names, most, row)
    _pairs(sheet, side + 2.3, counts, pairs, class_names, examples, row)
    return sheet.figure


def _worst_classes(
    sheet: Sheet, counts: np.ndarray, class_names: Sequence[str], most: int, height: float
) -> None:
    """The classes with the lowest accuracy, where a matrix cannot show all of them."""
    totals = counts.sum(axis=1)
    shares = np.diag(counts) / np.maximum(totals, 1)
    sheet.text(0.2, _TOP, f"least often right, of {len(counts):,} classes", 9, weight="bold")
    for n, k in enumerate(np.argsort(np.where(totals > 0, shares, np.inf), kind="stable")[:most]):
        y = _TOP + 0.35 + n * height
        sheet.text(0.2, y, short_name(class_names[int(k)], 34), 8)
        _share(sheet, 0.2, y, float(shares[k]), f"{counts[k, k]:,} of {totals[k]:,}", RIGHT)


def _share(sheet: Sheet, x: float, y: float, share: float, text: str, colour: str) -> None:
    """A bar below a name, with text at its end."""
    sheet.frame((x, y + 0.17, 1.8 * share, 0.09), fill=True, facecolor=colour, edgecolor="none")
    sheet.text(x + 1.8 * share + 0.06, y + 0.215, text, 8, va="center", color=FAINT)


def _matrix(
    sheet: Sheet,
    counts: np.ndarray,
    class_names: Sequence[str],
    box: tuple[float, float, float, float],
) -> None:
    """Shares of each row: green on the diagonal, red off it.

    Red has its own scale, without which mistakes would be too faint to see.
    """
    x, y, side, _ = box
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    strength = np.where(right, shares, shares / (shares[~right].max(initial=0.0) or 1.0))[..., None]
    colour = np.where(right[..., None], (0.10, 0.50, 0.22), (0.81, 0.13, 0.18))
    sheet.image(1 + 0.85 * strength * (colour - 1), box)
    step = side / len(counts)
    if len(counts) <= _NAMED:
        size = float(np.clip(50 * step, 4, 8))
        for k, name in enumerate(class_names):
            middle = (k + 0.5) * step
            sheet.text(x - 0.06, y + middle, short_name(name, 16), size, ha="right", va="center")
            sheet.text(
                x + middle,
                y - 0.06,
                short_name(name, 16),
                size,
                ha="left" if step < 0.6 else "center",
                va="bottom",
                rotation=45 if step < 0.6 else 0,
                rotation_mode="anchor",
            )
    if len(counts) <= _NUMBERED:
        for (true, said), count in np.ndenumerate(counts):
            if count:
                dark = strength[true, said, 0] > 0.6
                place = (x + (said + 0.5) * step, y + (true + 0.5) * step)
                sheet.text(
                    *place,
                    f"{count:,}",
                    min(8, 22 * step),
                    ha="center",
                    va="center",
                    color="white" if dark else "#333333",
                )


def _pairs(
    sheet: Sheet,
    x: float,
    counts: np.ndarray,
    pairs: Sequence[tuple[int, int, int]],
    class_names: Sequence[str],
    examples: Sequence[Sequence[Any]],
    height: float,
) -> None:
    sheet.text(x, _TOP, "most confused" if pairs else "nothing is confused", 9, weight="bold")
    for n, (true, said, count) in enumerate(pairs):
        y = _TOP + 0.35 + n * height
        share = 100 * count / counts[true].sum()
        sheet.text(
            x, y, f"{short_name(class_names[true], 16)} → {short_name(class_names[said], 16)}", 8
        )
        _share(sheet, x, y, count / pairs[0][2], f"{count:,}, {share:.0f} %", WRONG)
        for column, image in enumerate(examples[n][:4] if len(examples) else ()):
            draw_example(
                sheet,
                image,
                (x + 2.5 + column * (height - 0.08), y - 0.06, height - 0.12, height - 0.12),
            )
