"""The lecture's story of depth as charts.

There are two: ILSVRC's winners by year, and error against year, depth, weights and multiply-adds.
Published errors come from the registry, those of your own runs from their workdirs. Errors on
different datasets never share a panel, and each title names the dataset. Depth, weights and
multiply-adds are counted in the program of each network.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxconv.errors import UserError
from jaxconv.files import expand
from jaxconv.inspect.depth import weighted_depth
from jaxconv.models import MODELS, create_model, model_info, usual_task
from jaxconv.own import shown_name
from jaxconv.program import call_arguments, own_parameters, trace
from jaxconv.tasks import open_task
from jaxconv.train.workdir import opened_config, read_metrics, saved_config, saved_data

# ILSVRC classification: year, team, the network in the registry whose depth is counted, and top-5
# error in % on the test images (Russakovsky et al. 2015, arXiv:1409.0575; He et al. 2015,
# arXiv:1512.03385), as in the lecture's "Revolution of Depth". From 2012 on the errors are those of
# ensembles. VGG came second.
WINNERS = (
    (2010, "NEC-UIUC", "", 28.2),
    (2011, "XRCE", "", 25.8),
    (2012, "AlexNet", "alexnet_2012", 16.4),
    (2013, "Clarifai (ZFNet)", "zfnet", 11.7),
    (2014, "VGG", "vgg19", 7.3),
    (2014, "GoogLeNet", "googlenet", 6.7),
    (2015, "ResNet", "resnet152_v1", 3.57),
)
# The networks in the lecture.
LECTURE = (
    "alexnet_2012",
    "zfnet",
    "vgg11",
    "vgg16",
    "vgg19",
    "googlenet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
)
PANELS = (
    ("year", "year"),
    ("depth", "layers with weights"),
    ("weights", "parameters"),
    ("multiply_adds", "multiply-adds per image"),
)
_MARKERS = "osD^vPX*"


@dataclasses.dataclass(frozen=True)
class StoryPoint:
    """One network in the story.

    Attributes:
      name: the network or the run.
      data: what the errors were measured on: the dataset up to the first comma, then the protocol.
      errors: (top-1, top-5) in %; None if unknown.
      year: the year the network was published; 0 if unknown.
      depth: layers with weights on the longest path, see `depth.weighted_depth`.
      weights, multiply_adds: number of parameters, and of multiply-adds per image.
      own: whether the errors are from your own run.
    """

    name: str
    data: str
    errors: tuple[float | None, float | None]
    year: int
    depth: int
    weights: int
    multiply_adds: int
    own: bool = False


def counted(module: nn.Module, input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Depth, parameters, and multiply-adds per image of any Linen module.

    Layers that are called only in training are not counted. No arrays are allocated.
    """
    x, call = (
        jax.ShapeDtypeStruct((1, *input_shape), jnp.float32),
        call_arguments(module, False, {}),
    )
    variables = jax.eval_shape(lambda key, x: module.init(key, x, **call), jax.random.key(0), x)
    events = trace(module, variables, x, **call).events
    called = {event.call.path for event in events if event.kind == "end"}
    parameters = sum(
        leaf.size for path in called for leaf in own_parameters(variables, path).values()
    )
    return (
        weighted_depth(module, input_shape),
        parameters,
        sum(event.multiply_adds for event in events if event.kind == "op"),
    )


def published(name: str) -> StoryPoint:
    """A network of the registry with its published errors.

    Raises:
      ValueError: the network does not exist, or the registry has no errors for it.
    """
    info, (shape, classes) = model_info(name), usual_task(name)
    if info.errors is None:
        raise ValueError(f"the registry has no published error of {name}")
    top1, top5, *_ = *info.errors, None
    return StoryPoint(
        name, info.data, (top1, top5), info.year, *counted(create_model(name, classes), shape)
    )


