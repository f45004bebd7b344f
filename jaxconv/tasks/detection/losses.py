"""Losses of detectors, one number for each anchor or region; the sum's divisor is the detector's.

    focal_loss   classes, each by a sigmoid    RetinaNet, FCOS (Lin et al. 2017, arXiv:1708.02002)
    smooth_l1    codes of boxes                R-CNN, SSD; Fast R-CNN (Girshick 2015,
                                               arXiv:1504.08083, equation 3)
    giou_loss    boxes                         FCOS; Rezatofighi et al. 2019, arXiv:1902.09630

Cross entropies are optax's. All are computed in float32.
"""

import jax
import jax.numpy as jnp
import optax

from jaxconv.tasks.detection.boxes import giou


def focal_loss(
    logits: jax.Array, classes: jax.Array, alpha: float = 0.25, gamma: float = 2
) -> jax.Array:
    """Focal loss of logits [..., K] and classes [...]: [...], the sum over K sigmoids.

    Args:
      classes: integers; those outside of 0 to K - 1 are background, such as -1.
      alpha: weight of positives; 1 - alpha is that of negatives.
      gamma: power of the missing probability, 0 for binary cross entropy.
    """
    logits = logits.astype(jnp.float32)
    wanted = jax.nn.one_hot(classes, logits.shape[-1], dtype=jnp.float32)
    return jnp.sum(optax.sigmoid_focal_loss(logits, wanted, alpha=alpha, gamma=gamma), axis=-1)


def smooth_l1(predictions: jax.Array, targets: jax.Array, beta: float = 1.0) -> jax.Array:
    """Smooth L1 of codes [..., 4]: [...], the sum of the four.

    Args:
      beta: below this difference d it is d^2 / (2 beta), else |d| - beta / 2; 0 for L1.
    """
    predictions, targets = predictions.astype(jnp.float32), targets.astype(jnp.float32)
    if beta:
        each = optax.huber_loss(predictions, targets, delta=beta) / beta
    else:
        each = jnp.abs(predictions - targets)
    return jnp.sum(each, axis=-1)


def giou_loss(boxes: jax.Array, truths: jax.Array) -> jax.Array:
    """1 - generalized IoU of boxes [..., 4] and truths [..., 4]: [...], from 0 to 2."""
    return 1 - giou(boxes.astype(jnp.float32), truths.astype(jnp.float32))
