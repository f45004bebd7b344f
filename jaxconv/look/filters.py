"""Figures of the filters of a convolution, and of a layer's activations on an image.

Filters are a grid, like AlexNet's in Krizhevsky et al. 2012, Figure 3:

    filters of RGB images   colour tiles, grey where a weight is 0
    other channels          one tile per channel: red is positive, blue negative
    1-D                     curves; with many channels one tile with a row per channel
    3-D                     the slices of the first channel
    1x1                     one tile for all: a column per filter, a row per channel

Each filter is scaled by its own largest weight, each feature map by its own largest value.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from matplotlib.figure import Figure

from jaxconv.drawing.samples import draw_example, short_name
from jaxconv.drawing.sheet import FAINT, Sheet, new_sheet
from jaxconv.errors import nearest
from jaxconv.program import call_arguments, own_parameters, trace

# The most channels of a filter drawn as tiles, and those of a 1-D filter drawn as curves.
_CHANNELS, _CURVES = 8, 3
_WIDTH, _TILE, _GAP, _TOP = 10.0, 0.66, 0.13, 0.55


def filters(kernel: np.ndarray, most: int = 96, title: str = "filters") -> Figure:
    """The filters of one convolution.

    Args:
      kernel: [*window, C, K], see `find_kernel`.
      most: the most tiles to draw; a filter may take several.
      title: text before the number of filters.

    Raises:
      ValueError: the window of the kernel does not have one to three axes.
    """
    *window, channels, count = kernel.shape
    if not 1 <= len(window) <= 3:
        raise ValueError(
            f"filters can be drawn in 1-D, 2-D and 3-D; the kernel is {list(kernel.shape)}, with "
            f"{len(window)} spatial axes"
        )
    size = "x".join(map(str, (*window, channels)))
    if all(extent == 1 for extent in window):
        return _matrix(
            kernel.reshape(channels, count)[:, : 4 * most], f"{title}: {count} of {size}"
        )
    parts = [_tiles(kernel[..., k]) for k in range(count)]
    shown = max(1, min(count, most // len(parts[0])))
    seen = len(window) == 2 and 3 != channels > _CHANNELS or len(window) == 3 and channels > 1
    details = [f"the first {shown} of them"] if shown < count else []
    details += (
        [f"the first {len(parts[0]) if len(window) == 2 else 1} of {channels} channels"]
        if seen
        else []
    )
    return _grid(
        f"{title}: {count} of {size}{', ' if details else ''}{' and '.join(details)}", parts[:shown]
    )


def _tiles(kernel: np.ndarray) -> list[np.ndarray]:
    """The tiles of one filter [*window, C], scaled so that its largest weight is 1.

    Tiles are signed [H, W], colours [H, W, 3], or curves [L, 1, C].
    """
    *window, channels = kernel.shape
    scaled = kernel / (np.abs(kernel).max() or 1)
    if len(window) == 1:
        return [scaled[:, None]] if channels <= _CURVES else [scaled.T]
    if len(window) == 3:
        return list(scaled[..., 0])
    return (
        [(scaled + 1) / 2]
        if channels == 3
        else [scaled[..., c] for c in range(min(channels, _CHANNELS))]
    )


def _grid(title: str, parts: Sequence[Sequence[np.ndarray]]) -> Figure:
    height, width = parts[0][0].shape[:2]
    curves = width == 1
    tile_width = _TILE * (1.6 if curves else np.clip(width / height, 0.4, 6))
    columns = _even(len(parts), int((_WIDTH - 0.4 + _GAP) // (tile_width + _GAP)))
    band = len(parts[0]) * (_TILE + 0.06) + 0.22
    sheet = new_sheet(_WIDTH, _TOP + -(-len(parts) // columns) * band + 0.1, title)
    for k, tiles in enumerate(parts):
        x, y = 0.2 + (k % columns) * (tile_width + _GAP), _TOP + (k // columns) * band
        sheet.text(x + tile_width / 2, y - 0.02, str(k), 8, ha="center", va="bottom", color=FAINT)
        for n, tile in enumerate(tiles):
            box = (x, y + n * (_TILE + 0.06), tile_width, _TILE)
            if curves:
                sheet.curves(tile[:, 0], box, -1.0, 1.0)  # one colour per channel
            else:
                sheet.image(tile, box, limit=0.0 if tile.ndim == 3 else 1.0)
    return sheet.figure


def _even(count: int, most: int) -> int:
    """The number of columns, at most `most`, that fills the last row best."""
    return -(-count // -(-count // max(1, most)))


def _matrix(values: np.ndarray, title: str) -> Figure:
    rows, columns = "channel", "filter"
    if values.shape[0] > values.shape[1]:
        values, rows, columns = values.T, columns, rows
    height = min(6.0, max(1.0, (_WIDTH - 1) * values.shape[0] / values.shape[1]))
    sheet = new_sheet(_WIDTH, _TOP + height + 0.5, title)
    box = (0.6, _TOP, _WIDTH - 1, height)
    limit = float(np.abs(values).max()) or 1.0
    x, y, width, height = sheet.fitted(values.shape, box)
    sheet.image(values, box, limit)
    sheet.text(x + width / 2, y + height + 0.06, columns, 8, ha="center", color=FAINT)
    sheet.text(x - 0.06, y + height / 2, rows, 8, ha="right", va="center", rotation=90, color=FAINT)
    return sheet.figure


def find_kernel(
    module: nn.Module, variables: Any, input_shape: Sequence[int], layer: str = ""
) -> tuple[str, np.ndarray]:
    """The path and the weights [*window, C, K] of a convolution in any Linen module.

    Args:
      input_shape: (*spatial, C) of the module's input.
      layer: the path, such as `block1/conv1`; by default the first convolution that is called.

    Raises:
      ValueError: the module has no convolution, or none with that path; the message gives the
        nearest path.
    """
    x = jax.ShapeDtypeStruct((1, *input_shape), np.float32)
    calls = [
        event.call.path
        for event in trace(module, variables, x, **call_arguments(module, False, {})).events
        if event.kind == "end"
    ]
    found = {}
    for path in calls:
        for leaf in own_parameters(variables, path).values():
            if getattr(leaf, "ndim", 0) == len(input_shape) + 1:
                found["/".join(path) or "module"] = leaf
    if not found:
        raise ValueError(f"{type(module).__name__} has no convolution")
    if layer and layer not in found:
        raise ValueError(
            f"no convolution is called {layer!r}{nearest(layer, found)}; the convolutions are "
            f"{_listed(found)}"
        )
    layer = layer or next(iter(found))
    return layer, np.asarray(found[layer], np.float32)


def _listed(names: Mapping[str, Any], most: int = 12) -> str:
    return ", ".join([*names][:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def activation_maps(
    value: np.ndarray,
    example: Any,
    layer: str,
    names: Sequence[str] = (),
    most: int = 64,
    title: str = "",
) -> Figure:
    """The activations of a layer on one image, next to the image.

    Args:
      value: the layer's output [*spatial, K] for that image, or [K].
      example: the image, see `samples.draw_example`.
      layer: the name of the layer.
      names: class names of the values, if they are logits.
      most: the most feature maps to show; those with the largest values come first.
      title: text above the figure.
    """
    value = np.asarray(value, np.float32)
    count = value.shape[-1]
    what = (
        f"{count} values"
        if value.ndim == 1
        else f"{count} maps of {'x'.join(map(str, value.shape[:-1]))}"
    )
    heading = (
        f"{title}{': ' if title else ''}{layer}, "
        f"{what}{f', the {most} strongest' if value.ndim > 1 and most < count else ''}"
    )
    if value.ndim == 1:
        sheet = _vector(value, names, heading)
    else:
        strongest = np.argsort(-np.abs(value).reshape(-1, count).max(axis=0), kind="stable")
        sheet = _map_grid(value, strongest[:most], heading)
    draw_example(sheet, example, (0.2, _TOP, 2.0, 2.0))
    return sheet.figure


def _vector(value: np.ndarray, names: Sequence[str], heading: str) -> Sheet:
    sheet = new_sheet(_WIDTH, 2.95, heading)
    left, across, limit = 2.4, _WIDTH - 2.6, float(np.abs(value).max()) or 1.0
    sheet.bars(value, (left, _TOP, across, 2.0), limit)
    step = across / len(value)
    if len(value) <= 20:
        for k, number in enumerate(value):
            name = short_name(names[k], int(12 * step)) if len(names) else str(k)
            sheet.text(
                left + (k + 0.5) * step, 2.6, f"{name}\n{number:.3g}", 7, ha="center", color=FAINT
            )
    else:
        sheet.text(left, 2.6, "0", 8, color=FAINT)
        sheet.text(left + across, 2.6, f"{len(value) - 1}", 7, color=FAINT, ha="right")
        sheet.text(
            left + across / 2, 2.6, f"the largest is {limit:.3g}", 8, color=FAINT, ha="center"
        )
    return sheet


def _map_grid(value: np.ndarray, places: np.ndarray, heading: str) -> Sheet:
    height, width = (1, 2) if value.ndim == 2 else value.shape[-3:-1]
    count = len(places)
    left, across = 2.4, _WIDTH - 2.6
    # The grid is wider than high for any shape of the maps.
    columns = _even(count, round((1.8 * count * height / width) ** 0.5))
    tile_width = min(across / columns - _GAP, 2.0 * max(1.0, width / height))
    tile = tile_width * height / width
    band = tile + 0.22
    sheet = new_sheet(_WIDTH, max(_TOP + -(-count // columns) * band + 0.1, 2.75), heading)
    for n, k in enumerate(places):
        x, y = left + (n % columns) * (tile_width + _GAP), _TOP + (n // columns) * band
        sheet.text(x + tile_width / 2, y - 0.02, str(k), 8, ha="center", va="bottom", color=FAINT)
        draw_map(sheet, value[..., k], (x, y, tile_width, tile), float(np.abs(value[..., k]).max()))
    return sheet


def draw_map(
    sheet: Sheet, values: np.ndarray, box: tuple[float, float, float, float], limit: float
) -> None:
    """Draw one feature map, with colours from -limit to limit.

    [L] is drawn as a curve, [H, W] as an image, and [D, H, W] as its middle slice.
    """
    if values.ndim == 1:
        limit = limit or 1.0
        sheet.curves(
            values[:, None], box, -limit if values.min() < 0 else 0.0, limit, color="#b2182b"
        )
    else:
        sheet.image(values[len(values) // 2] if values.ndim == 3 else values, box, limit or 1.0)
