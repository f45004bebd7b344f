"""The augmentations that SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A) and BYOL (Grill et
al. 2020, arXiv:2006.07733, appendix B) add to crops and colour jitter: random grey, blur, solarise.

All are (key, batch) -> batch, each on an image with a probability, for images [B, H, W, C] uint8 or
floating-point from 0 to 1, which keep their type. SimCLR's are 0.2 grey and 0.5 blur; BYOL's second
view has 0.1 blur and 0.2 solarise.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxconv.data import colour
from jaxconv.data.interface import Batch, keys_of
from jaxconv.data.spatial import Range, uniform

# Standard deviations that a blur reaches; beyond are 0.3 % of its weights.
_REACH = 3


def grey(key: jax.Array, batch: Batch, probability: float) -> Batch:
    """Take the colours of images [B, H, W, 3], whose channels become their luminance."""
    image = batch["image"]
    levels = colour.to_levels(image)
    chosen = _chosen(key, batch, probability)
    new = jnp.where(chosen, jnp.broadcast_to(colour.grey(levels), levels.shape), levels)
    return batch | {"image": colour.from_levels(new, levels, image)}


def blur(key: jax.Array, batch: Batch, probability: float, sigma: Range) -> Batch:
    """Blur images [B, H, W, C] by a Gaussian whose deviation is drawn from `sigma`, in pixels.

    Borders are mirrored, as torchvision's are.
    """
    image = batch["image"]
    low, high = sigma
    deviation = uniform(keys_of(key, batch), "sigma", low, high)
    radius = min(math.ceil(_REACH * sigma[1]), min(image.shape[1:3]) - 1)
    new = gaussian_blur(image.astype(jnp.float32), deviation, radius)
    if image.dtype == jnp.uint8:
        new = jnp.clip(jnp.round(new), 0, 255)
    new = new.astype(image.dtype)
    return batch | {"image": jnp.where(_chosen(key, batch, probability), new, image)}


def gaussian_blur(image: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Images [B, H, W, C] float32 blurred by a Gaussian of deviation sigma [B] pixels, cut off at
    the radius, which must be less than the sides.
    """
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square(offsets.reshape(1, -1) / sigma.reshape(-1, 1)))
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    for axis in (1, 2):
        size, border = image.shape[axis], [(0, 0)] * 4
        border[axis] = (radius, radius)
        padded = jnp.pad(image, border, mode="reflect")
        # Shifted sums, since every image has weights of its own.
        shifted = (
            colour.each(weights[:, n]) * jax.lax.slice_in_dim(padded, n, n + size, axis=axis)
            for n in range(2 * radius + 1)
        )
        image = functools.reduce(jnp.add, shifted)
    return image


def solarise(key: jax.Array, batch: Batch, probability: float, threshold: float) -> Batch:
    """Invert the values of images [B, H, W, C] that are at least a share `threshold` of white."""
    image = batch["image"]
    white = 255 if image.dtype == jnp.uint8 else 1
    light = image.astype(jnp.float32) >= threshold * white
    inverted = jnp.where(light, jnp.array(white, image.dtype) - image, image)
    return batch | {"image": jnp.where(_chosen(key, batch, probability), inverted, image)}


def _chosen(key: jax.Array, batch: Batch, probability: float) -> jax.Array:
    """Which images [B, 1, 1, 1] it is done to."""
    return colour.each(uniform(keys_of(key, batch), "coin") < probability)
