"""The sections of a run's page that need its weights: what it says of the test set, where it is
wrong, and what its layers hold.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxconv.data.interface import evenly
from jaxconv.data.wordnet import readable
from jaxconv.drawing.parts import Figures, Table, Text, picture, share, short_number
from jaxconv.inspect import zeiler
from jaxconv.inspect.attribution import integrated_gradients, occlusion
from jaxconv.inspect.inside import activations
from jaxconv.look import filters
from jaxconv.report.sections import LeftOutError, RunReport
from jaxconv.tasks.classification import examples, intervals, outcomes
from jaxconv.tasks.classification.accuracy import accuracy_of_classes, reliability
from jaxconv.train.ensemble import members_of

# Examples, mistakes, pairs of classes, classes, and images that patches are looked for in: so many
# at most.
_SHOWN, _WORST, _PAIRS, _CLASSES, _PATCHED = 16, 12, 10, 1_000, 500
# Feature maps of a layer, and pixels up to which an image is small.
_MAPS, _SMALL = 32, 64
# What stands for each figure of `outcomes.figures`: its name, its unit, how it is shown.
_FIGURES = {
    "top1": ("top-1", "", share),
    "top5": ("top-5", "", share),
    "loss": ("loss", "nats", short_number),
    "ece": ("calibration error (ECE)", "", share),
    "height": ("height of a mistake in WordNet", "", short_number),
}


def result(run: RunReport) -> list[Any]:
    """The figures of the newest checkpoint, with intervals; without one, what was logged."""
    try:
        found, count = run.evaluation, len(run.evaluation.outcomes)
    except LeftOutError as error:
        return [*_logged(run), Text(f"There are no intervals: {error}.")]
    total = run.data.get("eval_examples", count)
    of_all = f"all {count:,}" if count == total else f"{count:,} of {total:,}, evenly spread,"
    figures, between = outcomes.figures(found.outcomes), intervals.intervals(found.outcomes)
    rows, items = [("figure", "value", "from", "to")], []
    for key, (name, unit, show) in _FIGURES.items():
        if key in figures:
            low, high = map(show, between[key])
            rows.append((f"{name}, {unit}" if unit else name, show(figures[key]), low, high))
            items.append((name, show(figures[key]), f"{low} to {high} {unit}"))
    of_more = f", on all {total:,}" if count < total else ""
    best = max(
        ((row["eval/top1"], -row["step"]) for row in run.rows if "eval/top1" in row), default=None
    )
    items += (
        [("best top-1 while training", share(best[0]), f"at step {-best[1]:,}{of_more}")]
        if best
        else []
    )
    wrong = int((~outcomes.within(found.outcomes, 1)).sum())
    caption = (
        f"Checkpoint of step {found.step:,} on {of_all} examples of {found.split}, with 95 % "
        f"intervals (bootstrap): {wrong:,} are wrong"
    )
    remarks = [
        Text(f"{text[0].upper()}{text[1:]}.") for text in intervals.on_intervals(figures, between)
    ]
    members = [
        (name, share(float(outcomes.within(one, 1).mean())), short_number(float(one.losses.mean())))
        for name, one in found.members.items()
    ]
    if members:
        header, together = (
            ("network", "top-1", "loss"),
            ("averaged prediction", share(figures["top1"]), short_number(figures["loss"])),
        )
        last = frozenset({len(members) + 1})
        return [
            Figures(items),
            Table(caption, rows),
            *remarks,
            Table("The networks of the ensemble", [header, *members, together], marked=last),
        ]
    return [Figures(items), Table(caption, rows), *remarks]


def _logged(run: RunReport) -> list[Any]:
    row = run.evaluated
    if not row:
        raise LeftOutError("the run was not evaluated yet")
    shown = [
        (name, show(row[f"eval/{key}"]), unit)
        for key, (name, unit, show) in _FIGURES.items()
        if f"eval/{key}" in row
    ]
    return [Text(f"The newest evaluation, of step {row['step']:,}:"), Figures(shown)]


def predictions(run: RunReport) -> list[Any]:
    """Some examples with their most probable classes."""
    found = run.evaluation.outcomes
    places = evenly(len(found), _SHOWN)
    right = int(outcomes.within(found, 1)[places].sum())
    figure = examples.predictions(
        _images(run, places), found.labels[places], found.probabilities[places], found.class_names
    )
    alt = (
        f"{len(places)} test examples, each with its three most probable classes as bars; {right} "
        f"of the {len(places)} are right."
    )
    return [
        Text(
            "Examples evenly spread over the test set: right is green with a tick, wrong is red "
            "with a cross."
        ),
        picture(figure, f"{alt} The table below has them one by one."),
        _table(run, "The same examples in numbers", places),
    ]


def mistakes(run: RunReport) -> list[Any]:
    """The mistakes with the highest losses, the most confused classes, and the accuracy of each."""
    found = run.evaluation.outcomes
    places = outcomes.worst(found, _WORST)
    wrong = int((~outcomes.within(found, 1)).sum())
    if not wrong:
        raise LeftOutError(f"there is none: all {len(found):,} examples are right")
    names = [
        run.evaluation.source.name(int(found.index[place])).rpartition("/")[2] for place in places
    ]
    below = f"{wrong:,} of {len(found):,} are wrong ({share(wrong / len(found))})"
    figure = examples.mistakes(_images(run, places), found, places, names, below=below)
    high, low = found.losses[places[0]], found.losses[places[-1]]
    alt = (
        f"The {len(places)} mistakes with the highest losses, from {high:.2f} down to {low:.2f} "
        "nats."
    )
    parts = [
        picture(figure, f"{alt} {below}. The table below has them one by one."),
        _table(run, "These mistakes in numbers", places),
    ]
    return [*parts, *_confused(run), *_classes(run)]


def _confused(run: RunReport) -> list[Any]:
    found = run.evaluation.outcomes
    counts = outcomes.confusion(found)
    pairs = outcomes.most_confused(counts, _PAIRS)
    each = outcomes.confused_examples(found, pairs)
    figure = examples.confusions(
        counts, found.class_names, [_images(run, places) for places in each], _PAIRS
    )
    said = "; ".join(
        f"{readable(found.class_names[a])} taken for {readable(found.class_names[b])} {n} times"
        for a, b, n in pairs[:3]
    )
    rows = [
        (
            readable(found.class_names[a]),
            readable(found.class_names[b]),
            f"{n:,}",
            share(n / max(1, counts[a].sum())),
        )
        for a, b, n in pairs
    ]
    header = ("is", "taken for", "times", "of the class")
    alt = (
        f"The matrix of confusion of {len(found.class_names)} classes, and the most confused "
        f"pairs: {said}."
    )
    return [
        picture(figure, alt),
        Table("The most confused pairs", [header, *rows], texts=2, folded=True),
    ]


def _classes(run: RunReport) -> list[Any]:
    found = run.evaluation.outcomes
    each, names = outcomes.per_class(found), found.class_names
    ranked = each.ranked()
    worst, best = ranked[0], ranked[-1]
    alt = (
        f"The accuracy of each class as a bar, from {share(each.accuracy[worst])} "
        f"({readable(names[worst])}) "
        f"to {share(each.accuracy[best])} ({readable(names[best])})."
    )
    rows = [
        (
            readable(names[k]),
            f"{each.examples[k]:,}",
            share(each.accuracy[k]),
            "-" if not each.predicted[k] else share(each.precision[k]),
        )
        for k in ranked[:_CLASSES]
    ]
    header = ("class", "examples", "accuracy", "precision")
    return [
        picture(accuracy_of_classes(each, names), alt),
        Table("Every class, the worst first", [header, *rows], folded=True, sortable=True),
    ]


def calibration(run: RunReport) -> list[Any]:
    """Whether probabilities mean what they say."""
    found = outcomes.calibration(run.evaluation.outcomes)
    bins = [
        (f"{low:.2f} to {high:.2f}", f"{count:,}", *map(share, pair))
        for low, high, count, *pair in zip(
            found.edges,
            found.edges[1:],
            found.examples,
            found.confidence,
            found.accuracy,
            strict=False,
        )
        if count
    ]
    gaps = np.where(found.examples, found.accuracy - found.confidence, 0.0)
    side = "more sure than right" if float(gaps @ found.examples) < 0 else "more right than sure"
    alt = (
        f"Reliability diagram, {len(bins)} bins: expected calibration error {share(found.ece)}; on "
        f"the whole the network is {side}."
    )
    header = ("probability", "examples", "mean probability", "accuracy")
    said = (
        "Of the predictions with a probability of 80 %, four out of five should be right: then "
        "bars end on the dashed line."
    )
    return [
        Text(said),
        picture(reliability(found), alt),
        Table("The reliability diagram in numbers", [header, *bins], folded=True),
    ]


def first_filters(run: RunReport) -> list[Any]:
    """The filters of the first convolution."""
    looked = run.looked
    try:
        layer, kernel = filters.find_kernel(looked.model, looked.variables, looked.input_shape)
    except ValueError as error:
        raise LeftOutError(f"{error}") from error
    *window, channels, count = kernel.shape
    alt = (
        f"The {count} filters of {layer}, of {'x'.join(map(str, window))} and {channels} channels; "
        f"weights from {kernel.min():.3g} "
        f"to {kernel.max():.3g}."
    )
    said = "What the first convolution looks for, each filter on a scale of its own."
    return [
        Text(said),
        *_of_member(run),
        picture(filters.filters(kernel, title=f"filters of {layer}"), alt),
    ]


def layers(run: RunReport) -> list[Any]:
    """What an early, a middle and a late layer make of two test examples, the second of them
    folded.
    """
    found = run.evaluation.outcomes
    places = evenly(len(found), 4)[1:3] if len(found) > 3 else evenly(len(found), 1)
    values = _with_maps(run, places)
    said = (
        "What an early, a middle and a late layer make of two test examples: each map on a scale "
        "of its own, red above 0, blue below."
    )
    names, parts = list(values), [Text(said), *_of_member(run)]
    for n, (place, image) in enumerate(zip(places, _images(run, places), strict=True)):
        name = readable(found.class_names[found.labels[place]])
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


def _with_maps(run: RunReport, places: Sequence[int]) -> dict[str, np.ndarray]:
    """What some examples become in the layers that have several positions, but for those that
    change nothing, as dropout.
    """
    looked, names = run.looked, []

    @jax.jit
    def look(variables: Any, x: jax.Array) -> list[jax.Array]:
        found = activations(looked.model, variables, x)
        names[:] = found
        return list(found.values())

    found = look(looked.variables, looked.inputs(np.stack(list(_elements(run, places)))))
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
        raise LeftOutError(f"no layer of {run.config.model.name} has feature maps")
    return kept


def patches(run: RunReport) -> list[Any]:
    """What excites the feature maps of a layer most, with its projection (Zeiler and Fergus)."""
    looked, found = run.looked, run.evaluation.outcomes
    if looked.kind != "image":
        raise LeftOutError(f"patches are of images; the examples are {looked.kind}s")
    places = evenly(len(found), _PATCHED)
    batches = (
        np.asarray(looked.inputs(np.stack(list(_elements(run, chunk)))))
        for chunk in np.array_split(places, -(-len(places) // 100))
    )
    try:
        patch = zeiler.strongest_patches(looked.model, looked.variables, batches)
    except ValueError as error:
        raise LeftOutError(f"{error}") from error
    alt = (
        f"{patch.layer}: for {len(patch.maps)} of its feature maps the {patch.values.shape[1]} "
        f"patches of {len(places):,} test images that "
        f"excite it most, activations up to {patch.values.max():.3g}, and what of each patch does "
        "it, by the deconvnet."
    )
    figure = zeiler.patches_figure(patch, looked.config.data.mean, looked.config.data.std)
    said = (
        "The patches that excite feature maps most, of the last layer that sees no more than half "
        "of an image, and what of each patch does "
        "it (Zeiler and Fergus 2014, Figure 2)."
    )
    return [Text(said), *_of_member(run), picture(figure, alt)]


def attribution(run: RunReport) -> list[Any]:
    """Which values of three test examples speak for the class that the network sees in them."""
    looked, found = run.looked, run.evaluation.outcomes
    text = looked.kind == "text"
    hidden = "a gap of some letters" if text else "a grey square"
    parts = [
        Text(
            "What speaks for the class that the network sees, red, and what against it, blue; and "
            f"what {hidden} takes away."
        ),
        *_of_member(run),
    ]
    sizes = looked.input_shape[:-1]
    small = text or looked.kind == "image" and max(sizes) <= _SMALL
    # Fewer places of what hides, and one example, where there is more to compute.
    strides = (
        tuple(max(1, size // (128 if text else 8)) for size in sizes) if text or not small else 0
    )
    places = evenly(len(found), 5)[1:4] if small and len(found) > 4 else evenly(len(found), 1)
    for place, element in zip(places, _elements(run, places), strict=True):
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
            f"An example of {true}, and what of it speaks for {name} ({probability}): by "
            "integrated gradients, and by occlusion, "
            f"where {hidden} takes up to {most} of the probability."
        )
        wrong = "" if true == name else f" (it is {true})"
        parts.append(picture(looked.explained(element, maps, f"{name}, {probability}{wrong}"), alt))
    return parts


def _of_member(run: RunReport) -> list[Any]:
    members = members_of(run.config)
    return [Text(f"Of the ensemble's first network, {members.names[0]}.")] if members else []


def _elements(run: RunReport, places: Sequence[int]) -> Iterator[np.ndarray]:
    for place in places:
        yield run.evaluation.source.read(int(run.evaluation.outcomes.index[place]))["image"]


def _images(run: RunReport, places: Sequence[int]) -> list[Any]:
    return [run.looked.shown(element) for element in _elements(run, places)]


def _table(run: RunReport, caption: str, places: Sequence[int]) -> Table:
    """Examples one by one: what they are and what was said."""
    found, rows = run.evaluation.outcomes, []
    for place in places:
        true, said = int(found.labels[place]), int(found.predicted[place])
        rows.append(
            (
                run.evaluation.source.name(int(found.index[place])),
                readable(found.class_names[true]),
                readable(found.class_names[said]),
                share(float(found.probabilities[place, said])),
                share(float(found.probabilities[place, true])),
            )
        )
    return Table(
        caption,
        [("example", "is", "was taken for", "so probable", "the truth"), *rows],
        texts=3,
        folded=True,
    )
