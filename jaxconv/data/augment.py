"""Augmentation, jitted and on the device: optional functions of (key, batch), in this order.

    random_resized_crop | scale_jitter | large_scale_jitter | pad_crop
                     a part of the image, see data/geometry.py; images streamed from files are
                     cropped on the host, while they are read
    flip | alternating_flip
                     mirror left to right, with probability 1/2 or in every second epoch; flips and
                     crops, in data/spatial.py, also move the boxes, points and masks of the example
    mosaic           join four images of the batch into one, with their objects (data/mosaic.py)
    colour_jitter    change brightness, contrast, saturation and hue by random factors, in an order
                     drawn once per batch (torchvision's ColorJitter)
    grey | blur | solarise
                     take the colours, blur, invert light values, of a share of the images; all
                     that are on (data/contrastive.py)
    randaugment | trivial
                     random operations of data/colour.py (Cubuk et al. 2020, arXiv:1909.13719;
                     Mueller and Hutter 2021, arXiv:2103.10158)
    pca_colour       shift the colours along their principal components (Krizhevsky et al. 2012,
                     section 4.1)
    own              a custom function, see jaxconv/own.py
    normalise        (x/255 - mean) / std, float32; in evaluation too
    blank            what is padding by the target `seen` has the mean colour again
    erasing          replace a random box by the mean or by noise (Zhong et al. 2020,
                     arXiv:1708.04896)
    mixup | cutmix   mix the image and the target with those of another example of the batch (Zhang
                     et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899); if both are
                     on, a coin flip per batch chooses

Randomness is per example: the key is folded with the example's position in the global batch, so the
draws do not depend on the number of devices. What is drawn once per batch, the mixing and the order
of colour jitter, is the same on all devices. The example at position p is mixed with the one at
B - 1 - p of the global batch.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.data import colour, contrastive, mosaic, randaugment
from jaxconv.data.canvas import pad_colour, per_channel
from jaxconv.data.geometry import NO_MOVES, Moves
from jaxconv.data.interface import Batch, keys_of
from jaxconv.data.spatial import (
    Range,
    draw_boxes,
    flip,
    large_scale_jitter,
    mirror,
    pad_crop,
    random_resized_crop,
    scale_jitter,
    uniform,
)
from jaxconv.errors import UserError
from jaxconv.own import own

Step = Callable[[jax.Array, Batch], Batch]
# (batch, values -> values of the examples they are mixed with, share that is kept) -> new targets.
MixTargets = Callable[[Batch, Callable[[jax.Array], jax.Array], jax.Array], dict[str, jax.Array]]


def pca_colour(key: jax.Array, batch: Batch, deviation: float) -> Batch:
    """Shift the colours of each image [B, H, W, 3] along their principal components.

    The shifts are normal draws with this deviation. The result is float32, about 0 to 1.
    """
    amounts = deviation * jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys_of(key, batch))
    return batch | {"image": colour.pca_shift(_to_unit(batch["image"]), amounts)}


def _to_unit(image: jax.Array) -> jax.Array:
    """Images float32 on a scale from 0 to 1: uint8 is divided by 255."""
    image, scale = image.astype(jnp.float32), 255 if image.dtype == jnp.uint8 else 1
    return image / scale if scale > 1 else image


def normalise(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """`image` [B, ..., C] -> float32, (x - mean) / std, where uint8 is divided by 255 first.

    A single number applies to all channels, see `canvas.per_channel`.

    Raises:
      ValueError: there are several numbers, but not one per channel.
    """
    image = batch["image"]
    mean, std = (
        per_channel(name, values, image.shape[-1])
        for name, values in (("mean", mean), ("std", std))
    )
    scale = 1 / ((255 if image.dtype == jnp.uint8 else 1) * jnp.array(std, jnp.float32))
    offset = jnp.array(mean, jnp.float32) / jnp.array(std, jnp.float32)
    last = (1,) * (image.ndim - 1) + (-1,)
    return batch | {"image": image.astype(jnp.float32) * scale.reshape(last) - offset.reshape(last)}


def blank(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """Fill what is padding, by `seen` [B, 2], of normalised images [B, H, W, C].

    It becomes what `normalise` makes of the host's padding, see canvas.py.
    """
    if "seen" not in batch:
        return batch
    image = batch["image"]
    colour = pad_colour(mean, image.shape[-1]).reshape(1, 1, 1, -1)
    colour = normalise({"image": jnp.asarray(colour)}, mean, std)["image"]
    corner = jnp.zeros_like(batch["seen"])
    inside = _box_mask(jnp.concatenate([corner, batch["seen"]], axis=1), *image.shape[1:3])
    return batch | {"image": jnp.where(inside[..., None], image, colour)}


def erase(
    key: jax.Array, batch: Batch, probability: float, area: Range, ratio: Range, noise: bool
) -> Batch:
    """Replace a random box in each image [B, H, W, C] float32, with a probability.

    The box is filled with 0, the mean of normalised images, or with normal noise.
    """
    image = batch["image"]
    h, w = image.shape[1:3]
    keys = keys_of(key, batch)
    boxes, fits = draw_boxes(keys, h, w, area, ratio)
    inside = _box_mask(boxes, h, w) & (fits & (uniform(keys, "coin") < probability)).reshape(
        -1, 1, 1
    )
    value = (
        jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))(keys)
        if noise
        else jnp.zeros_like(image)
    )
    return batch | {"image": jnp.where(inside[..., None], value, image)}


def _box_mask(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Which pixels are inside the box [B, 4]: [B, H, W]."""
    top, left, h, w = (boxes[:, n].reshape(-1, 1, 1) for n in range(4))
    y, x = (
        jnp.arange(height, dtype=jnp.float32).reshape(1, -1, 1),
        jnp.arange(width, dtype=jnp.float32).reshape(1, 1, -1),
    )
    return (y >= top) & (y < top + h) & (x >= left) & (x < left + w)


