"""What the page shows of a network: its answer and maps by one jitted call, and its input pictures.

The maps go to the browser as 8-bit integers, -127 to 127, with the value that 127 stands for: a few
tens of kilobytes per stroke, which the browser turns into colours. Zero is always 0.
"""

import dataclasses
import io
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data import xo
from jaxconv.data.decode import choose_decoder
from jaxconv.data.interface import DamagedError
from jaxconv.data.sources import read_for_evaluation
from jaxconv.drawing.masks import palette
from jaxconv.errors import UserError
from jaxconv.files import to_json
from jaxconv.inspect.stages import Stage, traced_stages
from jaxconv.playground.rows import MapRow, chosen, rows_of
from jaxconv.tasks import Task

# Limits of what is sent and drawn: maps of a stage, pixels along each side of a map, classes.
# Module rows limits the stages.
_MAPS, _PIXELS, _CLASSES = 16, 64, 10
# Sources whose pictures can be drawn with a pen, and its weight for each.
DRAWN = {"xo": 0.0, "xo_scenes": -0.3, "xo_boxes": -0.3}
# Names of a first class that stands for no object, in lower case.
NOTHING = ("background", "neither", "none", "nothing", "void")
# The accepted types of files by their first bytes, and the most pixels of a file.
_SIGNATURES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}
MOST_PIXELS = 40_000_000
# The most points of a drawing, and their largest distance from its centre, in canvas widths.
MOST_POINTS = 1500
_OUTSIDE = 2.0


@dataclasses.dataclass(frozen=True)
class Maps:
    """One row of maps.

    Attributes:
      name: of the layer.
      what: a description for the page.
      shape: of what is shown, (height, width, maps); neurons are maps of one pixel.
      channels: number of maps of the stage.
      pixels: height and width of a full map; if `shape` has fewer, every n-th pixel is shown.
    """

    name: str
    what: str
    shape: tuple[int, ...]
    channels: int
    pixels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class NetworkView:
    """A network compiled to be shown.

    Attributes:
      class_names: K names.
      stages: the rows of maps that `answer` gives.
      total: number of stages of the network.
      filters_of: the name of the first convolution.
      call: (variables, picture [H, W, C] uint8) -> (what the network says, maps [h, w, k] int8 of
        each stage, the largest magnitude of each stage, the first convolution's filters
        [F, F, C, K] int8, their largest magnitude).
      say: what the network says -> fields of the answer's header, and bytes after its arrays.
    """

    stages: tuple[Maps, ...]
    total: int
    filters_of: str
    call: Callable[[Any, np.ndarray], Any]
    say: Callable[[Any], tuple[dict[str, Any], bytes]]

    def answer(self, variables: Any, picture: np.ndarray, about: Mapping[str, Any]) -> bytes:
        """Build the browser's answer for a picture: 4 bytes of header length, JSON header, arrays.

        Args:
          variables: the network's.
          picture: [H, W, C] uint8.
          about: more fields of the header.
        """
        said, maps, peaks, filters, filters_peak = jax.device_get(self.call(variables, picture))
        fields, more = self.say(said)
        header = {
            **about,
            **fields,
            "picture": picture.shape,
            "filters": {
                "of": self.filters_of,
                "shape": filters.shape,
                "peak": _number(filters_peak),
            },
            "total": self.total,
            "stages": [
                dataclasses.asdict(stage) | {"peak": _number(peak)}
                for stage, peak in zip(self.stages, peaks, strict=True)
            ],
        }
        text = to_json(header).encode()
        return b"".join(
            [
                struct.pack("<I", len(text)),
                text,
                picture.tobytes(),
                filters.tobytes(),
                *(m.tobytes() for m in maps),
                more,
            ]
        )


def say_votes(class_names: Sequence[str], votes: np.ndarray) -> tuple[dict[str, Any], bytes]:
    """Fields of an answer: `votes`, those of the classes [K], and `best`, the class with most."""
    votes = votes.astype(np.float64)
    shares = np.exp(votes - votes.max())
    shares /= shares.sum()
    best = class_names[int(np.argmax(votes))]
    return {"votes": _bars(class_names, votes, shares), "best": best}, b""


