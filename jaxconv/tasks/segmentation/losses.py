"""Losses of logits for each pixel, and the confusion of truth and prediction.

    softmax        cross entropy, averaged over the pixels of an example that count
    dice           1 - the soft Dice coefficient, averaged over the classes (Milletari et al. 2016,
                   arXiv:1606.04797)
    softmax_dice   their sum (nnU-Net, Isensee et al. 2021, doi:10.1038/s41592-020-01008-z)

The truth is [N, *spatial] of class indices; pixels of `IGNORED` do not count.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

IGNORED = 255

# (logits [N, *spatial, K], truth [N, *spatial]) -> [N].
PixelLoss = Callable[[jax.Array, jax.Array], jax.Array]


def shares_of(truth: jax.Array, classes: int) -> jax.Array:
    """[N, *spatial] -> [N, pixels, K] float32: 1 at the class; zeros for ignored pixels."""
    flat = truth.reshape(truth.shape[0], -1).astype(jnp.int32)
    return jax.nn.one_hot(flat, classes, dtype=jnp.float32)


def flattened(logits: jax.Array) -> jax.Array:
    """[N, *spatial, K] -> [N, pixels, K] float32."""
    return logits.reshape(logits.shape[0], -1, logits.shape[-1]).astype(jnp.float32)


def pixel_cross_entropy(
    logits: jax.Array,
    truth: jax.Array,
    smoothing: float | jax.Array = 0.0,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The cross entropy [N], a mean over the pixels that count; 0 where none does.

    Args:
      logits: [N, *spatial, K].
      truth: [N, *spatial].
      smoothing: share of the target spread evenly over all classes.
      weights: [K] of the classes; each pixel's value is multiplied by its class's.
    """
    shares, logarithms = shares_of(truth, logits.shape[-1]), jax.nn.log_softmax(flattened(logits))
    counts = jnp.sum(shares, axis=-1)
    target = (1 - smoothing) * shares + smoothing * (counts / logits.shape[-1])[..., None]
    each = -jnp.sum(target * logarithms, axis=-1)
    if weights is not None:
        each = each * (shares @ weights)
    return jnp.sum(each, axis=-1) / jnp.maximum(jnp.sum(counts, axis=-1), 1.0)


def dice(logits: jax.Array, truth: jax.Array) -> jax.Array:
    """The soft Dice loss [N] over the pixels that count, see the module.

    One pixel is added to what both have and to the mean of what each has, so that a class that is
    in neither has a coefficient of 1. (optax 0.2.8's `dice_loss` takes no ignored pixels, and no
    probabilities under `jit`.)

    Args:
      logits: [N, *spatial, K].
      truth: [N, *spatial].
    """
    shares = shares_of(truth, logits.shape[-1])
    probabilities = jax.nn.softmax(flattened(logits)) * jnp.sum(shares, axis=-1, keepdims=True)
    both = jnp.sum(probabilities * shares, axis=1)
    each = (jnp.sum(probabilities, axis=1) + jnp.sum(shares, axis=1)) / 2
    return 1 - jnp.mean((both + 1) / (each + 1), axis=-1)


def confusion(logits: jax.Array, truth: jax.Array) -> jax.Array:
    """How many pixels of each class are taken for each: [N, K (truth), K (prediction)] int32."""
    classes = logits.shape[-1]
    predicted = shares_of(jnp.argmax(logits, axis=-1), classes)
    counts = jnp.einsum("npk,npl->nkl", shares_of(truth, classes), predicted)
    return counts.astype(jnp.int32)