def mix(
    key: jax.Array,
    batch: Batch,
    mix_targets: MixTargets,
    mixup: float,
    cutmix: float,
    axis_name: str | None = None,
) -> Batch:
    """Mix each image [B, H, W, C] float32 with the one at the opposite position of the batch.

    The share that is kept, lambda ~ Beta(alpha, alpha), is drawn once per batch. Mixup keeps this
    share of every pixel. Cutmix replaces a box with a share of 1 - lambda of the area; the box is
    clipped at the border, and the share that is kept is computed after clipping. The targets are
    mixed by `mix_targets`.

    Args:
      key, batch: of training.
      mix_targets: mixes the targets, see `Task.mix`.
      mixup, cutmix: their alphas; 0 is off; if both are on, a coin flip per batch chooses.
      axis_name: under `pmap`, the axis of the devices, which hold consecutive parts of the batch.
    """
    keys = [jax.random.fold_in(key, n) for n in range(5)]
    image = batch["image"]
    height, width = image.shape[1:3]
    kept = jnp.ones((1, height, width))
    if mixup:
        kept *= jax.random.beta(keys[0], mixup, mixup)
    if cutmix:
        cut = jnp.sqrt(1 - jax.random.beta(keys[1], cutmix, cutmix))
        middle = jax.random.uniform(keys[2], (2,))
        sides = [
            (jnp.floor(share * length), jnp.floor(cut * length))
            for share, length in zip(middle, (height, width), strict=True)
        ]
        (y, h), (x, w) = sides
        box = jnp.stack([y - jnp.floor(h / 2), x - jnp.floor(w / 2), h, w]).reshape(1, 4)
        outside = 1 - _box_mask(box, height, width).astype(jnp.float32)
        kept = jnp.where(jax.random.bernoulli(keys[3]), kept, outside) if mixup else outside
    opposite = partial(_opposite, axis_name=axis_name)
    targets = mix_targets(batch | {"kept": kept}, opposite, jnp.mean(kept))
    kept = kept[..., None]
    return batch | {"image": kept * image + (1 - kept) * opposite(image)} | targets


def _opposite(x: jax.Array, axis_name: str | None) -> jax.Array:
    """For the example at each position p of the global batch, the one at B - 1 - p."""
    if axis_name is not None:
        last = jax.lax.axis_size(axis_name) - 1
        x = jax.lax.ppermute(x, axis_name, [(n, last - n) for n in range(last + 1)])
    return x[::-1]


def make_augment(
    config: Any,
    mix_targets: MixTargets,
    axis_name: str | None = None,
    cropped: bool = False,
    moves: Moves = NO_MOVES,
) -> Step:
    """The (key, batch) -> batch of training, from `config.augment` and `config.data`.

    Args:
      config: the whole config.
      mix_targets: mixes the targets, see `Task.mix`.
      axis_name: under `pmap`, the axis of the devices.
      cropped: the host has already cropped the images (random_resized_crop, scale_jitter).
      moves: the kind of each target that moves with its image, by its name in the batch; see
        data/geometry.py.

    The batch holds `image` [B, H, W, C], uint8 or floating-point from 0 to 1, `label` [B] and
    `position` [B] in the global batch; for `alternating_flip`, also `mirrored` [B] bool.

    Raises:
      UserError: there are such targets, and a setting moves only the image.
    """
    if moves:
        _check_that_all_moves(config.augment, moves)
    steps = list(_steps(config, mix_targets, axis_name, cropped, moves))

    def augment(key: jax.Array, batch: Batch) -> Batch:
        for name, step in steps:
            batch = step(jax.random.fold_in(key, zlib.crc32(name.encode())), batch)
        return batch

    return augment


