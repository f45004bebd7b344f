"""`jaxconv data SOURCE`: the contents of a source, augmented examples, and loading speed."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxconv.config import default_config
from jaxconv.data.canvas import per_channel
from jaxconv.data.interface import Arrays, DamagedError, Source, as_targets, describe, evenly
from jaxconv.data.loading import Order, make_loader, take
from jaxconv.data.objects import SIZES, count_objects
from jaxconv.data.pictures import opened
from jaxconv.data.reading import notes_of, read_as
from jaxconv.data.signals import decode_text
from jaxconv.data.sources import as_files, open_source
from jaxconv.data.stored import Placed, StoredSource
from jaxconv.errors import UserError
from jaxconv.files import whole_file
from jaxconv.tasks import find_task, needs_of, open_task, task_for
from jaxconv.train.parallel import make_parallel
from jaxconv.train.transforms import make_transforms

_SECONDS = 3.0  # duration of the measurement of the rate
_SHOWN = 36  # samples in the picture
_CANVAS = 320  # the longest side of samples of several sizes
# What is told by `objects`.
_OF_OBJECTS = ("boxes", "classes", "valid", "crowd", "filled", "masks", "size", "seen")


def show(
    config: Any, split: str, examples: int, png: Path
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """The output of `jaxconv data`, as rows for people and as one object.

    Also draws augmented samples into a PNG file.

    Raises:
      UserError: the source or split does not exist.
    """
    # As files, not read into memory: examples that cannot form a batch can still be surveyed.
    before = _trained_on(config, split)
    # Without another task, a source shows its usual targets.
    needs = () if config.task.name == default_config().task.name else needs_of(config)
    source = open_source(as_files(config.data), split, before=before, needs=needs)
    found = {"read_as": read_as(source, split), "notes": notes_of(source, split, config.data)}
    found |= survey(source, examples)
    rows = _table(found)
    try:
        config, said = _with_canvas(config, source, found)
        rows += said
        source = open_source(config.data, split, augment=config.augment, before=before, needs=needs)
        config = type(config)(config.to_dict())
        config.task.name = task_for(config, source.targets)
        images, targets, rate = feed(source, config)
    except UserError as error:
        return [*rows, ("batches", f"none: {error}")], found
    draw_samples(source, images, targets, config, png)
    way = "resident" if isinstance(source, Arrays) else "streamed"
    return [
        *rows,
        ("examples/s", f"{rate:,.0f}, {way}, augmented"),
        ("samples", str(png)),
    ], found | {"examples_per_second": rate}


def _with_canvas(
    config: Any, source: Source, found: Mapping[str, Any]
) -> tuple[Any, list[tuple[str, str]]]:
    """The config, with a canvas for samples of several sizes if the task takes one and the config
    has no size; and a row that says so.
    """
    data = config.data
    canvas = "seen" in find_task(config.task.name).uses and isinstance(source, StoredSource)
    if not canvas or data.canvas or data.image_size or len(found["sizes"]) < 2:
        return config, []
    sizes = [tuple(map(int, size.split("x"))) for size in found["sizes"]]
    sides = tuple(max(8, min(_CANVAS, max(side))) for side in zip(*sizes, strict=True))[::-1]
    config = type(config)(config.to_dict())
    config.data.canvas = sides
    text = ",".join(map(str, sides))
    return config, [("samples on a canvas", f"{text}; --config.data.canvas={text} trains on it")]


def _trained_on(config: Any, split: str) -> dict[str, Any] | None:
    """What a network would be trained with, which says how another split of arrays is read."""
    if split == config.data.train_split or not config.data.source.startswith("arrays:"):
        return None
    try:
        return describe(open_source(config.data, config.data.train_split))
    except UserError:
        return None  # the split can be looked at by itself


def draw_samples(
    source: Source,
    images: np.ndarray,
    targets: Mapping[str, np.ndarray],
    config: Any,
    png: Path,
) -> None:
    """Draw the first examples of a batch, as the network gets them, into a PNG file."""
    from jaxconv.drawing.fonts import save_figure
    from jaxconv.drawing.samples import short_name, text_grid

    images, task = images[:_SHOWN], open_task(config, describe(source))
    each = [{name: values[n] for name, values in targets.items()} for n in range(len(images))]
    if source.element.kind == "text":
        codes = images if source.words else images.argmax(axis=-1)
        texts = [decode_text(one, source.words or config.data.text.alphabet) for one in codes]
        figure = text_grid(texts, [short_name(task.caption_of(one), 60) for one in each])
    else:
        mean, std = (
            np.array(per_channel(name, config.data[name], images.shape[-1]))
            for name in ("mean", "std")
        )
        images = images * std + mean
        figure = task.draw_targets(images, each)
    with whole_file(png) as temporary:
        save_figure(figure, temporary, dpi=120)


def survey(source: Source, examples: int = 2_000) -> dict[str, Any]:
    """Survey the contents of a source.

    Args:
      source: any source.
      examples: how many, evenly spread, are read for what depends on their content.

    Returns:
      `examples`; `objects`, see `objects.count_objects`, and `classes`, {name: count}, of all
      examples or, if they are known only by reading, of the sample; `pixels`, {name: count} of the
      sample's masks; `sample`, how many were read; `damaged`, {name: why} of those that could not
      be read; `sizes`, {"WxH": count} of the sample as stored; except for texts, `mean` and `std`
      of each channel of the sample, on the scale of `config.data.mean`.
    """
    sample = evenly(len(source), examples)
    with ThreadPoolExecutor() as pool:
        looked = list(pool.map(lambda i: _look(source, int(i)), sample))
    good = [found for found in looked if not isinstance(found, str)]
    sizes: dict[str, int] = {}
    for _, size, _ in good:
        sizes[size] = sizes.get(size, 0) + 1
    result: dict[str, Any] = {
        "examples": len(source),
        **_classes(source, [targets for targets, _, _ in good]),
        "sample": len(sample),
        "damaged": {
            source.name(int(i)): why
            for i, why in zip(sample, looked, strict=True)
            if isinstance(why, str)
        },
        "sizes": dict(sorted(sizes.items(), key=lambda item: -item[1])),
    }
    if source.element.kind != "text" and good:
        # Sums over every pixel of the sample, so larger images weigh more.
        count, total, squares = (
            np.sum([sums[part] for _, _, sums in good], axis=0) for part in range(3)
        )
        mean = total / count
        result |= {
            "mean": mean.tolist(),
            "std": np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist(),
        }
    return result


def _classes(source: Source, seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`classes` if examples have labels; for other targets the least and the greatest value."""
    found: dict[str, Any] = {}
    if "label" in source.targets:
        known = not isinstance(source, StoredSource) or source.records.has_labels
        labels = source.labels_of_all() if known else np.array([one["label"] for one in seen], int)
        counts = np.bincount(labels, minlength=len(source.class_names))
        found["classes"] = dict(zip(source.class_names, counts.tolist(), strict=True))
    if "segmentation" in source.targets and seen:
        masks = [np.bincount(one["segmentation"].ravel(), minlength=256) for one in seen]
        counts = np.sum(masks, axis=0)
        found["pixels"] = dict(zip(source.class_names, counts.tolist(), strict=False))
    told: tuple[str, ...] = ("label", "segmentation")
    if {"boxes", "classes", "valid"} <= source.targets.keys() and seen:
        found["objects"] = _objects(source, seen)
        told += _OF_OBJECTS
    others = {
        name: {
            "least": float(min(np.min(one[name]) for one in seen)),
            "greatest": float(max(np.max(one[name]) for one in seen)),
        }
        for name in source.targets
        if name not in told and seen
    }
    return found | ({"targets": others} if others else {})


