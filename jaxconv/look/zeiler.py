"""What excites a feature map most, and what of it does (Zeiler and Fergus 2014, arXiv:1311.2901, Figure 2).

For each feature map of a layer the images of a set are ranked by their strongest activation, each image standing for one patch only. Of
the strongest nine, everything in the layer but that activation is set to zero, and the deconvnet carries it down to the pixels. Image and
projection are cut to the activation's receptive field.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.look.inside import apply, layer_of, seen


@dataclasses.dataclass(frozen=True)
class Patches:
    """The patches that excite M feature maps most, K each, strongest first.

    Attributes:
      layer: its name.
      maps: [M], the numbers of the feature maps.
      values: [M, K], the activations.
      examples: [M, K], which example of the set; counted from 0.
      positions: [M, K, 2], row and column in the feature map.
      corners: [M, K, 2], the pixel at which the receptive field begins, negative where it begins in the padding; 0 along an axis of the
        image that it covers all of.
      patches, projections: [M, K, h, w, C], of the receptive field. Beyond the image they are 0.
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
    layer: str,
    maps: Sequence[int] = (),
    most: int = 9,
    rule: str = "deconvnet",
) -> Patches:
    """Find them over a set of any size, in one pass; it keeps M * K images.

    Args:
      batches: of images [N, H, W, C], as the network gets them.
      layer: one of `inside.activations`.
      maps: numbers of the feature maps; the first 9 by default.
      most: K; where the set has fewer examples, so many.
      rule: how the projection passes what rectifies, see `backward.RULES`.

    Raises:
      ValueError: no such layer, feature map or rule; the layer has no positions; there are no images, or they are not [N, H, W, C].
    """
    if most < 1:
        raise ValueError(f"most is {most}; it must be at least 1")
    kept: dict[int, list[_Peak]] = {}
    count = 0
    for images in batches:
        images = np.asarray(images)
        if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"patches are of images [N, H, W, C] of floating point; these are {images.dtype} {images.shape}")
        kept = kept or {number: [] for number in _numbers(module, variables, images, layer, maps)}
        values, places = map(np.asarray, _peaks(module, variables, images, layer, tuple(kept)))
        for peaks, value, place in zip(kept.values(), values.T, places.T, strict=True):
            strongest = np.argsort(-value, kind="stable")[:most]
            peaks += [_Peak(float(value[n]), count + int(n), int(place[n]), images[n]) for n in strongest]
            # Where two are as strong, the earlier one.
            peaks.sort(key=lambda peak: (-peak.value, peak.example))
            del peaks[most:]
        count += len(images)
    if not count:
        raise ValueError("there are no images to find patches in")
    return _cut(module, variables, layer, kept, rule)


@dataclasses.dataclass(frozen=True)
class _Peak:
    """The strongest activation of a feature map in one image; `place` counts its positions row by row."""

    value: float
    example: int
    place: int
    image: np.ndarray


def _numbers(module: nn.Module, variables: Any, images: np.ndarray, layer: str, maps: Sequence[int]) -> list[int]:
    shape = _maps_of(module, variables, images, layer)
    if len(shape) != 4:
        raise ValueError(f"{layer} is {shape[1:]} and has no positions; name a layer of feature maps [N, H, W, C]")
    for number in maps:
        if not 0 <= number < shape[-1]:
            raise ValueError(f"{layer} has no feature map {number}; it has 0 to {shape[-1] - 1}")
    return list(maps) or list(range(min(9, shape[-1])))


def _maps_of(module: nn.Module, variables: Any, images: np.ndarray, layer: str) -> tuple[int, ...]:
    return layer_of(jax.eval_shape(lambda v, x: apply(module, v, x)[1], variables, images), layer).shape