def of_run(workdir: str) -> StoryPoint:
    """A run with the error of its last evaluation in metrics.jsonl.

    For an ensemble this is the mean over its members.

    Raises:
      UserError: the folder holds no run, or the run does not classify or has not been evaluated.
    """
    folder = expand(workdir)
    config, data = saved_config(folder), saved_data(folder)
    rows = [row for row in read_metrics(folder) if "eval/top1" in row]
    if not data["class_names"]:
        raise UserError(
            f"--workdir={workdir}: the run does not classify; the story compares top-1 and top-5 "
            "errors"
        )
    if not rows:
        raise UserError(f"--workdir={workdir}: the run has not been evaluated yet", exit_code=1)
    name, last = shown_name(config.model.name), rows[-1]
    top5 = 100 - 100 * last["eval/top5"] if "eval/top5" in last else None
    year = MODELS[name].year if name in MODELS else 0
    measured = f"{shown_name(config.data.source)}, split {config.data.eval_split}, own run"
    model = open_task(opened_config(folder), data).model()
    facts = counted(model, data["image_shape"])
    return StoryPoint(
        f"{folder.name} ({name})",
        measured,
        (100 - 100 * last["eval/top1"], top5),
        year,
        *facts,
        own=True,
    )


def story(points: Sequence[StoryPoint]) -> Figure:
    """Error against year, depth, parameters and multiply-adds: a row of panels per dataset.

    The error is top-5, as in ILSVRC, if it is known for at least as many networks as top-1. The
    title names networks whose error is unknown. Your own runs have hollow markers.
    """
    sets = {point.data.partition(",")[0]: None for point in points}
    figure = Figure(figsize=(15, 0.3 + 4.4 * len(sets)), layout="constrained", facecolor="white")
    parts = figure.subfigures(len(sets), 1, squeeze=False, hspace=0.04)[:, 0]
    to_label = []
    for part, name in zip(parts, sets, strict=True):
        to_label += _draw_set(
            part, name, [point for point in points if point.data.partition(",")[0] == name]
        )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep the axes fixed, so that labels still fit
    for axis, labels in to_label:
        place_labels(axis, labels)
    return figure


def _draw_set(
    part: Any, name: str, points: Sequence[StoryPoint]
) -> list[tuple[Any, list[tuple[float, float, str]]]]:
    """Draw the four panels of one dataset; return the labels to place in each."""
    known = [sum(point.errors[metric] is not None for point in points) for metric in (0, 1)]
    metric = int(known[1] >= known[0])
    shown = [point for point in points if point.errors[metric] is not None]
    errors = {id(point): point.errors[metric] or 0.0 for point in shown}
    lacking = ", ".join(point.name for point in points if point.errors[metric] is None)
    note = f" (unknown for {lacking})" if lacking else ""
    part.suptitle(
        f"{name}: top-{(1, 5)[metric]} error in %{note}",
        fontsize=11,
        weight="bold",
        x=0.01,
        ha="left",
        parse_math=False,
    )
    ways = list(dict.fromkeys(point.data for point in points))
    to_label = []
    for number, (axis, (column, title)) in enumerate(zip(part.subplots(1, 4), PANELS, strict=True)):
        there = [point for point in shown if getattr(point, column)]
        for way, marker in zip(ways, _MARKERS * len(ways), strict=False):
            of_way = [point for point in there if point.data == way]
            own = any(point.own for point in of_way)
            label = (way.partition(", ")[2] or "as published") if not number else ""
            face = {"facecolors": "none"} if own else {}
            color = "#cf222e" if own else f"C{ways.index(way) % 10}"
            axis.scatter(
                [getattr(point, column) for point in of_way],
                [errors[id(point)] for point in of_way],
                marker=marker,
                s=34,
                edgecolors=color,
                color=None if own else color,
                label=label or None,
                zorder=3,
                **face,
            )
        axis.margins(0.14)
        _scale(
            axis,
            column,
            [getattr(point, column) for point in there],
            list(errors.values()),
        )
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.25)
        to_label.append(
            (axis, [(getattr(point, column), errors[id(point)], point.name) for point in there])
        )
    legend = part.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return to_label


