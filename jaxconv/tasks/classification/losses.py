"""Losses and the counts behind error rates, one float32 value per example.

A target is a label [N] int32, or the class shares [N, K] float32 that mixup and cutmix produce.
"""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, target: jax.Array, label_smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """Softmax cross entropy, in nats.

    Args:
      logits: [N, K] logits.
      target: [N] int32 or [N, K] float32.
      label_smoothing: share of the target spread evenly over all K classes (Szegedy et al. 2016,
        arXiv:1512.00567, section 7).

    Returns:
      [N] float32; NaN where a label is not one of the K classes.

    Raises:
      ValueError: the target has another shape.
    """
    check_target(logits, target)
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32))
    if target.ndim == logits.ndim:
        true = jnp.sum(target * log_probability, axis=-1)
    else:
        true = jnp.take_along_axis(log_probability, target[:, None], axis=-1)[:, 0]
    loss = -(1 - label_smoothing) * true - label_smoothing * jnp.mean(log_probability, axis=-1)
    return _known(loss, logits, target)


def binary_cross_entropy(
    logits: jax.Array,
    target: jax.Array,
    label_smoothing: float | jax.Array = 0.0,
    threshold: float = 0.0,
) -> jax.Array:
    """Binary cross entropy of each class separately, averaged over the classes, in nats.

    For several classes in one image, as with mixup and cutmix (Wightman et al. 2021,
    arXiv:2110.00476, section 2.3).

    Args:
      logits: [N, K] logits.
      target: [N] int32 or [N, K] float32.
      label_smoothing: as in `cross_entropy`.
      threshold: classes with a larger share count as fully present, the others as absent; 0 keeps
        the shares.

    Returns, Raises: as `cross_entropy`.
    """
    check_target(logits, target)
    logits = logits.astype(jnp.float32)
    shares = (
        target
        if target.ndim == logits.ndim
        else jax.nn.one_hot(target, logits.shape[-1], dtype=jnp.float32)
    )
    shares = shares * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    if threshold:
        shares = (shares > threshold).astype(jnp.float32)
    return _known(jnp.mean(jax.nn.softplus(logits) - shares * logits, axis=-1), logits, target)


def check_target(logits: jax.Array, target: jax.Array) -> None:
    """Raise ValueError unless the target of logits [N, K] is [N] integers or [N, K] shares."""
    whole = jnp.issubdtype(target.dtype, jnp.integer)
    if target.shape != logits.shape and not (whole and target.shape == logits.shape[:-1]):
        raise ValueError(
            f"the target is {target.dtype} {list(target.shape)} for logits {list(logits.shape)}; "
            f"it must be integer labels {list(logits.shape[:-1])} or class shares "
            f"{list(logits.shape)}"
        )


def _known(loss: jax.Array, logits: jax.Array, target: jax.Array) -> jax.Array:
    """The loss [N]; NaN for a label that is not a class (JAX would read -1 as the last one)."""
    if target.ndim == logits.ndim:
        return loss
    return jnp.where((target >= 0) & (target < logits.shape[-1]), loss, jnp.nan)


def correct(logits: jax.Array, target: jax.Array) -> jax.Array:
    """1.0 where the highest of the logits [N, K] is the target's class, else 0.0.

    The class of a target of shares [N, K] is the one with the largest. Among equal logits or shares
    the first counts.
    """
    label = jnp.argmax(target, axis=-1) if target.ndim == logits.ndim else target
    return (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)


def correct_within(logits: jax.Array, label: jax.Array, k: int) -> jax.Array:
    """1.0 where the class of the label [N] has one of the k highest of the logits [N, K], else 0.0.

    Among equal logits the first ranks higher.
    """
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1])[None] < label[:, None]
    # Not `logits > own`, which would count a NaN logit of the true class as the highest.
    ahead = ~(logits <= own) | ((logits == own) & before)
    return (jnp.sum(ahead, axis=-1) < k).astype(jnp.float32)


def average_logits(logits: jax.Array) -> jax.Array:
    """Logits [N, K] of an ensemble's averaged prediction, from its members' [M, N, K].

    They are the logarithms of the members' mean probabilities, so their softmax is that mean. For
    each example, members whose probabilities of it are not numbers are left out.
    """
    each = jax.nn.log_softmax(logits)
    left = ~jnp.any(jnp.isnan(each), axis=-1)
    count = jnp.sum(left.astype(jnp.float32), axis=0)
    total = jax.nn.logsumexp(jnp.where(left[..., None], each, -jnp.inf), axis=0)
    return total - jnp.log(count)[..., None]
