"""Localization: the class of an image, and the box of the object (ILSVRC 2012-2017, task 2).

A network with K classes has K logits, then the boxes: 4 numbers for each class, or with the setting
`shared` 4 for all. They are (y, x, height, width) of the box on the scale of the image: its center
is (0.5 + y, 0.5 + x) of the sides, its sides are exp(height) / 2 and exp(width) / 2.

    loc5    right: one of the five most probable classes is the image's, and its box has an IoU of
            at least 0.5 with one of the image's boxes (1 - ILSVRC's localization error)
    loc1    the same of the most probable class
    given   the same of the box of the image's own class
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxconv.errors import UserError
from jaxconv.tasks.classification.losses import correct, cross_entropy
from jaxconv.tasks.detection.boxes import area, iou
from jaxconv.tasks.task import Batch, Figure, Overlay, Task

# A box counts as right from this overlap on.
OVERLAP = 0.5
# How many guesses there are.
GUESSES = 5
# The largest size that a network can say, in halves of the image's side: exp(3).
_LARGEST = 3.0


def encode(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Boxes [..., 4] in pixels of images of a size (height, width) -> the network's numbers."""
    sides = jnp.array(size, jnp.float32).reshape((1,) * (boxes.ndim - 1) + (2,))
    low, high = boxes[..., :2] / sides, boxes[..., 2:] / sides
    lengths = jnp.maximum(high - low, 1e-3)
    return jnp.concatenate([(low + high) / 2 - 0.5, jnp.log(2 * lengths)], axis=-1)


