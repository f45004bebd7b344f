"""Pictures of example predictions, as in the lecture's ConvNetJS demo; of mistakes; of confusions.

Right answers are green with a tick, wrong ones red with a cross. Images are anything that
`samples.draw_example` draws.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxconv.drawing.samples import draw_example, short_name
from jaxconv.drawing.sheet import FAINT, Sheet, new_sheet
from jaxconv.tasks.classification.outcomes import Outcomes, most_confused

RIGHT, WRONG, OTHER = "#1a7f37", "#cf222e", "#b8bec5"
# Inches: an image, the bars next to it, the gap between examples, and the heading.
_IMAGE, _BARS, _GAP, _TOP = 1.1, 1.5, 0.25, 0.75
_COLUMNS = 4
# The most classes for which a confusion matrix shows numbers, and names.
_NUMBERED, _NAMED = 20, 60


def predictions(
    images: Sequence[Any],
    labels: Sequence[int] | np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    top: int = 3,
    title: str = "",
) -> Figure:
    """A grid of examples, each with its most probable classes as bars.

    Args:
      images: N of them, all of which are drawn.
      labels: [N], the true classes; -1 if unknown.
      probabilities: [N, K].
      class_names: K names.
      top: classes to show for each.
      title: above the picture.
    """
    labels = np.asarray(labels)
    known, right = (labels >= 0).sum(), (probabilities.argmax(axis=1) == labels).sum()
    heading = f"{title}{': ' if title else ''}example predictions"
    below = f"{right} of these {known} are right" if known else ""
    columns = min(_COLUMNS, len(images))
    height = _IMAGE + 0.2
    sheet = new_sheet(
        max(5.8, 0.2 + columns * (_IMAGE + _BARS + _GAP)),
        _TOP + -(-len(images) // columns) * height,
        heading,
    )
    sheet.text(0.2, 0.38, below, 8, color=FAINT)
    for n, image in enumerate(images):
        x, y = 0.2 + (n % columns) * (_IMAGE + _BARS + _GAP), _TOP + (n // columns) * height
        draw_example(sheet, image, (x, y, _IMAGE, _IMAGE))
        _bars(sheet, x + _IMAGE + 0.08, y, int(labels[n]), probabilities[n], class_names, top)
    return sheet.figure


def _bars(
    sheet: Sheet,
    x: float,
    y: float,
    label: int,
    shares: np.ndarray,
    class_names: Sequence[str],
    top: int,
) -> None:
    """The most probable classes of one example; the true class is below if not among them."""
    best = np.argsort(-shares, kind="stable")[:top]
    step = _IMAGE / (top + 1) if label >= 0 and label not in best else _IMAGE / max(3, top)
    for row, k in enumerate(best):
        colour = RIGHT if k == label else WRONG if row == 0 and label >= 0 else OTHER
        place = y + row * step
        sheet.frame(
            (x, place + 0.15, _BARS * float(shares[k]), min(0.09, step - 0.17)),
            fill=True,
            facecolor=colour,
            edgecolor="none",
        )
        mark = "✓ " if k == label else "✗ " if row == 0 and label >= 0 else ""
        sheet.text(
            x,
            place,
            f"{mark}{short_name(class_names[int(k)], 15)}",
            8,
            color=colour if mark else "#555555",
        )
        sheet.text(x + _BARS, place, f"{100 * shares[k]:.0f} %", 8, ha="right", color=FAINT)
    if label >= 0 and label not in best:
        place = y + len(best) * step
        sheet.text(x, place, f"is: {short_name(class_names[label], 15)}", 8, color=RIGHT)
        sheet.text(x + _BARS, place, f"{100 * shares[label]:.2g} %", 8, ha="right", color=FAINT)


def mistakes(
    images: Sequence[Any],
    found: Outcomes,
    places: Sequence[int] | np.ndarray,
    names: Sequence[str] = (),
    title: str = "",
    below: str = "",
) -> Figure:
    """Mistakes: each image with its class, the predicted class and its probability, and the loss.

    Args:
      images: of N mistakes, in the order to be drawn.
      found: the outcomes of a set.
      places: [N] the mistakes' rows in it, see `outcomes.worst`.
      names: of the examples, such as `example 17`.
      title, below: above the picture, in two lines.
    """
    heading = f"{title}{': ' if title else ''}the worst mistakes"
    columns = min(6, max(2, len(images)))
    width, height = 1.45 + _GAP, 1.45 + 0.75
    sheet = new_sheet(
        max(6.0, 0.2 + columns * width), _TOP + max(1, -(-len(images) // columns)) * height, heading
    )
    sheet.text(0.2, 0.38, below or ("" if len(images) else "no mistakes"), 8, color=FAINT)
    for n, (image, place) in enumerate(zip(images, places, strict=True)):
        x, y = 0.2 + (n % columns) * width, _TOP + (n // columns) * height
        true, said, shares = found.labels[place], found.predicted[place], found.probabilities[place]
        draw_example(sheet, image, (x, y, 1.45, 1.45))
        lines = (
            (f"✗ {short_name(found.class_names[said], 14)}, {100 * shares[said]:.1f} %", WRONG),
            (f"is: {short_name(found.class_names[true], 14)}, {100 * shares[true]:.2g} %", RIGHT),
            (f"loss {found.losses[place]:.2f}{f'  {names[n]}' if len(names) else ''}", FAINT),
        )
        for row, (text, colour) in enumerate(lines):
            sheet.text(x, y + 1.5 + 0.15 * row, text, 8, color=colour)
    return sheet.figure


def confusions(
    counts: np.ndarray,
    class_names: Sequence[str],
    examples: Sequence[Sequence[Any]] = (),
    most: int = 10,
    title: str = "",
    pairs: Sequence[tuple[int, int, int]] | None = None,
    below: str = "",
) -> Figure:
    """The most confused pairs of classes, next to the confusion matrix.

    Args:
      counts: [K, K], see `outcomes.confusion`.
      class_names: K names.
      examples: images for each of the pairs of `most_confused(counts, most)`.
      most: pairs to show.
      title: above the picture.
      pairs: (true class, predicted class, times), by default `most_confused(counts, most)`.
      below: the line below the title, by default how many are right.
    """
    pairs = most_confused(counts, most) if pairs is None else pairs
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
