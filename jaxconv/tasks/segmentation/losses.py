"""Losses of logits for each pixel, and the confusion of truth and prediction.

    softmax        cross entropy, averaged over the pixels of an example that count
    dice           1 - the soft Dice coefficient, averaged over the classes (Milletari et al. 2016,
                   arXiv:1606.04797)
    softmax_dice   their sum (nnU-Net, Isensee et al. 2021, doi:10.1038/s41592-020-01008-z)

The truth is [N, *spatial] of class indices; pixels of `IGNORED` do not count.
"""

from collections.abc import Callable, Sequence

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


def at_own_size(logits: jax.Array, sizes: jax.Array, canvas: Sequence[int]) -> jax.Array:
    """Resize logits linearly, as `layers.resize`, each example's to a size of its own.

    Args:
      logits: [N, h, w, K].
      sizes: [N, 2] int32, height and width of each example.
      canvas: (H, W), no less than any of them; what lies beyond repeats the border.

    Returns:
      [N, H, W, K] float32.
    """
    rows, columns = (
        _linear(old, sizes[:, axis], new)
        for axis, (old, new) in enumerate(zip(logits.shape[1:3], canvas, strict=True))
    )
    exact = jax.lax.Precision.HIGHEST
    found = jnp.einsum("nyh,nhwk->nywk", rows, logits.astype(jnp.float32), precision=exact)
    return jnp.einsum("nxw,nywk->nyxk", columns, found, precision=exact)


def _linear(old: int, sizes: jax.Array, new: int) -> jax.Array:
    """Weights [N, new, old] of the old pixels in each new one, for sides resized to `sizes` [N]."""
    share = old / sizes.astype(jnp.float32)
    centers = (jnp.arange(new, dtype=jnp.float32)[None] + 0.5) * share[:, None] - 0.5
    distance = (
        jnp.clip(centers, 0, old - 1)[..., None] - jnp.arange(old, dtype=jnp.float32)[None, None]
    )
    return jnp.maximum(0, 1 - jnp.abs(distance))


def only_within(truth: jax.Array, sizes: jax.Array) -> jax.Array:
    """Masks [N, H, W], `IGNORED` beyond the sizes [N, 2] of their examples."""
    down = jnp.arange(truth.shape[1])[None, :, None] < sizes[:, 0, None, None]
    across = jnp.arange(truth.shape[2])[None, None, :] < sizes[:, 1, None, None]
    return jnp.where(down & across, truth, jnp.asarray(IGNORED, truth.dtype))


def confusion(logits: jax.Array, truth: jax.Array) -> jax.Array:
    """How many pixels of each class are taken for each: [N, K (truth), K (prediction)] int32."""
    classes = logits.shape[-1]
    predicted = shares_of(jnp.argmax(logits, axis=-1), classes)
    counts = jnp.einsum("npk,npl->nkl", shares_of(truth, classes), predicted)
    return counts.astype(jnp.int32)