def say_overlay(task: Task, served: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """Fields of an answer: `votes`, the share of each class, and `overlay`, what `Task.overlay`
    draws over the picture; its mask follows the maps.
    """
    found, names = task.overlay(served), task.class_names
    if found is None:
        raise ValueError(f"{type(task).__name__} has no overlay")
    boxes = [
        {
            "box": [_number(v) for v in box],
            "class": names[int(label)],
            "score": _number(score),
        }
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True)
    ]
    overlay = {
        "said": found.said,
        "boxes": boxes,
        "mask": [] if found.mask is None else found.mask.shape,
        # A class that stands for nothing leaves the drawing as it is.
        "clear": 0 if names[0].lower() in NOTHING else -1,
        "points": [] if found.points is None else np.round(found.points[..., :2], 2).tolist(),
        "lines": [list(pair) for pair in found.lines],
        "colours": np.rint(255 * palette(len(names))).astype(int).tolist(),
    }
    more = b"" if found.mask is None else found.mask.tobytes()
    best = names[int(np.argmax(found.shares))]
    return {"votes": _bars(names, None, found.shares), "best": best, "overlay": overlay}, more


def _bars(
    class_names: Sequence[str], votes: np.ndarray | None, shares: np.ndarray
) -> list[dict[str, Any]]:
    """The classes with the largest shares [K]; few classes all, in their order, so that the bars
    move and not the names.
    """
    best = np.argsort(-shares, kind="stable")[:_CLASSES]
    shown = np.arange(len(shares)) if len(shares) <= _CLASSES else best
    return [
        {"class": class_names[int(k)], "probability": _number(shares[k])}
        | ({} if votes is None else {"vote": _number(votes[k])})
        for k in shown
    ]


def _number(value: Any) -> float | None:
    """A number for JSON, which has neither NaN nor infinity: None for those."""
    return float(value) if np.isfinite(value) else None


def make_view(
    model: Any,
    preprocess: Callable[[dict[str, Any]], dict[str, Any]],
    variables: Any,
    shape: tuple[int, ...],
    class_names: tuple[str, ...],
    task: Task | None = None,
) -> NetworkView:
    """Compile a network to be shown.

    Args:
      model: any Linen module on images.
      preprocess: batch -> batch in evaluation, see `train.transforms.make_transforms`.
      variables: the network's, or their shapes.
      shape: of a picture, (H, W, C).
      class_names: one name per class.
      task: one with an overlay, which is shown instead of votes.
    """
    known: dict[str, Any] = {}

    def call(
        variables: Any, picture: jax.Array
    ) -> tuple[Any, list[jax.Array], list[jax.Array], jax.Array, jax.Array]:
        votes, stages = traced_stages(
            model, variables, preprocess({"image": picture[None]})["image"]
        )
        rows = rows_of(stages, variables, votes)
        shown = chosen(rows)
        name, kernel = _first_filters(stages)
        known.update(stages=tuple(map(_describe, shown)), total=len(rows), filters_of=name)
        quantised = [_quantise(_cut(row.value)) for row in shown]
        filters, peak = _quantise(kernel)
        said = votes if task is None else task.serve(votes)
        return (
            jax.tree.map(lambda value: value[0], said),
            [maps for maps, _ in quantised],
            [peak for _, peak in quantised],
            filters,
            peak,
        )

    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    compiled = jax.jit(call).lower(abstract, jax.ShapeDtypeStruct(shape, jnp.uint8)).compile()
    # Make the slow first call here, so that it does not delay the first stroke.
    jax.block_until_ready(
        compiled(
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract),
            np.zeros(shape, np.uint8),
        )
    )
    say = partial(say_votes, class_names) if task is None else partial(say_overlay, task)
    return NetworkView(call=compiled, say=say, **known)


