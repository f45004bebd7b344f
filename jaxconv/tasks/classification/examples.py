"""Pictures of example predictions, as in the lecture's ConvNetJS demo, and of mistakes.

Right answers are green with a tick, wrong ones red with a cross. Images are anything that
`samples.draw_example` draws.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxconv import moved
from jaxconv.drawing.samples import draw_example, short_name
from jaxconv.drawing.sheet import FAINT, RIGHT, WRONG, Sheet, new_sheet
from jaxconv.tasks.classification.outcomes import Outcomes

OTHER = "#b8bec5"
# Inches: an image, the bars next to it, the gap between examples, and the heading.
_IMAGE, _BARS, _GAP, _TOP = 1.1, 1.5, 0.25, 0.75
_COLUMNS = 4


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


__getattr__ = moved.names_of(__name__)
