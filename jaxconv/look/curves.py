"""Curves of loss and accuracy by step, and by setting for a sweep.

The lecture: "monitor and visualize the loss curve".
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure as Drawn
from matplotlib.lines import Line2D

from jaxconv.config import default_config
from jaxconv.drawing.sheet import Picture
from jaxconv.tasks import Figure, Task, find_task

# A panel of curves: title, unit, and lines of (key in metrics.jsonl, label, look).
Panel = tuple[str, str, tuple[tuple[str, str, str], ...]]
# The panels of every run.
ENGINE: tuple[Panel, ...] = (
    ("Learning rate", "a step", (("learning_rate", "learning rate", "thin"),)),
    ("Gradient", "norm", (("train/grad_norm", "gradient norm", "thin"),)),
    ("Speed", "images/s", (("images_per_second", "images/s", "thin"),)),
)


def panels(task: type[Task] | None = None) -> tuple[Panel, ...]:
    """The panels of a task, by default the default task.

    They are the loss, the task's figures in their order, and those of every run.
    """
    task = task or find_task(default_config().task.name)
    figures = sorted((f for f in task.figures if f.panel), key=lambda f: f.key != "loss")
    return (*(_panel_of(figure, task) for figure in figures), *ENGINE)


def main_panels(task: type[Task] | None = None) -> tuple[Panel, ...]:
    """The panels drawn when there is room for two: the loss and the task's first figure."""
    task = task or find_task(default_config().task.name)
    first = task.figures[0]
    return (panels(task)[0], *(() if first.key == "loss" else (_panel_of(first, task),)))


def _panel_of(figure: Figure, task: type[Task]) -> Panel:
    trained = figure.key == "loss" or figure.key in task.training
    lines = ((f"train/{figure.key}", "train", "thin"),) if trained else ()
    lines += (
        (f"eval/{figure.key}", "eval", "thick"),
        (f"eval/ensemble_{figure.key}", "averaged", "dashed"),
    )
    return figure.panel, "share" if figure.share else figure.unit or "value", lines


_LOOKS = {"thin": {"linewidth": 0.8}, "thick": {"linewidth": 2.0}, "dashed": {"linestyle": "--"}}
# A longer legend would hide the curves.
_LEGEND = 10


def loss_and_accuracy(
    runs: Mapping[str, Sequence[Mapping[str, float]]], task: type[Task] | None = None
) -> Drawn:
    """Draw the curves of one or several runs.

    Args:
      runs: rows of metrics.jsonl by run name.
      task: the task of the runs, by default the default task.

    Returns:
      A figure with a panel for the loss and one for the task's first figure: training as a thin
      line, evaluation as a thick one, one colour per run. For an ensemble the lines are the means
      over its members, with a band from minimum to maximum; the averaged prediction is dashed.
    """
    figure = Picture(figsize=(10, 4), layout="constrained")
    main = main_panels(task)
    axes = figure.subplots(1, len(main), squeeze=False)[0]
    _draw(axes, runs, main)
    for panel in axes:
        if panel.lines:
            _as_text(panel.legend(frameon=False))
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)), fontsize="medium", parse_math=False)
    return figure


def sweep_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    key: str,
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    task: type[Task] | None = None,
) -> Drawn:
    """Draw the curves of all runs of a sweep, and their final values.

    Args:
      runs: rows of metrics.jsonl by run name.
      key: the numeric setting that the sweep varies; empty if there is none.
      series: final (value of the key, loss, first figure) of the runs, grouped by the other
        settings that differ except the seed.
      task: the task of the runs, by default the default task.

    Returns:
      The figure of `loss_and_accuracy`. With a key, two panels below show the final values against
      it, with a point per run and a line through the means.
    """
    rows, main = 2 if key else 1, main_panels(task)
    figure = Picture(figsize=(10, 4 * rows), layout="constrained")
    axes = figure.subplots(rows, len(main), squeeze=False)
    _draw(axes[0], runs, main)
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
        for panel, column, (title, unit, _) in zip(axes[1], (1, 2), main, strict=False):
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


def _draw(
    axes: Sequence[Any],
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    panels: Sequence[Panel],
) -> None:
    for panel, (title, unit, lines) in zip(axes, panels, strict=True):
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
    """Turn off math between dollar signs."""
    for text in legend.get_texts():
        text.set_parse_math(False)