def _check_that_all_moves(settings: Any, moves: Moves) -> None:
    """Raise UserError for a setting that moves the image but not these targets."""
    for name, value in (
        ("randaugment.layers", settings.randaugment.layers),
        ("trivial", settings.trivial),
    ):
        if value:
            raise UserError(
                f"config.augment.{name} is {value}; it rotates and shears the image, but not its "
                f"{', '.join(moves)}: turn it off, and use flip, pad_crop, scale_jitter, "
                "random_resized_crop, large_scale_jitter or colour_jitter"
            )
    others = [name for name in moves if name not in (*mosaic.OF_OBJECTS, mosaic.MASKS)]
    if settings.mosaic and others:
        raise UserError(
            f"config.augment.mosaic is {settings.mosaic}; it joins objects, and the examples have "
            f"{', '.join(others)}: leave it at 0"
        )


def _steps(
    config: Any, mix_targets: MixTargets, axis_name: str | None, cropped: bool, moves: Moves
) -> Iterator[tuple[str, Callable[[jax.Array, Batch], Batch]]]:
    """Name and function of each enabled augmentation, in the module's order."""
    settings, mean = config.augment, config.data.mean
    kept = settings.kept_objects
    if settings.random_resized_crop.scale and not cropped:
        crop = partial(random_resized_crop, moves=moves, kept=kept, **settings.random_resized_crop)
        yield "random_resized_crop", crop
    if settings.scale_jitter and not cropped:
        sides = settings.scale_jitter
        yield "scale_jitter", partial(scale_jitter, sides=sides, moves=moves, kept=kept)
    if settings.large_scale_jitter and not cropped:
        factors = settings.large_scale_jitter
        large = partial(large_scale_jitter, factors=factors, moves=moves, kept=kept)
        yield "large_scale_jitter", large
    if settings.pad_crop:
        pad = {"pixels": settings.pad_crop, "reflect": settings.padding == "reflect"}
        yield "pad_crop", partial(pad_crop, **pad, moves=moves, kept=kept)
    if settings.flip:
        yield "flip", partial(flip, moves=moves)
    if settings.alternating_flip:
        yield "alternating_flip", lambda _, batch: mirror(batch, batch["mirrored"], moves)
    if settings.mosaic:
        how = {"probability": settings.mosaic, "kept": kept, "axis_name": axis_name}
        yield "mosaic", partial(_mosaic, mean=mean, moves=moves, **how)
    jitter = settings.colour_jitter
    if jitter.brightness or jitter.contrast or jitter.saturation or jitter.hue:
        yield "colour_jitter", partial(randaugment.colour_jitter, **settings.colour_jitter)
    if settings.grey:
        yield "grey", partial(contrastive.grey, probability=settings.grey)
    if settings.blur.probability:
        yield "blur", partial(contrastive.blur, **settings.blur)
    if settings.solarise.probability:
        yield "solarise", partial(contrastive.solarise, **settings.solarise)
    if settings.randaugment.layers:
        yield (
            "randaugment",
            partial(
                randaugment.randaugment,
                mean=mean,
                interpolation=settings.interpolation,
                **settings.randaugment,
            ),
        )
    if settings.trivial:
        yield "trivial", partial(randaugment.trivial, interpolation=settings.interpolation)
    if settings.pca_colour:
        yield "pca_colour", partial(pca_colour, deviation=settings.pca_colour)
    if settings.own:
        yield "own", partial(_own, function=own(settings.own, "config.augment.own"))
    yield "normalise", lambda key, batch: normalise(batch, mean, config.data.std)
    yield "blank", lambda key, batch: blank(batch, mean, config.data.std)
    if settings.erasing.probability:
        yield "erasing", partial(erase, **settings.erasing)
    if settings.mixup or settings.cutmix:
        yield (
            "mix",
            partial(
                mix,
                mix_targets=mix_targets,
                mixup=settings.mixup,
                cutmix=settings.cutmix,
                axis_name=axis_name,
            ),
        )


def _mosaic(key: jax.Array, batch: Batch, mean: Sequence[float], **settings: Any) -> Batch:
    colour = pad_colour(mean, batch["image"].shape[-1]).tolist()
    return mosaic.mosaic(key, batch, colour=colour, **settings)


def _own(key: jax.Array, batch: Batch, function: Step) -> Batch:
    """Apply a custom function to images on a scale from 0 to 1: bytes, or pca_colour's output."""
    batch = function(key, batch | {"image": _to_unit(batch["image"])})
    return batch | {"image": batch["image"].astype(jnp.float32)}


def make_preprocess(config: Any) -> Callable[[Batch], Batch]:
    """The batch -> batch of evaluation: only normalisation."""
    return lambda batch: normalise(batch, config.data.mean, config.data.std)