def _scale(axis: Any, column: str, values: Sequence[float], errors: Sequence[float]) -> None:
    """Scale the axes: errors from 0, years as integers, others logarithmic if the range is wide."""
    axis.tick_params(labelsize=8)
    axis.set_ylim(0, 1.15 * max(errors, default=0) or 1)
    if not values:
        return
    low, high = min(values), max(values)
    if column == "year":
        axis.set_xlim(low - 0.8, high + 0.8)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        return
    if high < 1.5 * low:
        axis.set(xlim=(low / 1.6, high * 1.6), xticks=sorted({low, high}))
    elif high >= 4 * low:
        axis.set_xscale("log")
        axis.minorticks_off()
        ticks = [f * 10.0**n for n in range(13) for f in (1, 2, 5)]
        axis.set_xlim(low / 1.7, high * 1.7)
        axis.set_xticks([tick for tick in ticks if low / 1.7 <= tick <= high * 1.7])
    axis.xaxis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    """The value with three digits, and k, M or G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


# Candidate offsets of a label from its point, in points; nearest first.
_WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))
_SPOTS = [(reach * dx, reach * dy) for reach in (7, 14, 23, 34, 48, 64) for dx, dy in _WAYS]


def place_labels(axis: Any, labels: Sequence[tuple[float, float, str]], size: float = 7.0) -> None:
    """Label each point (x, y, text) so that no label overlaps a point, a label or the frame.

    A label far from its point gets a line to it; a label without room is omitted. The axes must
    have their final position and limits.
    """
    figure = axis.get_figure(root=True)
    scale = figure.dpi / 72
    frame = axis.get_window_extent()
    at = [axis.transData.transform((x, y)) for x, y, _ in labels]
    taken = [(px - 4 * scale, py - 4 * scale, px + 4 * scale, py + 4 * scale) for px, py in at]
    for x, y, text in sorted(labels, key=lambda label: -label[1]):
        written = axis.annotate(
            text,
            (x, y),
            (0, 0),
            textcoords="offset points",
            fontsize=size,
            parse_math=False,
            color="#333333",
        )
        for dx, dy in _SPOTS:
            written.set_position((dx, dy))
            written.set(
                ha="left" if dx > 0 else "right" if dx < 0 else "center",
                va="bottom" if dy > 0 else "top" if dy < 0 else "center",
            )
            box = written.get_window_extent().padded(1.5 * scale)
            inside = (
                box.x0 >= frame.x0
                and box.x1 <= frame.x1
                and box.y0 >= frame.y0
                and box.y1 <= frame.y1
            )
            if inside and not any(
                box.x0 < right and left < box.x1 and box.y0 < top and low < box.y1
                for left, low, right, top in taken
            ):
                taken.append((box.x0, box.y0, box.x1, box.y1))
                break
        else:
            written.remove()
            continue
        if max(abs(dx), abs(dy)) > 14:
            axis.annotate(
                "",
                (x, y),
                (dx, dy),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "lw": 0.5},
            )


def winners() -> Figure:
    """A bar chart of the top-5 error and counted depth of ILSVRC's winners by year."""
    figure = Figure(figsize=(9, 4.4), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for place, (_, _, name, error) in enumerate(WINNERS):
        depth = counted_depth(name) if name else 0
        axis.bar(place, error, 0.62, color="#2166ac" if depth else "#b8bec5")
        over = f"{depth} layers" if depth else "shallow"
        axis.text(place, error + 0.5, over, ha="center", va="bottom", fontsize=9, weight="bold")
        axis.text(
            place, error / 2, f"{error:g}", ha="center", va="center", color="white", fontsize=10
        )
    axis.set_xticks(
        range(len(WINNERS)), [f"{team}\n{year}" for year, team, _, _ in WINNERS], fontsize=9
    )
    axis.set_title(
        "ILSVRC classification: top-5 error in % on the test images, as submitted",
        fontsize=11,
        weight="bold",
        loc="left",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylim(0, 32)
    return figure


@functools.cache
def counted_depth(name: str) -> int:
    """The depth of a network of the registry, for the task it was published for."""
    shape, classes = usual_task(name)
    return weighted_depth(create_model(name, classes), shape)
