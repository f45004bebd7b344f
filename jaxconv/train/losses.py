"""Losses and the counts behind error rates, one value an example, float32."""

import jax
import jax.numpy as jnp


def cross_entropy(votes: jax.Array, label: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross entropy, in nats.

    Args:
      votes: [N, K] logits.
      label: [N] int32.
      label_smoothing: share of the target spread evenly over all K classes (Szegedy et al. 2016, arXiv:1512.00567, section 7).

    Returns:
      [N] float32.
    """
    log_probability = jax.nn.log_softmax(votes.astype(jnp.float32))
    true = jnp.take_along_axis(log_probability, label[:, None], axis=-1)[:, 0]
    return -(1 - label_smoothing) * true - label_smoothing * jnp.mean(log_probability, axis=-1)


def correct(votes: jax.Array, label: jax.Array) -> jax.Array:
    """1.0 where the highest of the votes [N, K] is the label's [N], else 0.0; among equal votes the first counts."""
    return (jnp.argmax(votes, axis=-1) == label).astype(jnp.float32)
