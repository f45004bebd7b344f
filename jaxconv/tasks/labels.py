"""Losses and metrics of logits [B, K] against labels, as functions of (outputs, batch).

objective(loss)     for training: ([B] loss, {"top1": [B]})
LabelMeasure(...)   for evaluation: sums over the examples, and the logits of each
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxconv.data.interface import SEVERAL
from jaxconv.tasks.classification.losses import (
    average_logits,
    correct,
    correct_within,
    cross_entropy,
)
from jaxconv.tasks.task import Batch, masked_sum

__all__ = [
    "LabelLoss",
    "LabelMeasure",
    "best_label",
    "cross_entropy",
    "mix_labels",
    "objective",
    "target_of",
]

# (logits [N, K], label [N] or shares [N, K]) -> [N].
LabelLoss = Callable[[jax.Array, jax.Array], jax.Array]

# The k of ImageNet's second error rate, measured when there are more classes.
TOP = 5


def target_of(batch: Batch) -> jax.Array:
    """The class shares [B, K] of a mixed batch, or else its labels [B]; raises as `label_of`."""
    return batch["target"] if "target" in batch else label_of(batch)


def label_of(batch: Batch) -> jax.Array:
    """The labels [B] of a batch.

    Raises:
      ValueError: it has none.
    """
    if "label" not in batch:
        raise ValueError(f"the batch has {', '.join(batch)}; it must have `label`, [B] integers")
    return batch["label"]


def best_label(logits: jax.Array, batch: Batch) -> jax.Array:
    """The labels [B] of a batch; of several that are right, the one with the highest logit.

    So a prediction is right if it is any of them (Beyer et al. 2020, arXiv:2006.07159, section 4).
    """
    if SEVERAL not in batch:
        return label_of(batch)
    right = jnp.any(jax.nn.one_hot(batch[SEVERAL], logits.shape[-1], dtype=bool), axis=1)
    return jnp.argmax(jnp.where(right, logits, -jnp.inf), axis=-1).astype(jnp.int32)


def objective(
    loss: LabelLoss = cross_entropy,
) -> Callable[[jax.Array, Batch], tuple[jax.Array, dict[str, jax.Array]]]:
    """The loss and metrics of a training step: (logits, batch) -> ([B], {"top1": [B]}).

    Where images are mixed, `top1` counts the class with the largest share.
    """

    def measured(logits: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        target = target_of(batch)
        return loss(logits, target), {"top1": correct(logits, target)}

    return measured


@functools.cache
def mix_labels(num_classes: int) -> Callable[..., dict[str, jax.Array]]:
    """A function that mixes labels, see `Task.mix`, into `target` [B, K] float32, class shares."""

    def mix(
        batch: Batch, opposite: Callable[[jax.Array], jax.Array], share: jax.Array
    ) -> dict[str, jax.Array]:
        label = jax.nn.one_hot(batch["label"], num_classes, dtype=jnp.float32)
        return {"target": share * label + (1 - share) * opposite(label)}

    return mix


class LabelMeasure:
    """What an evaluation step measures; the methods are those of `Task`.

    Args:
      loss: (logits [N, K], label [N]) -> [N].
      metrics: further metrics by name.
    """

    def __init__(
        self, loss: LabelLoss = cross_entropy, metrics: Mapping[str, LabelLoss] | None = None
    ):
        self._loss, self._metrics = loss, metrics or {}

    def measured(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """`loss`, `top1`, `top5` for more than 5 classes, and the metrics, [B] each."""
        label = best_label(logits, batch)
        values = {"loss": self._loss(logits, label), "top1": correct(logits, label)}
        if logits.shape[-1] > TOP:
            values[f"top{TOP}"] = correct_within(logits, label, TOP)
        return values | {name: metric(logits, label) for name, metric in self._metrics.items()}

    def sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """The sums of `measured` over the examples whose `mask` is not 0."""
        values = self.measured(logits, batch)
        return {name: masked_sum(value, batch["mask"]) for name, value in values.items()}

    def keep(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """`logits` [B, K] and `label` [B]."""
        return {"logits": logits, "label": best_label(logits, batch)}

    def combine(self, logits: Any) -> Any:
        """The logarithms [B, K] of the mean probabilities of several logits [M, B, K]."""
        return average_logits(logits)
