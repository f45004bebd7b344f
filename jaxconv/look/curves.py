"""Loss and accuracy against step: the lecture's "monitor and visualize the loss curve"; of a sweep,
against what was tried too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# What of metrics.jsonl is worth a curve, by panel: its title, its unit, and the lines, (key, label,
# look).
PANELS = (
    (
        "Loss",
        "nats",
        (
            ("train/loss", "train", "thin"),
            ("eval/loss", "eval", "thick"),
            ("eval/ensemble_loss", "averaged", "dashed"),
        ),
    ),
    (
        "Accuracy",
        "share",
        (
            ("train/top1", "train", "thin"),
            ("eval/top1", "eval", "thick"),
            ("eval/ensemble_top1", "averaged", "dashed"),
        ),
    ),
    (
        "Top-5 accuracy",
        "share",
        (("eval/top5", "eval", "thick"), ("eval/ensemble_top5", "averaged", "dashed")),
    ),
    ("Learning rate", "a step", (("learning_rate", "learning rate", "thin"),)),
    ("Gradient", "norm", (("train/grad_norm", "gradient norm", "thin"),)),
    ("Speed", "images/s", (("images_per_second", "images/s", "thin"),)),
)
# Those that are drawn where there is room for two: loss and accuracy.
MAIN = PANELS[:2]
_LOOKS = {"thin": {"linewidth": 0.8}, "thick": {"linewidth": 2.0}, "dashed": {"linestyle": "--"}}
# A longer legend would hide the curves.
_LEGEND = 10


def loss_and_accuracy(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw the curves of one run or several.

    Args:
      runs: rows of metrics.jsonl by the run's name.

    Returns:
      A figure with two panels: training as a thin line, evaluation as a thick one, one colour a
      run. Of an ensemble the lines are the means over its members, with a band from the least to
      the greatest, and the averaged prediction is dashed.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    _draw(panels, runs)
    for panel in panels:
        if panel.lines:
            _as_text(panel.legend(frameon=False))
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)), fontsize="medium", parse_math=False)
    return figure


def sweep_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    key: str,
    series: Mapping[str, Sequence[tuple[float, float, float]]],
) -> Figure:
    """Draw the curves of all runs of a sweep, and what they ended with.

    Args:
      runs: rows of metrics.jsonl by the run's name.
      key: that the sweep is over, a number; empty where there is none.
      series: final (value of the key, loss, accuracy) of runs, by what else differs, the seed
        apart.

    Returns:
      A figure as `loss_and_accuracy` has it, and with a key two panels below: each run a point, and
      a line through the means.
    """
    rows = 2 if key else 1
    figure = Figure(figsize=(10, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False)
    _draw(panels[0], runs)
    if len(runs) <= _LEGEND:
        colours = [
            Line2D([], [], color=f"C{number}", label=name) for number, name in enumerate(runs)
        ]
        _as_text(
            figure.legend(
                handles=colours,
                loc="outside lower center",
                ncols=2,
                frameon=False,
                fontsize="small",
            )
        )
    if key:
        for panel, column, (title, unit, _) in zip(panels[1], (1, 2), MAIN, strict=True):
            _draw_against(
                panel,
                {
                    name: [(point[0], point[column]) for point in points]
                    for name, points in series.items()
                },
            )
            panel.set(title=f"final {title.lower()} ({unit})")
            panel.set_xlabel(key, parse_math=False)
    return figure


def _draw(panels: Sequence[Any], runs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    for panel, (title, unit, lines) in zip(panels, MAIN, strict=True):
        for number, (name, rows) in enumerate(runs.items()):
            look = {"color": f"C{number % 10}", "markersize": 3}
            before = "" if len(runs) == 1 else f"{name}, "
            for key, label, kind in lines:
                _band(panel, rows, key, look["color"])
                _line(panel, rows, key, label=before + label, **_LOOKS[kind], **look)
        panel.set(title=f"{title.lower()} ({unit})", xlabel="step")
        panel.grid(alpha=0.3)


def _line(panel: Any, rows: Sequence[Mapping[str, float]], key: str, **look: Any) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        marker = "o" if key.startswith("eval") and len(points) < 30 else ""
        panel.plot(*zip(*points, strict=True), marker=marker, **look)


def _band(panel: Any, rows: Sequence[Mapping[str, float]], key: str, color: str) -> None:
    found = [
        (row["step"], [row[name] for name in row if name.startswith(key + "/")]) for row in rows
    ]
    spread = [(step, min(values), max(values)) for step, values in found if values]
    if spread:
        panel.fill_between(*zip(*spread, strict=True), color=color, alpha=0.15, linewidth=0)


def _draw_against(panel: Any, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for number, (name, points) in enumerate(series.items()):
        values = sorted({x for x, _ in points})
        means = [
            sum(ys) / len(ys) for ys in ([y for x, y in points if x == value] for value in values)
        ]
        panel.plot(values, means, color=f"C{number % 10}", linewidth=1, label=name or None)
        panel.plot(*zip(*points, strict=True), "o", color=f"C{number % 10}", markersize=4)
    xs = [x for points in series.values() for x, _ in points]
    if xs and min(xs) > 0 and max(xs) >= 10 * min(xs):
        panel.set_xscale("log")
    panel.grid(alpha=0.3)
    if xs and all(series) and len(series) <= _LEGEND:
        _as_text(panel.legend(frameon=False, fontsize="small"))


def _as_text(legend: Any) -> None:
    """No mathematics between dollar signs."""
    for text in legend.get_texts():
        text.set_parse_math(False)