def _cut(maps: jax.Array) -> jax.Array:
    """The first maps, with only every n-th pixel of large ones."""
    step = -(-max(maps.shape[:2]) // _PIXELS)
    # Neurons are single pixels, so more of them fit on the page.
    return maps[::step, ::step, : _MAPS if maps.shape[0] > 1 else 16 * _MAPS]


def _describe(row: MapRow) -> Maps:
    return Maps(row.name, row.what, _cut(row.value).shape, row.value.shape[-1], row.value.shape[:2])


def _quantise(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int8 from -127 to 127, the value that 127 stands for)."""
    values = values.astype(jnp.float32)
    # `initial` covers an empty array; a maximum may ignore NaN, so check for it.
    peak = jnp.where(jnp.isfinite(values).all(), jnp.max(jnp.abs(values), initial=0), jnp.nan)
    return jnp.round(127 * values / jnp.maximum(peak, 1e-30)).astype(jnp.int8), peak


def _first_filters(stages: Sequence[Stage]) -> tuple[str, jax.Array]:
    """The first convolution's name and filters [F, F, C, K]; empty unless they are grey or RGB."""
    first = next((stage for stage in stages if stage.kind == "convolution"), None)
    if first is None:
        return "", jnp.zeros((0, 0, 0, 0))
    weights = jnp.asarray(first.weighing()[0])
    if weights.ndim != 4 or weights.shape[2] not in (1, 3):
        return "", jnp.zeros((0, 0, 0, 0))
    return first.name, weights[..., :_MAPS]


def drawn(strokes: Any, shape: tuple[int, ...], weight: float, fit: bool) -> np.ndarray:
    """Draw strokes as a uint8 picture of this shape (H, W, C), with the pen of `data/xo.py`.

    Args:
      strokes: lists of points (x, y), in canvas widths from the upper left corner.
      shape: of the picture.
      weight: relative increase of the pen's width.
      fit: centre and scale the drawing like the training pictures.

    Raises:
      UserError: the strokes are not such lists, or have too many points.
    """
    try:
        lines = [np.array(line, np.float64).reshape(-1, 2) for line in strokes]
        points = sum(map(len, lines))
        good = all(
            np.isfinite(line).all() and (np.abs(line - 0.5) <= _OUTSIDE).all() for line in lines
        )
    except (TypeError, ValueError) as error:
        raise UserError("the drawing is not a list of lines of points (x, y)") from error
    if not good:
        raise UserError("the drawing has points far outside the canvas")
    if points > MOST_POINTS:
        raise UserError(
            f"the drawing has {points} points; at most {MOST_POINTS} are accepted: clear it and "
            "start again"
        )
    return np.repeat(xo.draw_strokes(lines, shape[0], weight, fit), shape[-1], axis=-1)


def sample(figure: str, number: int, shape: tuple[int, ...], variation: xo.Variation) -> np.ndarray:
    """Draw an X or O as the data source does; it varies smoothly with the settings.

    Args:
      figure: `x` or `o`.
      number: which sample, from 0.
      shape: (H, W, C).
      variation: the settings.
    """
    wanted = xo.CLASS_NAMES.index(figure)
    # The source also chooses between X and O at random: take the next one of the wanted kind.
    drawn = (xo.draw(0, "sample", 1000 * number + i, shape[0], variation) for i in range(1000))
    return np.repeat(next(image for image, label in drawn if label == wanted), shape[-1], axis=-1)


def decoded(data: bytes, shape: tuple[int, ...], config: Any) -> tuple[np.ndarray, str]:
    """Decode a dropped file to a uint8 picture of this shape (H, W, C), with a note on its changes.

    Nothing is written to disk.

    Args:
      data: the content of a JPEG or PNG file.
      shape: of the picture.
      config: `config.data` of the network.

    Raises:
      UserError: the file is neither JPEG nor PNG, is damaged, or is too large.
    """
    from PIL import Image

    kind = next(
        (kind for kind, signature in _SIGNATURES.items() if data.startswith(signature)), None
    )
    if kind is None:
        raise UserError("the file is neither a JPEG nor a PNG image")
    if shape[0] != shape[1] and not config.canvas:
        raise UserError(
            f"the network takes pictures of {shape[1]}x{shape[0]} pixels, but files are cropped to "
            "squares"
        )
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:  # reads only the header
            width, height = image.size
        if width * height > MOST_PIXELS:
            raise UserError(
                f"the image has {width}x{height} = {width * height:,} pixels; at most "
                f"{MOST_PIXELS:,} are accepted"
            )
        decoder = choose_decoder(config.decoder, config.interpolation)
        reading = type(config)(config.to_dict() | {"image_size": shape[0]})
        picture = read_for_evaluation(data, reading, shape[2], decoder)
    except UserError:
        raise
    except DamagedError as error:
        raise UserError(f"the image {error}") from error
    except Exception as error:  # Pillow raises many kinds of errors for damaged files
        raise UserError("the image cannot be read; it is damaged") from error
    if config.source in DRAWN and np.median(picture) > 127:
        return 255 - picture, "the light background was made dark, as in the training pictures"
    return picture, ""
