"""Sections of a run's page that need its weights: results, filters, feature maps, attribution."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxconv.data.interface import evenly
from jaxconv.data.wordnet import readable
from jaxconv.drawing.parts import Figures, LeftOutError, Table, Text, picture, share, short_number
from jaxconv.evaluation.evaluation import Evaluation
from jaxconv.inspect import zeiler
from jaxconv.inspect.attribution import integrated_gradients, occlusion
from jaxconv.inspect.inside import activations
from jaxconv.look import filters
from jaxconv.own import shown_name
from jaxconv.report.sections import RunReport
from jaxconv.tasks import Figure, Task
from jaxconv.train.ensemble import members_of

# The most images searched for patches.
_PATCHED = 500
# Feature maps shown of a layer, and the largest side in pixels of a small image.
_MAPS, _SMALL = 32, 64


def result(run: RunReport) -> list[Any]:
    """Metrics of the newest checkpoint with intervals; without a checkpoint, the logged ones."""
    try:
        found, count = run.evaluation, len(run.evaluation.outcomes)
    except LeftOutError as error:
        return [*_logged(run), Text(f"There are no intervals: {error}.")]
    task, total, where = found.task, run.data.get("eval_examples", count), found.split
    if run.overrides:
        total, where = len(run.looked.source()), f"{shown_name(found.data)}, split {found.split}"
    prefix = "ensemble_" if found.members else ""
    values = {
        name.removeprefix(prefix): value
        for name, value in found.result.items()
        if name.startswith(prefix)
    }
    values |= task.joint_figures(found.outcomes) | task.more_figures(found.outcomes)
    between = task.intervals(found.outcomes, 1000)
    rows, items = [("metric", "value", "from", "to")], []
    for figure in task.figures:
        if figure.key in values:
            value, ends = _shown(figure, values[figure.key]), between.get(figure.key, ())
            low, high = [_shown(figure, end) for end in ends] or ("-", "-")
            rows.append((", ".join(filter(None, (figure.words, figure.unit))), value, low, high))
            items.append((figure.words, value, f"{low} to {high} {figure.unit}" if ends else ""))
    items += _best(run, task, count, total)
    of_all = f"all {count:,}" if count == total else f"{count:,} (evenly spread) of {total:,}"
    caption = (
        f"Checkpoint of step {found.step:,} on {of_all} examples of {where}, with 95 % "
        f"intervals (exact for shares, by the bootstrap for the rest){task.caption(found.outcomes)}"
    )
    said = [Text(f"{text[0].upper()}{text[1:]}.") for text in task.remarks(values, between)]
    return [Figures(items), Table(caption, rows), *said, *_members(found, values)]


def _shown(figure: Figure, value: float) -> str:
    return share(value) if figure.share else short_number(value)


def _best(run: RunReport, task: Task, count: int, total: int) -> list[tuple[str, str, str]]:
    """The best value of the task's first metric during training, as an item of `Figures`."""
    figure = task.figures[0]
    logged = [
        (row[f"eval/{figure.key}"], row["step"]) for row in run.rows if f"eval/{figure.key}" in row
    ]
    if not logged:
        return []
    value, step = min(logged, key=lambda at: (-at[0] if figure.higher else at[0], at[1]))
    of_more = f", on all {total:,}" if count < total else ""
    return [
        (
            f"best {figure.title} during training",
            _shown(figure, value),
            f"at step {step:,}{of_more}",
        )
    ]


def _members(found: Evaluation, values: Mapping[str, float]) -> list[Table]:
    """Metrics of each network of an ensemble, and of their averaged prediction."""
    if not found.members:
        return []
    figures = [f for f in found.task.figures if f.key in ("loss", found.task.figures[0].key)]
    rows = [
        (member["name"], *(_shown(f, member[f.key]) for f in figures))
        for member in found.result["members"]
        if member["name"] in found.members
    ]
    together = ("averaged prediction", *(_shown(f, values[f.key]) for f in figures))
    header, last = ("network", *(f.title for f in figures)), frozenset({len(rows) + 1})
    return [Table("The networks of the ensemble", [header, *rows, together], marked=last)]


def _logged(run: RunReport) -> list[Any]:
    row, task = run.evaluated, run.task
    if not row:
        raise LeftOutError("the run has not been evaluated yet")
    shown = [
        (figure.words, _shown(figure, row[f"eval/{figure.key}"]), figure.unit)
        for figure in task.figures
        if f"eval/{figure.key}" in row
    ]
    return [Text(f"The newest evaluation, at step {row['step']:,}:"), Figures(shown)]


def first_filters(run: RunReport) -> list[Any]:
    """The filters of the first convolution."""
    looked = run.looked
    try:
        layer, kernel = filters.find_kernel(looked.model, looked.variables, looked.input_shape)
    except ValueError as error:
        raise LeftOutError(f"{error}") from error
    *window, channels, count = kernel.shape
    alt = (
        f"The {count} filters of {layer}, {'x'.join(map(str, window))} with {channels} channels; "
        f"weights from {kernel.min():.3g} "
        f"to {kernel.max():.3g}."
    )
    said = "What the first convolution looks for. Each filter is scaled separately."
    return [
        Text(said),
        *_of_member(run),
        picture(filters.filters(kernel, title=f"filters of {layer}"), alt),
    ]


