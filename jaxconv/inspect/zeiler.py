"""The patches that excite a feature map most, and their deconvnet projections.

After Zeiler and Fergus 2014, arXiv:1311.2901, Figure 2. For each feature map of a layer, the images
of a dataset are ranked by their strongest activation; each image contributes one patch. For the top
nine, everything in the layer except that activation is set to zero, and the deconvnet projects it
to pixels. Image and projection are cropped to the receptive field of the activation.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.canvas import per_channel
from jaxconv.inspect.inside import Held, apply, layer_of, seen

# Inches in the figure: the side of a square of nine patches, and the gap between patches.
_SQUARE, _GAP = 1.55, 0.04


@dataclasses.dataclass(frozen=True)
class Patches:
    """The K patches that excite each of M feature maps most, strongest first.

    Attributes:
      layer: the name of the layer.
      maps: [M], the indices of the feature maps.
      values: [M, K], the activations.
      examples: [M, K], the index of the example in the dataset, from 0.
      positions: [M, K, 2], row and column in the feature map.
      corners: [M, K, 2], the first pixel of the receptive field: negative if it starts in the
        padding, 0 along an axis that it covers completely.
      patches, projections: [M, K, h, w, C], the receptive field; 0 outside the image.
    """

    layer: str
    maps: np.ndarray
    values: np.ndarray
    examples: np.ndarray
    positions: np.ndarray
    corners: np.ndarray
    patches: np.ndarray
    projections: np.ndarray


def strongest_patches(
    module: nn.Module,
    variables: Any,
    batches: Iterable[np.ndarray],
    layer: str = "",
    maps: Sequence[int] = (),
    first: int = 9,
    most: int = 9,
    rule: str = "deconvnet",
) -> Patches:
    """Find the strongest patches in one pass over a dataset of any size.

    Holds M * K images in memory.

    Args:
      batches: batches of images [N, H, W, C], preprocessed for the network.
      layer: one of `inside.activations`; by default the last whose receptive field is at most half
        of the image.
      maps: indices of the feature maps.
      first: how many feature maps to take, from the first on, if `maps` is empty; limited to those
        of the layer.
      most: K; limited to the number of examples.
      rule: the backward rule of the projection, one of `backward.RULES`.

    Raises:
      ValueError: the layer, feature map or rule does not exist; the layer has no spatial axes;
        there are no images, or they are not [N, H, W, C].
    """
    for name, value in (("first", first), ("most", most)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    kept: dict[int, list[_Peak]] = {}
    count = 0
    for images in batches:
        images = np.asarray(images)
        if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
            raise ValueError(
                f"patches need floating-point images [N, H, W, C]; these are {images.dtype} "
                f"{images.shape}"
            )
        layer = layer or _usual_layer(module, variables, images)
        kept = kept or {
            number: [] for number in _numbers(module, variables, images, layer, maps, first)
        }
        values, places = map(
            np.asarray, _peaks(Held(module), variables, images, layer, tuple(kept))
        )
        for peaks, value, place in zip(kept.values(), values.T, places.T, strict=True):
            strongest = np.argsort(-value, kind="stable")[:most]
            peaks += [
                _Peak(float(value[n]), count + int(n), int(place[n]), images[n]) for n in strongest
            ]
            # Ties go to the earlier example.
            peaks.sort(key=lambda peak: (-peak.value, peak.example))
            del peaks[most:]
        count += len(images)
    if not count:
        raise ValueError("there are no images to find patches in")
    return _cut(module, variables, layer, kept, rule)


@dataclasses.dataclass(frozen=True)
class _Peak:
    """The strongest activation of a feature map in one image; `place` is its row-major index."""

    value: float
    example: int
    place: int
    image: np.ndarray


def _usual_layer(module: nn.Module, variables: Any, images: np.ndarray) -> str:
    """The last layer whose receptive field is at most half of the image along both axes.

    If there is none, the first layer with spatial axes.
    """
    spatial = {
        name: sees
        for name, sees in seen(module, variables, images).items()
        if len([entry for entry in sees.axes if entry]) == 2
    }
    if not spatial:
        raise ValueError("no layer of this module has spatial axes")
    partial = [
        name
        for name, sees in spatial.items()
        if all(2 * f <= s for f, s in zip(sees.field(), images.shape[1:3], strict=True))
    ]
    return partial[-1] if partial else next(iter(spatial))


def _numbers(
    module: nn.Module,
    variables: Any,
    images: np.ndarray,
    layer: str,
    maps: Sequence[int],
    first: int,
) -> list[int]:
    shape = _maps_of(module, variables, images, layer)
    if len(shape) != 4:
        raise ValueError(
            f"{layer} is {shape[1:]} and has no spatial axes; give a layer with feature maps "
            "[N, H, W, C]"
        )
    for number in maps:
        if not 0 <= number < shape[-1]:
            raise ValueError(
                f"{layer} has no feature map {number}; its feature maps are 0 to {shape[-1] - 1}"
            )
    return list(maps) or list(range(min(first, shape[-1])))


def _maps_of(module: nn.Module, variables: Any, images: np.ndarray, layer: str) -> tuple[int, ...]:
    return layer_of(
        jax.eval_shape(lambda v, x: apply(module, v, x)[1], variables, images), layer
    ).shape


@functools.partial(jax.jit, static_argnames=("held", "layer", "numbers"))
def _peaks(
    held: Held, variables: Any, images: jax.Array, layer: str, numbers: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The strongest activations and their row-major indices, [N, M] each."""
    maps = apply(held.module, variables, images)[1][layer][..., jnp.array(numbers)]
    maps = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    return jnp.max(maps, axis=1), jnp.argmax(maps, axis=1)


