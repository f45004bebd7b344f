"""Distillation: a student that also learns from what a trained network, its teacher, says.

    loss = (1 - alpha) * loss of the labels + alpha * task.distilled(outputs, teacher's outputs)
           + feature_weight * attention transfer of pairs of feature maps

The teacher sees the same augmented batch, in evaluation mode, within the training step. Its
variables are loaded when a run starts, and are a part of the step's data: no checkpoint holds them.
The run's data.json holds their digest, and a run is resumed with these very values only.

Feature maps of other widths are compared by attention transfer (Zagoruyko and Komodakis 2017,
arXiv:1612.03928, section 3.1), which needs no projection, and so nothing to train and to store:

    Q = sum over the channels of map^2, as a vector over positions, divided by its norm
    loss = 1/2 * |Q(student) - Q(teacher)|^2
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.data.interface import TAUGHT
from jaxconv.errors import UserError
from jaxconv.tasks import Task
from jaxconv.tasks.task import Batch
from jaxconv.train.parallel import fingerprint

# The teacher's variables among the data of a step.
TEACHER = "teacher"


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network that teaches another.

    Attributes:
      model: the Linen module.
      variables: its variables, numpy arrays.
      scale, shift: [C] that turn the student's normalised images into those that it wants.
      maps: names of its feature maps that are compared.
      what: it is, in words.
    """

    model: Any
    variables: Any
    scale: np.ndarray
    shift: np.ndarray
    maps: tuple[str, ...]
    what: str

    @property
    def record(self) -> dict[str, str]:
        """What the run stores of it: what it is, and a digest of its variables."""
        return {"what": self.what, "digest": f"{int(fingerprint(self.variables)):08x}"}

    def teach(self, variables: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """The batch with `TAUGHT`: the teacher's outputs, and its maps by name, without gradient.

        Args:
          variables: the teacher's, on the devices.
          batch: augmented and normalised as the student's.
        """
        images = batch["image"]
        if jnp.issubdtype(images.dtype, jnp.inexact):  # codes of words are not normalised
            shape = (*[1] * (images.ndim - 1), -1)
            images = images * self.scale.reshape(shape) + self.shift.reshape(shape)
        outputs, maps = split_outputs(self.apply(variables, images), self.maps)
        return batch | {TAUGHT: lax.stop_gradient({"outputs": outputs, "maps": maps})}

    def apply(self, variables: Any, images: jax.Array) -> Any:
        """The teacher's outputs; with maps, {name: map} and `logits`."""
        asked = {"features": (*self.maps, "logits")} if self.maps else {}
        return self.model.apply(variables, images, train=False, **asked)


def split_outputs(outputs: Any, maps: tuple[str, ...]) -> tuple[Any, dict[str, jax.Array]]:
    """The outputs, and the maps by name, of a network that was asked for these maps."""
    if not maps or not isinstance(outputs, Mapping):
        return outputs, {}
    return outputs["logits"], {name: outputs[name] for name in maps}


def attention(feature_map: jax.Array, like: tuple[int, ...] | None = None) -> jax.Array:
    """The normalised attention [B, positions] float32 of a map [B, *spatial, C].

    Args:
      feature_map: of a network.
      like: spatial size that the attention is resized to, bilinearly; None keeps the map's.
    """
    found = jnp.sum(jnp.square(feature_map.astype(jnp.float32)), axis=-1)
    if like is not None and found.shape[1:] != like:
        found = jax.image.resize(found, (len(found), *like), "bilinear")
    flat = found.reshape(len(found), -1)
    # The root of a sum of squares has no gradient at 0, where a map is all 0.
    return flat * lax.rsqrt(jnp.sum(jnp.square(flat), axis=1, keepdims=True) + 1e-12)


def attention_transfer(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Half the squared distance [B] between the attentions of two maps [B, *spatial, C].

    The teacher's is resized to the student's size, if they differ.
    """
    like = student.shape[1:-1]
    difference = attention(student, like) - attention(lax.stop_gradient(teacher), like)
    return 0.5 * jnp.sum(jnp.square(difference), axis=1)


def pairs_of(features: str) -> tuple[tuple[str, str], ...]:
    """The pairs of (student's, teacher's) maps in `config.distill.features`.

    Raises:
      UserError: it is not STUDENT:TEACHER, separated by spaces; one name stands for two.
    """
    found = []
    for text in features.split():
        own, colon, other = text.partition(":")
        if not own or (colon and not other) or ":" in other:
            raise UserError(
                f"config.distill.features is {features!r}; give pairs STUDENT:TEACHER of feature "
                "maps, separated by spaces, such as conv4:conv5"
            )
        found.append((own, other or own))
    return tuple(found)


def distilled(
    objective: Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]], task: Task, config: Any
) -> Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]]:
    """The objective of a training step with what the teacher says, see the module.

    Args:
      objective: (outputs, batch) -> ([B] loss of the labels, metrics).
      task: of the run.
      config: `config.distill`.
    """
    pairs, alpha = pairs_of(config.features), config.alpha
    names = tuple(own for own, _ in pairs)

    def of_both(outputs: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        taught = batch[TAUGHT]
        outputs, maps = split_outputs(outputs, names)
        labels, metrics = objective(outputs, batch)
        loss = (1 - alpha) * labels + alpha * task.distilled(outputs, taught["outputs"])
        for own, other in pairs if maps else ():
            transfer = attention_transfer(maps[own], taught["maps"][other])
            loss += config.feature_weight * transfer
        return loss, metrics

    return of_both


def asking_for(
    call: Callable[[Batch], Mapping[str, Any]], features: str
) -> Callable[[Batch], Mapping[str, Any]]:
    """`Task.call` that also asks the student for its maps of `config.distill.features`."""
    names = tuple(own for own, _ in pairs_of(features))
    return (lambda batch: {**call(batch), "features": (*names, "logits")}) if names else call
