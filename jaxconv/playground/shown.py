"""What the page shows of a network: one jitted call from a picture to its votes and maps, and the
pictures that can be given to it.

The maps go to the browser as whole numbers of 8 bits, -127 to 127, with the value that 127 stands
for: a few tens of kilobytes a stroke, of which the browser makes colours. Zero is always 0.
"""

import dataclasses
import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data import xo
from jaxconv.data.decode import choose_decoder, decode_middle
from jaxconv.data.interface import DamagedError
from jaxconv.errors import UserError
from jaxconv.inspect.stages import Stage, traced_stages
from jaxconv.playground.rows import MapRow, chosen, rows_of

# At most, of what is sent and drawn: maps of a stage, pixels of each way of a map, classes; of
# stages see module rows.
_MAPS, _PIXELS, _CLASSES = 16, 64, 10
# What a file may be, by its first bytes, and how many pixels it may have.
_SIGNATURES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}
MOST_PIXELS = 40_000_000
# Points of a drawing, and how far outside of the canvas one may lie, in widths of it.
MOST_POINTS = 1500
_OUTSIDE = 2.0


@dataclasses.dataclass(frozen=True)
class Maps:
    """One row of maps.

    Attributes:
      name: of the layer.
      what: it is, for people.
      shape: of what is shown, (height, width, maps); neurons are maps of one pixel.
      channels: maps that there are.
      pixels: height and width of a whole map; where `shape` has fewer, every so-manieth is shown.
    """

    name: str
    what: str
    shape: tuple[int, int, int]
    channels: int
    pixels: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class NetworkView:
    """A network, compiled for being looked at.

    Attributes:
      class_names: K names.
      stages: the rows of maps that `answer` gives.
      total: stages that there are.
      filters_of: the name of the first convolution.
      call: (variables, picture [H, W, C] uint8) -> (votes [K], maps [h, w, k] int8 of each stage,
        the largest magnitude of each stage, the first convolution's filters [F, F, C, K] int8,
        their largest magnitude).
    """

    class_names: tuple[str, ...]
    stages: tuple[Maps, ...]
    total: int
    filters_of: str
    call: Callable[[Any, np.ndarray], Any]

    def answer(self, variables: Any, picture: np.ndarray, about: Mapping[str, Any]) -> bytes:
        """What the browser is sent for a picture: the length of a JSON header as 4 bytes, the
        header, and the maps behind it.

        Args:
          variables: the network's.
          picture: [H, W, C] uint8.
          about: goes into the header.
        """
        votes, maps, peaks, filters, filters_peak = jax.device_get(self.call(variables, picture))
        votes = votes.astype(np.float64)
        shares = np.exp(votes - votes.max())
        shares /= shares.sum()
        best = np.argsort(-votes, kind="stable")[:_CLASSES]
        # A few classes stay where they are, so that the bars move and not the names.
        shown = np.arange(len(votes)) if len(votes) <= _CLASSES else best
        header = {
            **about,
            "votes": [
                {
                    "class": self.class_names[k],
                    "vote": _number(votes[k]),
                    "probability": _number(shares[k]),
                }
                for k in shown
            ],
            "best": self.class_names[best[0]],
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
        text = json.dumps(header).encode()
        return b"".join(
            [
                struct.pack("<I", len(text)),
                text,
                picture.tobytes(),
                filters.tobytes(),
                *(m.tobytes() for m in maps),
            ]
        )


def _number(value: Any) -> float | None:
    """As JSON has it, which knows neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def make_view(
    model: Any,
    preprocess: Callable[[dict[str, Any]], dict[str, Any]],
    variables: Any,
    shape: tuple[int, ...],
    class_names: tuple[str, ...],
) -> NetworkView:
    """Compile a network for being looked at.

    Args:
      model: any Linen module on images.
      preprocess: batch -> batch of evaluation, see `train.build.make_transforms`.
      variables: the network's, or their shapes.
      shape: of a picture, (H, W, C).
      class_names: one name a class.
    """
    known: dict[str, Any] = {}

    def call(
        variables: Any, picture: jax.Array
    ) -> tuple[jax.Array, list[jax.Array], list[jax.Array], jax.Array, jax.Array]:
        votes, stages = traced_stages(
            model, variables, preprocess({"image": picture[None]})["image"]
        )
        rows = rows_of(stages, variables, votes)
        shown = chosen(rows)
        name, kernel = _first_filters(stages)
        known.update(stages=tuple(map(_describe, shown)), total=len(rows), filters_of=name)
        quantised = [_quantise(_cut(row.value)) for row in shown]
        filters, peak = _quantise(kernel)
        return (
            votes[0],
            [maps for maps, _ in quantised],
            [peak for _, peak in quantised],
            filters,
            peak,
        )

    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    compiled = jax.jit(call).lower(abstract, jax.ShapeDtypeStruct(shape, jnp.uint8)).compile()
    # The first call takes longer than all others; it shall not be a person's first stroke.
    jax.block_until_ready(
        compiled(
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract),
            np.zeros(shape, np.uint8),
        )
    )
    return NetworkView(class_names, call=compiled, **known)


def _cut(maps: jax.Array) -> jax.Array:
    """The first maps, and of large ones every so-manieth pixel."""
    step = -(-max(maps.shape[:2]) // _PIXELS)
    # Neurons are small: all that a page can hold are shown.
    return maps[::step, ::step, : _MAPS if maps.shape[0] > 1 else 16 * _MAPS]


def _describe(row: MapRow) -> Maps:
    return Maps(row.name, row.what, _cut(row.value).shape, row.value.shape[-1], row.value.shape[:2])


def _quantise(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int8 from -127 to 127, what 127 stands for)."""
    values = values.astype(jnp.float32)
    # There may be none; and a maximum may pass over what is no number.
    peak = jnp.where(jnp.isfinite(values).all(), jnp.max(jnp.abs(values), initial=0), jnp.nan)
    return jnp.round(127 * values / jnp.maximum(peak, 1e-30)).astype(jnp.int8), peak


def _first_filters(stages: Sequence[Stage]) -> tuple[str, jax.Array]:
    """The first convolution's name and filters [F, F, C, K]; empty where they are no pictures, grey
    or in colour.
    """
    first = next((stage for stage in stages if stage.kind == "convolution"), None)
    if first is None or first.weights.ndim != 4 or first.weights.shape[2] not in (1, 3):
        return "", jnp.zeros((0, 0, 0, 0))
    return first.name, first.weights[..., :_MAPS]


def drawn(strokes: Any, shape: tuple[int, ...], weight: float, fit: bool) -> np.ndarray:
    """A drawing as a picture of this shape (H, W, C), uint8: by the pen of `data/xo.py`.

    Args:
      strokes: lists of points (x, y), shares of the canvas' width from the upper left corner.
      shape: of the picture.
      weight: the pen is thicker by this share.
      fit: centre and size it as the training pictures are.

    Raises:
      UserError: they are no such lists, or there are too many points.
    """
    try:
        lines = [np.array(line, np.float64).reshape(-1, 2) for line in strokes]
        points = sum(map(len, lines))
        good = all(
            np.isfinite(line).all() and (np.abs(line - 0.5) <= _OUTSIDE).all() for line in lines
        )
    except (TypeError, ValueError) as error:
        raise UserError("the drawing is no list of lines with points (x, y)") from error
    if not good:
        raise UserError("the drawing has points far outside of the canvas")
    if points > MOST_POINTS:
        raise UserError(
            f"the drawing has {points} points; at most {MOST_POINTS} are taken: clear it and draw "
            "anew"
        )
    return np.repeat(xo.draw_strokes(lines, shape[0], weight, fit), shape[-1], axis=-1)


def sample(figure: str, number: int, shape: tuple[int, ...], variation: xo.Variation) -> np.ndarray:
    """The X or O of a number, as the source draws it with these settings; of one number, it moves
    smoothly with them.

    Args:
      figure: `x` or `o`.
      number: from 0.
      shape: (H, W, C).
      variation: the settings.
    """
    wanted = xo.CLASS_NAMES.index(figure)
    # What the figure is, is drawn at random too: the first of this kind from here on.
    drawn = (xo.draw(0, "sample", 1000 * number + i, shape[0], variation) for i in range(1000))
    return np.repeat(next(image for image, label in drawn if label == wanted), shape[-1], axis=-1)


def decoded(data: bytes, shape: tuple[int, ...], config: Any) -> tuple[np.ndarray, str]:
    """A dropped file as a picture of this shape (H, W, C), uint8, and what was done with it
    besides; nothing is written anywhere.

    Args:
      data: the content of a JPEG or PNG file.
      shape: of the picture.
      config: `config.data` of the network.

    Raises:
      UserError: it is no such file, damaged, or too large.
    """
    from PIL import Image

    kind = next(
        (kind for kind, signature in _SIGNATURES.items() if data.startswith(signature)), None
    )
    if kind is None:
        raise UserError("the file is neither a JPEG nor a PNG image")
    if shape[0] != shape[1]:
        raise UserError(
            f"the network takes pictures of {shape[1]}x{shape[0]} pixels, and files are brought to "
            "squares"
        )
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:  # its header alone
            width, height = image.size
        if width * height > MOST_PIXELS:
            raise UserError(
                f"the image has {width}x{height} = {width * height:,} pixels; at most "
                f"{MOST_PIXELS:,} are taken"
            )
        decoder = choose_decoder(config.decoder)
        picture = decode_middle(
            data, shape[0], shape[2], decoder, config.crop_ratio, config.background
        )
    except UserError:
        raise
    except DamagedError as error:
        raise UserError(f"the image {error}") from error
    except Exception as error:  # Pillow's readers raise many kinds of errors at damaged bytes
        raise UserError("the image cannot be read; it is damaged") from error
    if config.source == "xo" and np.median(picture) > 127:
        return 255 - picture, "light paper was turned dark, as the training pictures have it"
    return picture, ""
