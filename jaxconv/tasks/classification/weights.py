"""Weights of the classes in the training loss, from `config.loss.class_weights`.

The loss of a batch is the mean over its examples of weight x loss, as with Keras's `class_weight`:
it is divided by the number of examples, not by the sum of their weights, as PyTorch's
CrossEntropyLoss does. So it is the same for any split of the batch over devices and parts.
"""

import math
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.errors import UserError, nearest

_KEY = "config.loss.class_weights"


def class_weights(
    text: str, class_names: Sequence[str], counts: Sequence[int] | None = None
) -> np.ndarray:
    """The weights [K] float32 of the classes.

    Args:
      text: `1,2.5`: one number per class; `cat:2,dog:0.5`: by name, 1 for the others; or
        `balanced`: N / (classes that have examples x examples of the class).
      class_names: K names.
      counts: [K] training examples of each class, for `balanced`.

    Raises:
      UserError: the text has another form, names no class, or has a negative or infinite weight.
    """
    if text == "balanced":
        if counts is None:
            raise UserError(
                f"{_KEY} is 'balanced', which needs the labels of the training examples"
            )
        found = np.asarray(counts, np.float64)
        shares = found.sum() / (np.count_nonzero(found) * np.maximum(found, 1))
        return np.where(found > 0, shares, 1).astype(np.float32)
    by_name = re.findall(r"(.+?):([^:,]+)(?:,|$)", text)
    if by_name and "".join(f"{name}:{value}," for name, value in by_name).rstrip(",") == text:
        weights = dict.fromkeys(class_names, 1.0)
        for name, value in by_name:
            if name not in weights:
                raise UserError(
                    f"{_KEY} names {name!r}, which is not a class{nearest(name, class_names)}; "
                    f"there are {len(class_names)}, such as {class_names[0]}"
                )
            weights[name] = _number(value, text)
        values = [*weights.values()]
    else:
        values = [_number(value, text) for value in text.split(",")]
    if len(values) != len(class_names):
        raise UserError(
            f"{_KEY} has {len(values)} numbers, but there are {len(class_names)} classes; give one "
            "per class, or NAME:WEIGHT,..."
        )
    if not any(values):
        raise UserError(f"{_KEY} is {text}, so no class counts; give at least one weight above 0")
    return np.array(values, np.float32)


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(
            f"{_KEY} is {text!r}, and {value!r} is not a number of at least 0; give 1,2.5 or "
            "cat:2,dog:0.5 or balanced"
        )
    return number


def weighted(
    loss: Callable[[jax.Array, jax.Array], jax.Array], weights: np.ndarray
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss [N] of each example times the weight of its class.

    The weight of a mixed example, whose target is shares [N, K], is the mean by its shares.
    """

    def of(logits: jax.Array, target: jax.Array) -> jax.Array:
        values = jnp.asarray(weights)
        of_each = target @ values if target.ndim == logits.ndim else values[target]
        return of_each * loss(logits, target)

    return of