@functools.partial(jax.jit, static_argnames=("held", "layer", "rule"))
def _project(
    held: Held,
    variables: Any,
    images: jax.Array,
    layer: str,
    numbers: jax.Array,
    places: jax.Array,
    rule: str,
) -> jax.Array:
    """One activation of each image, projected to pixels: [N, H, W, C]."""
    maps, down = jax.vjp(
        lambda images: apply(held.module, variables, images, rule)[1][layer], images
    )
    shape = maps.shape
    index = places * shape[-1] + numbers
    one = jax.nn.one_hot(index, maps[0].size, dtype=maps.dtype).reshape(shape)
    return down(maps * one)[0]


def _cut(
    module: nn.Module, variables: Any, layer: str, kept: dict[int, list[_Peak]], rule: str
) -> Patches:
    """Project the peaks of each feature map, and crop everything to the receptive fields."""
    image = next(iter(kept.values()))[0].image
    sees, shape = seen(module, variables, image[None])[layer], list(image.shape[:2])
    width = _maps_of(module, variables, image[None], layer)[2]
    jumps = {entry[0]: float(entry[1]) for entry in sees.axes if entry}
    columns: list[tuple[Any, ...]] = []
    for number, peaks in kept.items():
        images, places = (
            np.stack([peak.image for peak in peaks]),
            np.array([peak.place for peak in peaks]),
        )
        projected = np.asarray(
            _project(
                Held(module), variables, images, layer, np.full(len(peaks), number), places, rule
            )
        )
        positions = np.stack([places // width, places % width], axis=1)
        corners = np.zeros_like(positions)
        for axis, (low, high) in sees.extents.items():
            if high - low + 1 < image.shape[axis]:
                shape[axis] = int(high - low + 1)
                corners[:, axis] = np.ceil(low + jumps.get(axis, 0) * positions[:, axis])
        cuts = [
            np.stack([_window(*pair, shape) for pair in zip(arrays, corners, strict=True)])
            for arrays in (images, projected)
        ]
        columns.append(
            (
                [peak.value for peak in peaks],
                [peak.example for peak in peaks],
                positions,
                corners,
                *cuts,
            )
        )
    return Patches(
        layer, np.array(list(kept)), *(np.stack(column) for column in zip(*columns, strict=True))
    )


def _window(image: np.ndarray, corner: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Crop an image [H, W, C], with zeros outside of it."""
    cut = np.zeros((*shape, image.shape[-1]), image.dtype)
    (top, left), (height, width) = corner, shape
    inner = image[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
    cut[
        max(0, -top) : max(0, -top) + inner.shape[0], max(0, -left) : max(0, -left) + inner.shape[1]
    ] = inner
    return cut


def patches_figure(
    found: Patches, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), title: str = ""
) -> Any:
    """The paper's figure: for each feature map a square of projections next to one of patches.

    In a projection 0 is middle grey, and the value largest in magnitude is black or white. `mean`
    and `std` are those of the normalisation, which is undone in the patches.
    """
    from jaxconv.drawing.sheet import FAINT, new_sheet

    columns, count = min(3, len(found.maps)), found.patches.shape[1]
    side = int(np.ceil(count**0.5))
    tile = (_SQUARE + _GAP) / side - _GAP
    sheet = new_sheet(
        0.2 + 3.6 * columns, 0.75 + 1.95 * -(-len(found.maps) // columns), title or found.layer
    )
    said = (
        f"{found.layer}: what excites each feature map (left) in its strongest patches (right), "
        "and their activations"
    )
    sheet.text(0.2, 0.38, said, 8, color=FAINT)
    for n, number in enumerate(found.maps):
        x, y = 0.2 + 3.6 * (n % columns), 0.9 + 1.95 * (n // columns)
        values = found.values[n]
        sheet.text(x, y - 0.04, f"feature map {number}", 8, va="bottom")
        sheet.text(
            x + 2 * _SQUARE + 0.2,
            y - 0.04,
            f"{values[0]:.3g} to {values[-1]:.3g}",
            8,
            ha="right",
            va="bottom",
            color=FAINT,
        )
        largest = np.abs(found.projections[n]).max(axis=(1, 2, 3), keepdims=True)
        projections = 0.5 + 0.5 * found.projections[n] / np.where(largest > 0, largest, 1)
        deviation, middle = (
            np.array(per_channel(name, values, found.patches[n].shape[-1]), np.float32)
            for name, values in (("std", std), ("mean", mean))
        )
        patches = np.clip(found.patches[n] * deviation + middle, 0, 1)
        for k in range(count):
            left, top = x + (k % side) * (tile + _GAP), y + (k // side) * (tile + _GAP)
            for images, across in ((projections, 0), (patches, _SQUARE + 0.2)):
                picture = images[k] if images.shape[-1] == 3 else images[k].mean(-1)
                sheet.image(picture, (left + across, top, tile, tile), cmap="gray", vmin=0, vmax=1)
    return sheet.figure
