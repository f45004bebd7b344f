"""Losses [B] of a student's logits [B, K] against those of a teacher, which has no gradient."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.tasks.classification.losses import cross_entropy


def soft(logits: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
    """T^2 KL(teacher || student) of the softmax of both at temperature T, [B] float32.

    The factor keeps the size of the gradients as T changes (Hinton et al. 2015, arXiv:1503.02531,
    section 2).
    """
    said = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    true = jax.nn.log_softmax(lax.stop_gradient(taught).astype(jnp.float32) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(true) * (true - said), axis=-1)


def hard(logits: jax.Array, taught: jax.Array) -> jax.Array:
    """The cross entropy with the teacher's decision as the label, [B] float32 (Touvron et al. 2021,
    arXiv:2012.12877, section 4).
    """
    return cross_entropy(logits, jnp.argmax(lax.stop_gradient(taught), axis=-1))
