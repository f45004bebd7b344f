"""Pictures of a network's predictions: the reliability diagram, and the accuracy of each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxconv.drawing.samples import short_name
from jaxconv.tasks.classification.outcomes import Calibration, PerClass

# The most classes that are drawn: of more, the worst and the best half of this number.
_MOST = 40


def reliability(calibration: Calibration, title: str = "") -> Figure:
    """Draw accuracy against confidence, and the number of predictions in each bin.

    See Guo et al. 2017, arXiv:1706.04599, Figure 1.

    Args:
      calibration: see `outcomes.calibration`.
      title: above the diagram.
    """
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    edges, filled = calibration.edges, calibration.examples > 0
    left, width = edges[:-1][filled], np.diff(edges)[filled]
    accuracy, confidence = calibration.accuracy[filled], calibration.confidence[filled]
    above.plot(
        (0, 1), (0, 1), color="0.5", linestyle="--", linewidth=1, zorder=3, label="as sure as right"
    )
    above.bar(
        left,
        accuracy,
        width,
        align="edge",
        color="#8fbbdd",
        edgecolor="white",
        label="share that is right",
    )
    # From the bar to the diagonal, at the bin's mean confidence.
    low, high = np.minimum(accuracy, confidence), np.maximum(accuracy, confidence)
    above.bar(
        left,
        high - low,
        width,
        low,
        align="edge",
        color="#d6272855",
        edgecolor="C3",
        hatch="//",
        label="gap to the mean confidence",
    )
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.set_title(title or "reliability", fontsize="medium", parse_math=False)
    above.text(
        0.97,
        0.03,
        f"ECE {100 * calibration.ece:.2f} %",
        ha="right",
        va="bottom",
        transform=above.transAxes,
        bbox=_box(),
    )
    below.bar(
        edges[:-1],
        calibration.examples,
        np.diff(edges),
        align="edge",
        color="0.6",
        edgecolor="white",
    )
    below.set(ylabel="examples", xlabel="confidence: probability of the prediction")
    for panel in (above, below):
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def _box() -> dict[str, object]:
    return {"facecolor": "white", "edgecolor": "0.8", "boxstyle": "round"}


def accuracy_of_classes(found: PerClass, class_names: Sequence[str], title: str = "") -> Figure:
    """Draw the accuracy of each class as a bar, the worst on top.

    Of more than 40 classes that have examples, only the 20 worst and the 20 best are drawn.

    Args:
      found: see `outcomes.per_class`.
      class_names: K names.
      title: above the bars.
    """
    ranked = found.ranked()
    cut = len(ranked) > _MOST
    shown = np.concatenate([ranked[: _MOST // 2], ranked[-_MOST // 2 :]]) if cut else ranked
    places = np.arange(len(shown)) + (np.arange(len(shown)) >= _MOST // 2) * cut
    figure = Figure(figsize=(7, 1.1 + 0.24 * (len(shown) + cut)), layout="constrained")
    panel = figure.subplots()
    accuracy = 100 * found.accuracy[shown]
    panel.barh(places, accuracy, color="C0", height=0.75)
    for place, value, k in zip(places, accuracy, shown, strict=True):
        inside = value > 30
        text, color = f"{value:.1f} % of {found.examples[k]:,}", "white" if inside else "black"
        panel.text(
            1 if inside else value + 1, place, text, va="center", fontsize="small", color=color
        )
    overall = 100 * found.right.sum() / found.examples.sum()
    panel.axvline(overall, color="C3", linewidth=1)
    panel.text(
        overall,
        -0.8,
        f"all {overall:.1f} %",
        color="C3",
        ha="center",
        va="bottom",
        fontsize="small",
    )
    if cut:
        panel.text(
            50,
            _MOST // 2,
            f"{len(ranked) - _MOST:,} classes between",
            ha="center",
            va="center",
            fontsize="small",
            style="italic",
        )
    panel.set_yticks(
        places,
        [short_name(class_names[int(k)], 28) for k in shown],
        fontsize="small",
        parse_math=False,
    )
    panel.set(xlim=(0, 100), ylim=(places[-1] + 0.6, -0.6), xlabel="accuracy, %")
    if title:
        panel.set_title(title, fontsize="medium", pad=18, parse_math=False)
    panel.grid(alpha=0.3, axis="x")
    panel.set_axisbelow(True)
    return figure