def _objects(source: Source, seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The objects of all examples if they are known, or of those that were looked at."""
    known = getattr(getattr(source, "records", None), "objects", None)
    if known is not None:
        crowds, images = int(known.crowd.sum()), len(source)
        counted = known.boxes, known.classes, known.image
    else:
        valid, images = np.stack([one["valid"] for one in seen]), len(seen)
        boxes, classes = (
            np.stack([one[name] for one in seen])[valid] for name in ("boxes", "classes")
        )
        crowds = sum(int((one["crowd"] & one["valid"]).sum()) for one in seen if "crowd" in one)
        counted = boxes, classes, np.nonzero(valid)[0]
    return count_objects(*counted, images, source.class_names) | {"crowds": crowds}


def _object_rows(objects: Mapping[str, Any]) -> list[tuple[str, str]]:
    ends = _class_rows(sorted(objects["classes"].items(), key=lambda item: -item[1]))
    sizes = objects["sizes"].items()
    limits = [f"< {side:.0f}²" if np.isfinite(side) else "" for side in SIZES.values()]
    return [
        ("objects", f"{objects['count']:,} of {len(objects['classes']):,} classes"),
        *ends,
        *(
            (f"  {name} {limit}", f"{count:,}")
            for (name, count), limit in zip(sizes, limits, strict=True)
        ),
        ("  crowds", f"{objects['crowds']:,}"),
        ("most of an image", f"{objects['most']:,}"),
        ("images without objects", f"{objects['without']:,}"),
    ]


def _look(source: Source, i: int) -> tuple[dict[str, Any], str, tuple[Any, ...]] | str:
    """Targets, stored size, (pixels, sums, sums of squares) per channel; or the reading error."""
    try:
        # Bypasses the source's own check of shapes, so that sizes may differ.
        if isinstance(source, StoredSource):
            payload, targets = source.records[i]
            element, targets = source.decode(payload, (0, i)), as_targets(targets)
            element = element.pixels if isinstance(element, Placed) else element
        else:
            targets = dict(source.read(i))
            payload = element = targets.pop("image")
    except DamagedError as error:
        return str(error)
    if isinstance(source, StoredSource) and "label" in targets:
        source.check_label(i, int(targets["label"]))
    values = (
        (element / 255 if element.dtype == np.uint8 else element)
        .reshape(-1, element.shape[-1])
        .astype(np.float64)
    )
    return (
        targets,
        _size(payload, element),
        (len(values), values.sum(axis=0), (values**2).sum(axis=0)),
    )


def _size(payload: Any, element: np.ndarray) -> str:
    if isinstance(payload, str) or element.ndim == 1:
        return f"{len(payload)} codes"
    if isinstance(payload, bytes) and element.ndim == 3 and element.dtype == np.uint8:
        with opened(payload) as image:
            return "x".join(map(str, image.size))
    if element.ndim == 3 and element.dtype == np.uint8:
        return f"{element.shape[1]}x{element.shape[0]}"
    return "x".join(
        map(str, np.shape(payload) if isinstance(payload, np.ndarray) else element.shape)
    )


def feed(source: Source, config: Any) -> tuple[np.ndarray, dict, float]:
    """Read, transfer and augment batches as in training, for a few seconds.

    Returns:
      Elements [B, ...] and targets [B, ...] of the first batch, as a network would get them, and
      examples/s after it.

    Raises:
      UserError: an augmentation does not fit the examples, or their sizes differ.
    """
    parallel = make_parallel("jit", jax.devices()[:1])
    loader = make_loader(source, parallel, config.data)
    augment, _ = make_transforms(config, describe(source))

    @jax.jit
    def step(data: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        new = augment(key, take(data, batch))
        return new["image"], {name: new[name] for name in source.targets}

    first: list[Any] = []
    count, start, ahead = 0, 0.0, None
    settings = config.augment
    order = Order((config.seed,), config.batch_size, settings.repeats, settings.alternating_flip)
    for number, batch in enumerate(loader.train_batches(order, 0, 1_000_000)):
        images, targets = step(loader.data, batch, jax.random.key(number))
        if not first:
            first, start = jax.tree.map(np.asarray, [images, targets]), time.perf_counter()
            continue
        jax.block_until_ready(ahead)
        ahead, count = images, count + config.batch_size
        if time.perf_counter() - start > _SECONDS:
            break
    jax.block_until_ready(ahead)
    return first[0], first[1], count / (time.perf_counter() - start)


def _table(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The survey as rows of name and text, for people."""
    classes = sorted(found.get("classes", {}).items(), key=lambda item: -item[1])
    rows = [("read as", found["read_as"]), *(("note", note) for note in found["notes"])]
    rows += [("examples", f"{found['examples']:,}")]
    rows += [("classes", f"{len(classes):,}")] if classes else []
    rows += [
        (name, f"{ends['least']:.4g} to {ends['greatest']:.4g}")
        for name, ends in found.get("targets", {}).items()
    ]
    rows += _class_rows(classes)
    rows += _object_rows(found["objects"]) if "objects" in found else []
    masks = sorted(found.get("pixels", {}).items(), key=lambda item: -item[1])
    total = max(1, sum(count for _, count in masks))
    rows += [("pixels of the sample", f"{total:,}")] if masks else []
    rows += [(f"  {name[:24]}", f"{100 * count / total:.2f} %") for name, count in masks[:50]]
    rows += [("looked at", f"{found['sample']:,}"), ("damaged", f"{len(found['damaged']):,}")]
    rows += [(f"  {short_name}", why) for short_name, why in list(found["damaged"].items())[:5]]
    rows += [("sizes", f"{len(found['sizes']):,}")] + [
        (f"  {size}", f"{count:,}") for size, count in list(found["sizes"].items())[:5]
    ]
    rows += [(f"  ({len(found['sizes']) - 5:,} more)", "")] if len(found["sizes"]) > 5 else []
    rows += [
        (name, ",".join(f"{value:.4f}" for value in found[name]))
        for name in ("mean", "std")
        if name in found
    ]
    return rows


def _class_rows(classes: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    """All classes, or the five largest and the five smallest, and how many are left out."""
    rows = [(f"  {name.split(',')[0][:24]}", f"{count:,}") for name, count in classes]
    return (
        rows if len(rows) <= 12 else [*rows[:5], (f"  ({len(rows) - 10:,} more)", ""), *rows[-5:]]
    )