def layers(run: RunReport) -> list[Any]:
    """Feature maps of an early, a middle and a late layer for two test examples, one folded."""
    found = run.evaluation.outcomes
    places = evenly(len(found), 4)[1:3] if len(found) > 3 else evenly(len(found), 1)
    values = _with_maps(run, places)
    said = (
        "Feature maps of an early, a middle and a late layer for two test examples. Each map is "
        "scaled separately: red above 0, blue below."
    )
    names, parts = list(values), [Text(said), *_of_member(run)]
    for n, (place, image) in enumerate(zip(places, run.images(places), strict=True)):
        name = run.caption(place)
        for layer in dict.fromkeys((names[0], names[len(names) // 2], names[-1])):
            value = values[layer][n]
            zero = share(float((value == 0).mean()))
            alt = (
                f"{layer}: {value.shape[-1]} feature maps of "
                f"{'x'.join(map(str, value.shape[:-1]))} for an example of {name}; values from "
                f"{value.min():.3g} to {value.max():.3g}, {zero} of them 0."
            )
            figure = filters.activation_maps(value, image, layer, title=name, most=_MAPS)
            parts.append(picture(figure, alt, f"{layer} for an example of {name}" if n else ""))
    return parts


def _with_maps(run: RunReport, places: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Outputs [N, ..., C] of the layers that have several positions, for some examples.

    Layers that change nothing, such as dropout, are left out.
    """
    looked, names = run.looked, []

    @jax.jit
    def look(variables: Any, x: jax.Array) -> list[jax.Array]:
        found = activations(looked.model, variables, x)
        names[:] = found
        return list(found.values())

    found = look(looked.variables, looked.inputs(np.stack(list(run.elements(places)))))
    values = dict(zip(names, (np.asarray(value, np.float32) for value in found), strict=True))
    several = {
        name: value
        for name, value in values.items()
        if value.ndim > 2 and max(value.shape[1:-1]) > 1
    }
    before = [None, *several.values()]
    kept = {
        name: value
        for (name, value), last in zip(several.items(), before, strict=False)
        if not np.array_equal(value, last)
    }
    if not kept:
        raise LeftOutError(f"no layer of {shown_name(run.config.model.name)} has feature maps")
    return kept


def patches(run: RunReport) -> list[Any]:
    """The patches that most excite a layer's feature maps, projected back (Zeiler and Fergus)."""
    looked, found = run.looked, run.evaluation.outcomes
    if looked.kind != "image":
        raise LeftOutError(f"patches need images; the examples are {looked.kind}s")
    places = evenly(len(found), _PATCHED)
    batches = (
        np.asarray(looked.inputs(np.stack(list(run.elements(chunk)))))
        for chunk in np.array_split(places, -(-len(places) // 100))
    )
    try:
        patch = zeiler.strongest_patches(looked.model, looked.variables, batches)
    except ValueError as error:
        raise LeftOutError(f"{error}") from error
    alt = (
        f"{patch.layer}: for {len(patch.maps)} of its feature maps, the {patch.values.shape[1]} "
        f"patches of {len(places):,} test images that "
        f"excite it most, with activations up to {patch.values.max():.3g}, and the part of each "
        "patch that causes it, by the deconvnet."
    )
    figure = zeiler.patches_figure(patch, looked.config.data.mean, looked.config.data.std)
    said = (
        "The patches that most excite feature maps of the last layer that sees at most half of an "
        "image, and the part of each patch that causes it (Zeiler and Fergus 2014, Figure 2)."
    )
    return [Text(said), *_of_member(run), picture(figure, alt)]


def attribution(run: RunReport) -> list[Any]:
    """Which values of a few test examples speak for the class that the network predicts."""
    looked, found = run.looked, run.evaluation.outcomes
    if not hasattr(found, "predicted"):
        raise LeftOutError("attribution explains the one class that is predicted for an example")
    text = looked.kind == "text"
    hidden = "a gap of some letters" if text else "a grey square"
    parts = [
        Text(
            "Red values speak for the predicted class, blue values against it. Occlusion shows the "
            f"probability that {hidden} takes away."
        ),
        *_of_member(run),
    ]
    sizes = looked.input_shape[:-1]
    small = text or looked.kind == "image" and max(sizes) <= _SMALL
    # Large inputs take longer: one example, and fewer positions of the occluder.
    strides = (
        tuple(max(1, size // (128 if text else 8)) for size in sizes) if text or not small else 0
    )
    places = evenly(len(found), 5)[1:4] if small and len(found) > 4 else evenly(len(found), 1)
    for place, element in zip(places, run.elements(places), strict=True):
        x, said = looked.inputs(element[None]), found.predicted[place : place + 1]
        shares = np.asarray(
            integrated_gradients(looked.model, looked.variables, x, said, looked.nothing, steps=16)[
                0
            ]
        )
        lost = np.asarray(
            occlusion(looked.model, looked.variables, x, said, stride=strides, **looked.hiding)[0]
        )
        maps = {
            "integrated gradients\nshares of the logit": shares,
            f"occlusion\nprobability lost under {hidden}": lost,
        }
        name, probability = (
            readable(found.class_names[said[0]]),
            share(float(found.confidence[place])),
        )
        true, most = readable(found.class_names[found.labels[place]]), share(float(lost.max()))
        alt = (
            f"An example of {true}, and the values that speak for {name} ({probability}): by "
            "integrated gradients, and by occlusion, "
            f"where {hidden} takes up to {most} of the probability."
        )
        wrong = "" if true == name else f" (it is {true})"
        parts.append(picture(looked.explained(element, maps, f"{name}, {probability}{wrong}"), alt))
    return parts


def _of_member(run: RunReport) -> list[Any]:
    members = members_of(run.config)
    return [Text(f"This is the ensemble's first network, {members.names[0]}.")] if members else []
