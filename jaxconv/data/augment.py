"""Augmentation, jitted and on the device: functions of (key, batch), in this order.

    pad_crop   pad by black pixels on each side, cut out a random window of the old size (He et al. 2015, section 4.2, with 4 pixels)
    flip       mirror left to right, with probability 1/2
    normalise  (x/255 - mean) / std, float32; while evaluating too

The randomness belongs to an example: its key is folded with its position in the global batch, so that any number of devices draws the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


def example_keys(key: jax.Array, position: jax.Array) -> jax.Array:
    """One key an example, from its position [B] in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, position)


def pad_crop(key: jax.Array, batch: Batch, pixels: int) -> Batch:
    """Move every image by up to `pixels` each way; what comes in from outside is black. `image` is [B, H, W, C]."""
    image = batch["image"]
    corners = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, 2 * pixels + 1))(example_keys(key, batch["position"]))
    padded = jnp.pad(image, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))

    def crop(padded_image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(padded_image, (corner[0], corner[1], 0), image.shape[1:])

    return batch | {"image": jax.vmap(crop)(padded, corners)}


def flip(key: jax.Array, batch: Batch) -> Batch:
    """Mirror every other image [B, H, W, C] left to right, by a coin an example."""
    heads = jax.vmap(jax.random.bernoulli)(example_keys(key, batch["position"]))
    image = batch["image"]
    return batch | {"image": jnp.where(heads.reshape(-1, 1, 1, 1), image[:, :, ::-1], image)}


def normalise(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """`image` [B, ..., C] -> float32, (x - mean) / std, where uint8 is divided by 255 first; one number serves all channels.

    Raises:
      ValueError: there are several numbers, but not one a channel.
    """
    image = batch["image"]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, image.shape[-1]):
            raise ValueError(f"data.{name} has {len(values)} numbers; the images have {image.shape[-1]} channels")
    scale = 1 / ((255 if image.dtype == jnp.uint8 else 1) * jnp.array(std, jnp.float32))
    offset = jnp.array(mean, jnp.float32) / jnp.array(std, jnp.float32)
    last = (1,) * (image.ndim - 1) + (-1,)
    return batch | {"image": image.astype(jnp.float32) * scale.reshape(last) - offset.reshape(last)}


def make_augment(config: Any) -> Callable[[jax.Array, Batch], Batch]:
    """The (key, batch) -> batch of training that the settings of `config.augment` and `config.data` ask for."""

    def augment(key: jax.Array, batch: Batch) -> Batch:
        if config.augment.pad_crop:
            batch = pad_crop(jax.random.fold_in(key, 0), batch, config.augment.pad_crop)
        if config.augment.flip:
            batch = flip(jax.random.fold_in(key, 1), batch)
        return normalise(batch, config.data.mean, config.data.std)

    return augment


def make_preprocess(config: Any) -> Callable[[Batch], Batch]:
    """The batch -> batch of evaluation: normalisation alone."""
    return lambda batch: normalise(batch, config.data.mean, config.data.std)
