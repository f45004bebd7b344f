"""Pictures of a detector's precision, mistakes and confusions. Images are [H, W, C]."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxconv.data.objects import areas, common_areas
from jaxconv.drawing.confusions import confusions
from jaxconv.drawing.masks import palette
from jaxconv.drawing.samples import draw_example, short_name
from jaxconv.drawing.sheet import FAINT, Picture, new_sheet
from jaxconv.tasks.confused import most_confused
from jaxconv.tasks.detection.mistakes import KINDS, SHOWN, Mistakes, Pairs
from jaxconv.tasks.detection.outcomes import Outcomes, class_rows
from jaxconv.tasks.detection.precision import IOUS, RECALLS

# The colours of an object and of a detection, as in drawing/boxes.py.
_TRUTH, _SAID = (27, 158, 119), (217, 95, 2)
# Pixels of a crop, and the least of the image that it shows.
_SIDE, _LEAST = 96, 12
# Curves of classes; crops beside a bar or a pair.
_CLASSES, _CROPS = 10, 4
# What a mended mistake would become, for people.
MEANS = {
    "class": "on an object, of another class",
    "localisation": "right class, IoU 0.1 to 0.5",
    "both": "near an object of another class",
    "duplicate": "of an object found already",
    "background": "where there is nothing",
    "missed": "objects that nothing is near",
}


def cropped(image: Any, truth: np.ndarray | None, found: np.ndarray | None) -> np.ndarray:
    """The part of an image [H, W, C] around an object and a detection, with both their boxes.

    Args:
      image: uint8, or float from 0 to 1.
      truth, found: boxes [4] in pixels, at least one.

    Returns:
      [96, 96, 3] uint8; beyond the image it is grey.
    """
    image = np.asarray(image)
    pixels = image if image.dtype == np.uint8 else np.clip(image, 0, 1) * 255
    pixels = np.repeat(pixels[..., :1], 3, axis=-1) if pixels.shape[-1] != 3 else pixels
    boxes = np.stack([box for box in (truth, found) if box is not None]).astype(np.float64)
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    side = max(1.3 * float((high - low).max()), _LEAST)
    corner, scale = (low + high - side) / 2, side / _SIDE
    y, x = (np.floor(start + scale * (np.arange(_SIDE) + 0.5)).astype(int) for start in corner)
    height, width = pixels.shape[:2]
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None]
    taken = pixels[np.clip(y, 0, height - 1)][:, np.clip(x, 0, width - 1)]
    crop = np.where(inside[..., None], taken, 128).astype(np.uint8)
    for box, colour in ((truth, _TRUTH), (found, _SAID)):
        if box is not None:
            ends = np.round((np.asarray(box).reshape(2, 2) - corner) / scale).astype(int)
            _outline(crop, np.clip(ends, 0, _SIDE - 1), colour)
    return crop


def _outline(crop: np.ndarray, ends: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Paint the outline of a box, two pixels wide, into a crop."""
    (top, left), (bottom, right) = ends
    for n in range(2):
        crop[top : bottom + 1, [min(left + n, right), max(right - n, left)]] = colour
        crop[[min(top + n, bottom), max(bottom - n, top)], left : right + 1] = colour


def precision(outcomes: Outcomes, title: str = "") -> Figure:
    """Precision against recall: the mean of all classes at each IoU, and each class at IoU 0.50."""
    figure = Picture(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    drawn = outcomes.matches.curves.at().precisions()[0]
    known = np.isfinite(drawn[0, :, 0])
    of_ious = drawn[:, known].mean(axis=1) if known.any() else np.zeros((len(IOUS), 101))
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(IOUS)))
    for iou, values, colour in zip(IOUS, of_ious, shades, strict=True):
        label = f"{iou:.2f}: AP {100 * values.mean():.1f} %"
        panels[0].plot(RECALLS, values, color=colour, label=label)
    panels[0].set(title="mean of all classes, by IoU")
    names = [row[0] for row in class_rows(outcomes)]
    shown, colours = names[:_CLASSES], palette(len(names))
    for name, colour in zip(shown, colours, strict=False):
        values = drawn[0, outcomes.class_names.index(name)]
        label = f"{short_name(name)}: {100 * values.mean():.1f} %"
        panels[1].plot(RECALLS, values, color=colour, label=label)
    of = f" with the lowest AP, of {len(names)}" if len(names) > len(shown) else ""
    panels[1].set(title=f"classes{of}, at IoU 0.50")
    for panel in panels:
        panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        panel.grid(alpha=0.3)
        if panel.lines:
            legend = panel.legend(fontsize="x-small", loc="lower left", edgecolor="none")
            for text in legend.get_texts():
                text.set_parse_math(False)
    if title:
        figure.suptitle(title, fontsize="medium", parse_math=False)
    return figure


