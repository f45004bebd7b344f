"""Loss and accuracy against step: the lecture's "monitor and visualize the loss curve"."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

PANELS = (("loss", "loss (nats)"), ("top1", "accuracy"))


def loss_and_accuracy(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw the curves of one run or several.

    Args:
      runs: rows of metrics.jsonl by the run's name.

    Returns:
      A figure with two panels: training as a thin line, evaluation as a thick one, one colour a run. Of an ensemble the lines are the means
      over its members, with a band from the least to the greatest, and the averaged prediction is dashed.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, (metric, title) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for number, (name, rows) in enumerate(runs.items()):
            look = {"color": f"C{number}", "markersize": 3}
            before = "" if len(runs) == 1 else f"{name}, "
            for key, label, width in ((f"train/{metric}", "train", 0.8), (f"eval/{metric}", "eval", 2.0)):
                _band(panel, rows, key, look["color"])
                _line(panel, rows, key, label=before + label, linewidth=width, **look)
            _line(panel, rows, f"eval/ensemble_{metric}", label=f"{before}eval, averaged prediction", linestyle="--", **look)
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
        if panel.lines:
            for text in panel.legend(frameon=False).get_texts():
                text.set_parse_math(False)
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)), fontsize="medium", parse_math=False)
    return figure


def _line(panel: Any, rows: Sequence[Mapping[str, float]], key: str, **look: Any) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        marker = "o" if key.startswith("eval") and len(points) < 30 else ""
        panel.plot(*zip(*points, strict=True), marker=marker, **look)


def _band(panel: Any, rows: Sequence[Mapping[str, float]], key: str, color: str) -> None:
    found = [(row["step"], [row[name] for name in row if name.startswith(key + "/")]) for row in rows]
    spread = [(step, min(values), max(values)) for step, values in found if values]
    if spread:
        panel.fill_between(*zip(*spread, strict=True), color=color, alpha=0.15, linewidth=0)
