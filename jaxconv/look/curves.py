"""Loss and accuracy against step: the lecture's "monitor and visualize the loss curve"."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

PANELS = (("loss", "loss (nats)"), ("top1", "accuracy"))


def loss_and_accuracy(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw the curves of one run or several.

    Args:
      runs: rows of metrics.jsonl by the run's name.

    Returns:
      A figure with two panels: training as a thin line, evaluation as a thick one, one colour a run.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, (metric, title) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for number, (name, rows) in enumerate(runs.items()):
            for part, width in (("train", 0.8), ("eval", 2.0)):
                points = [(row["step"], row[f"{part}/{metric}"]) for row in rows if f"{part}/{metric}" in row]
                if points:
                    steps, values = zip(*points, strict=True)
                    marker = "o" if part == "eval" and len(points) < 30 else ""
                    label = part if len(runs) == 1 else f"{name}, {part}"
                    panel.plot(steps, values, color=f"C{number}", linewidth=width, marker=marker, markersize=3, label=label)
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
        if panel.lines:
            for text in panel.legend(frameon=False).get_texts():
                text.set_parse_math(False)
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)), fontsize="medium", parse_math=False)
    return figure