@functools.partial(jax.jit, static_argnames=("module", "layer", "numbers"))
def _peaks(module: nn.Module, variables: Any, images: jax.Array, layer: str, numbers: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Strongest activation and its place, [N, M] each."""
    maps = apply(module, variables, images)[1][layer][..., jnp.array(numbers)]
    maps = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    return jnp.max(maps, axis=1), jnp.argmax(maps, axis=1)


@functools.partial(jax.jit, static_argnames=("module", "layer", "rule"))
def _project(
    module: nn.Module, variables: Any, images: jax.Array, layer: str, numbers: jax.Array, places: jax.Array, rule: str
) -> jax.Array:
    """One activation of each image [N, ...], carried down to its pixels: [N, H, W, C]."""
    maps, down = jax.vjp(lambda images: apply(module, variables, images, rule)[1][layer], images)
    shape = maps.shape
    index = places * shape[-1] + numbers
    one = jax.nn.one_hot(index, maps[0].size, dtype=maps.dtype).reshape(shape)
    return down(maps * one)[0]


def _cut(module: nn.Module, variables: Any, layer: str, kept: dict[int, list[_Peak]], rule: str) -> Patches:
    """Project the peaks of each feature map, and cut images and projections to their receptive fields."""
    image = next(iter(kept.values()))[0].image
    sees, shape = seen(module, variables, image[None])[layer], list(image.shape[:2])
    width = _maps_of(module, variables, image[None], layer)[2]
    jumps = {entry[0]: float(entry[1]) for entry in sees.axes if entry}
    columns: list[tuple[Any, ...]] = []
    for number, peaks in kept.items():
        images, places = np.stack([peak.image for peak in peaks]), np.array([peak.place for peak in peaks])
        projected = np.asarray(_project(module, variables, images, layer, np.full(len(peaks), number), places, rule))
        positions = np.stack([places // width, places % width], axis=1)
        corners = np.zeros_like(positions)
        for axis, (low, high) in sees.extents.items():
            if high - low + 1 < image.shape[axis]:
                shape[axis] = int(high - low + 1)
                corners[:, axis] = np.ceil(low + jumps.get(axis, 0) * positions[:, axis])
        cuts = [np.stack([_window(*pair, shape) for pair in zip(arrays, corners, strict=True)]) for arrays in (images, projected)]
        columns.append(([peak.value for peak in peaks], [peak.example for peak in peaks], positions, corners, *cuts))
    return Patches(layer, np.array(list(kept)), *(np.stack(column) for column in zip(*columns, strict=True)))


def _window(image: np.ndarray, corner: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Part of an image [H, W, C]; zeros where it reaches beyond."""
    cut = np.zeros((*shape, image.shape[-1]), image.dtype)
    (top, left), (height, width) = corner, shape
    inner = image[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
    cut[max(0, -top) : max(0, -top) + inner.shape[0], max(0, -left) : max(0, -left) + inner.shape[1]] = inner
    return cut


def patches_figure(found: Patches, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> Any:
    """A figure as the paper's: for each feature map a square of projections, and the square of the patches to its right.

    A projection has 0 as middle grey, and its largest value as black or white. `mean` and `std` are of the normalisation, which is undone
    in the patches.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(found.maps))
    rows = -(-len(found.maps) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.35 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{found.layer}: what its feature maps look for (left), in the patches that excite them most (right)", parse_math=False)
    panels = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
    for axis in panels:
        axis.set_axis_off()
    for n, number in enumerate(found.maps):
        largest = np.abs(found.projections[n]).max(axis=(1, 2, 3), keepdims=True)
        projections = 0.5 + 0.5 * found.projections[n] / np.where(largest > 0, largest, 1)
        patches = np.clip(found.patches[n] * np.array(std, np.float32) + np.array(mean, np.float32), 0, 1)
        for axis, images in zip(panels[2 * n : 2 * n + 2], (projections, patches), strict=True):
            axis.imshow(_square(images), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        values = found.values[n]
        panels[2 * n].set_title(f"map {number}", fontsize="small", loc="left")
        panels[2 * n + 1].set_title(f"{values[-1]:.3g} to {values[0]:.3g}", fontsize="small", loc="right")
    return figure


def _square(images: np.ndarray) -> np.ndarray:
    """Images [K, h, w, C] laid out row by row in a square, with white between: [H, W, 3]."""
    side = int(np.ceil(len(images) ** 0.5))
    gap = max(1, images.shape[1] // 20)
    shown = images if images.shape[-1] == 3 else np.repeat(images.mean(-1, keepdims=True), 3, axis=-1)
    shown = np.pad(shown, [(0, side * side - len(shown)), (0, gap), (0, gap), (0, 0)], constant_values=1)
    height, width = shown.shape[1:3]
    square = shown.reshape(side, side, height, width, 3).swapaxes(1, 2).reshape(side * height, side * width, 3)
    return square[:-gap, :-gap]