def decode(numbers: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The inverse of `encode`, clipped to the image."""
    sides = jnp.array(size, jnp.float32).reshape((1,) * (numbers.ndim - 1) + (2,))
    center, half = numbers[..., :2] + 0.5, jnp.exp(jnp.minimum(numbers[..., 2:], _LARGEST)) / 4
    ends = [jnp.clip(center + sign * half, 0, 1) * sides for sign in (-1, 1)]
    return jnp.concatenate(ends, axis=-1)


class Localization(Task):
    """One class and one box. See `Task` for the methods, and the module.

    An example has `label`, and `boxes` [M, 4] of objects of that class; boxes of no area do not
    count. The box loss is the Huber loss of the box with the largest area.
    """

    figures = (
        Figure("loc1", "top-1 located", higher=True, share=True, panel="Located"),
        Figure("loc5", "top-5 located", higher=True, share=True, panel="Located by five guesses"),
        Figure("given", "class given", "", True, True, "Located, the class given"),
        Figure("top1", "top-1", higher=True, share=True, panel="Accuracy"),
        Figure("iou", "IoU", higher=True, panel="IoU, the class given"),
        Figure("loss", "loss", unit="nats", panel="Loss"),
    )
    training = ("loc1", "top1")
    needs = ("label", "boxes")
    # Factor of the box loss, and whether all classes share one box.
    settings = {"box_weight": 5.0, "shared": False}
    served_moves = {"boxes": "boxes"}

    @property
    def classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def outputs(self) -> int:
        """Logits and the numbers of boxes."""
        return self.classes + 4 * (1 if self.kwargs["shared"] else self.classes)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that the network sees."""
        height, width = self.description["image_shape"][:2]
        return height, width

    def check(self) -> None:
        """Raise UserError unless the examples are images with a label and boxes."""
        super().check()
        if self.description["kind"] != "image":
            raise UserError(
                f"config.task.name is localization, and {self.config.data.source} holds "
                f"{self.description['kind']}s; it needs images"
            )

    def split(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Outputs [B, ...] -> logits [B, K] and numbers of boxes [B, K, 4]."""
        logits, numbers = outputs[:, : self.classes], outputs[:, self.classes :]
        # An exported program has no number of examples.
        numbers = numbers.reshape(outputs.shape[0], -1, 4)
        return logits, jnp.broadcast_to(numbers, (outputs.shape[0], self.classes, 4))

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """Cross entropy, and the Huber loss of the class's box where there is one."""
        logits, numbers = self.split(outputs)
        boxes = batch["boxes"]
        largest = jnp.argmax(area(boxes), axis=1)
        truth = jnp.take_along_axis(boxes, largest[:, None, None], axis=1)[:, 0]
        said = jnp.take_along_axis(numbers, batch["label"][:, None, None], axis=1)[:, 0]
        apart = jnp.sum(optax.losses.huber_loss(said, encode(truth, self.size), delta=0.1), axis=-1)
        apart = jnp.where(area(truth) > 0, apart, 0)
        return cross_entropy(logits, batch["label"]) + self.kwargs["box_weight"] * apart

    def values(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """The figures of each example, [B] float32."""
        logits, numbers = self.split(outputs)
        label, boxes = batch["label"], decode(numbers, self.size)
        own = jnp.take_along_axis(boxes, label[:, None, None], axis=1)[:, 0]
        overlap = jnp.max(iou(own[:, None, :], batch["boxes"]), axis=1)
        located = (overlap >= OVERLAP).astype(jnp.float32)
        place = jnp.sum(
            logits > jnp.take_along_axis(logits, label[:, None], axis=1), axis=1
        )  # of the class among the guesses
        return {
            "loc1": located * (place < 1),
            "loc5": located * (place < GUESSES),
            "given": located,
            "top1": correct(logits, label),
            "iou": overlap,
        }

    def serve(self, outputs: Any) -> dict[str, jax.Array]:
        """`probabilities` [B, K] and `boxes` [B, K, 4] of each class, in pixels."""
        logits, numbers = self.split(outputs)
        return {"probabilities": jax.nn.softmax(logits), "boxes": decode(numbers, self.size)}

    def overlay(self, served: Mapping[str, np.ndarray]) -> Overlay:
        """The box of the most probable class, and the probabilities."""
        shares = np.asarray(served["probabilities"], np.float64)
        best = int(np.argmax(shares))
        said = f"{self.class_names[best]} {100 * shares[best]:.1f} %"
        box = np.asarray(served["boxes"])[best : best + 1]
        return Overlay(said, shares, None, box, np.array([best]), shares[best : best + 1])

    @classmethod
    def describe(
        cls, served: Mapping[str, np.ndarray], description: Mapping[str, Any], top: int
    ) -> tuple[list[str], dict[str, Any]]:
        """The most probable classes first, each with its box."""
        probabilities = np.asarray(served["probabilities"])
        best = np.argsort(-probabilities, kind="stable")[:top]
        found = [
            {
                "class": description["class_names"][k],
                "probability": float(probabilities[k]),
                "box": [round(float(x), 1) for x in served["boxes"][k]],
            }
            for k in best
        ]
        lines = [
            f"  {100 * one['probability']:6.2f} %  {one['class']}  box "
            + " ".join(f"{x:.0f}" for x in one["box"])
            for one in found
        ]
        return lines, {"top": found}

    def worst(self, outcomes: Any, most: int) -> np.ndarray:
        """Those that the most probable class does not locate first, with the lowest IoU first."""
        values = outcomes.values
        return np.lexsort((values["iou"], values["loc1"]))[:most]

    def caption_of(self, targets: Mapping[str, Any]) -> str:
        """The name of the class."""
        return self.class_names[int(targets["label"])]

    def draw_targets(self, images: Any, targets: Sequence[Mapping[str, Any]]) -> Any:
        """Each example with its class and boxes."""
        from jaxconv.drawing.boxes import Drawn, box_grid

        drawn = [[Drawn(box, True) for box in np.asarray(one["boxes"])] for one in targets]
        return box_grid(images, drawn, [self.caption_of(one) for one in targets])

    def draw(
        self,
        images: Sequence[Any],
        targets: Sequence[Mapping[str, Any]],
        served: Sequence[Mapping[str, Any]],
        title: str = "",
    ) -> Any:
        """Each example with its boxes and that of the most probable class."""
        from jaxconv.drawing.boxes import Drawn, box_grid

        drawn, captions = [], []
        for true, said in zip(targets, served, strict=True):
            k = int(np.argmax(said["probabilities"]))
            truth = [Drawn(box, True) for box in np.asarray(true.get("boxes", ()))]
            drawn.append([*truth, Drawn(np.asarray(said["boxes"])[k], False)])
            name = f"{self.class_names[k]} {100 * float(said['probabilities'][k]):.0f} %"
            right = "label" not in true or int(true["label"]) == k
            captions.append(name if right else f"{name}, is {self.caption_of(true)}")
        return box_grid(images, drawn, captions, title)