def mistakes(found: Mistakes, crops: Sequence[Sequence[Any]] = (), title: str = "") -> Figure:
    """What each kind of mistake costs, as bars, with crops of some mistakes beside them.

    Args:
      found: the mistakes of a set.
      crops: images of mistakes of each kind, see `crops_of`.
      title: above the picture.
    """
    costs, counts, row = found.costs(), found.counts(), 0.72 if crops else 0.36
    heading = f"{title}{': ' if title else ''}what mistakes cost"
    sheet = new_sheet(8.8 if crops else 6.2, 0.85 + row * len(KINDS), heading)
    said = f"AP50 is {100 * found.ap50():.2f} %; a bar is how much it rises without this mistake"
    sheet.text(0.2, 0.38, said, 8, color=FAINT)
    longest = max(max(costs.values()), 0.01)
    colours = palette(len(KINDS))
    for n, kind in enumerate(KINDS):
        y = 0.75 + n * row
        sheet.text(0.2, y, kind, 9, weight="bold")
        sheet.text(0.2, y + 0.16, MEANS[kind], 7, color=FAINT)
        bar = (2.2, y + 0.02, 2.2 * costs[kind] / longest, 0.22)
        sheet.frame(bar, fill=True, facecolor=colours[n], edgecolor="none")
        text = f"{100 * costs[kind]:.2f} % ({counts[kind]:,})"
        sheet.text(bar[0] + bar[2] + 0.08, y + 0.13, text, 8, va="center")
        for column, image in enumerate(crops[n][:_CROPS] if crops else ()):
            draw_example(
                sheet, image, (5.7 + column * (row + 0.03), y - 0.06, row - 0.06, row - 0.06)
            )
    return sheet.figure


def crops_of(outcomes: Outcomes, shown: Callable[[int], Any]) -> list[list[np.ndarray]]:
    """Crops of the surest mistakes of each of `KINDS`, of images that `shown` gives by row.

    Of missed objects they are the largest.
    """
    found, kept, each = outcomes.mistakes, outcomes.values, []
    for kind in range(len(KINDS) - 1):
        places = np.flatnonzero(found.kind == kind)
        places = places[np.argsort(-found.scores[places], kind="stable")][:_CROPS]
        boxes = ((found.image[p], kept["boxes"][found.image[p], found.row[p]]) for p in places)
        each.append([_with_truth(kept, shown, int(n), box) for n, box in boxes])
    boxes = kept["true_boxes"][found.missed[:, 0], found.missed[:, 1]]
    order = np.argsort(-areas(boxes), kind="stable")[:_CROPS]
    return [*each, [cropped(shown(int(found.missed[m, 0])), boxes[m], None) for m in order]]


def _with_truth(kept: Any, shown: Callable[[int], Any], n: int, box: np.ndarray) -> np.ndarray:
    """A detection, with the object that it overlaps most, if it does."""
    truth = kept["true_boxes"][n][kept["true_valid"][n]]
    common = common_areas(box[None], truth)
    best = int(np.argmax(common / np.maximum(areas(truth), 1))) if len(truth) else 0
    near = len(truth) and common[best] > 0
    return cropped(shown(n), truth[best] if near else None, box)


def confused(outcomes: Outcomes, shown: Callable[[int], Any], most: int, title: str = "") -> Figure:
    """The confusion matrix, and the pairs of classes that are confused most, with crops."""
    found = outcomes.pairs
    pairs, names = (
        most_confused(found.counts[:-1, :-1], most),
        (*outcomes.class_names, "background"),
    )
    crops = [_of_pair(outcomes, found, true, said, shown) for true, said, _ in pairs]
    below = (
        f"detections with a score of at least {100 * SHOWN:.0f} %; rows are the objects, columns "
        "the detections; background: missed, or found where nothing is"
    )
    return confusions(found.counts, names, pairs, crops, most, title, below)


def _of_pair(
    outcomes: Outcomes, found: Pairs, true: int, said: int, shown: Callable[[int], Any]
) -> list[np.ndarray]:
    """Crops of the surest detections that took a class for another."""
    kept = outcomes.values
    places = np.flatnonzero((found.true_class == true) & (found.class_ == said))
    scores = kept["scores"][found.image[places], found.found[places]]
    return [
        cropped(
            shown(int(found.image[p])),
            kept["true_boxes"][found.image[p], found.truth[p]],
            kept["boxes"][found.image[p], found.found[p]],
        )
        for p in places[np.argsort(-scores, kind="stable")][:_CROPS]
    ]
