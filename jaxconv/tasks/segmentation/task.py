"""Segmentation: each pixel has the class with the highest of its K logits."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.interface import OWN_SIZE, DamagedError, Source
from jaxconv.errors import UserError, nearest
from jaxconv.tasks.classification.losses import average_logits
from jaxconv.tasks.classification.weights import class_weights
from jaxconv.tasks.segmentation import losses
from jaxconv.tasks.segmentation.outcomes import (
    Outcomes,
    figures,
    finished,
    intervals,
    worst,
)
from jaxconv.tasks.task import Batch, Figure, Overlay, Task

LOSSES = ("softmax", "dice", "softmax_dice")


class Segmentation(Task):
    """A class for each pixel. See `Task` for the methods.

    An example has `segmentation` [H, W] or [D, H, W]: class indices, 255 for pixels that do not
    count. Training uses the loss of `config.loss`; evaluation measures the cross entropy.
    """

    figures = (
        Figure("miou", "mean IoU", higher=True, share=True, panel="Mean IoU"),
        Figure("accuracy", "accuracy", higher=True, share=True, panel="Pixel accuracy"),
        Figure("dice", "Dice", "", True, True, "Mean Dice", "mean Dice coefficient"),
        Figure("loss", "loss", unit="nats", panel="Loss"),
    )
    training = ("accuracy",)
    needs = ("segmentation",)
    views = ("center", "flip", "scales", "sliding")
    of_pixels = True
    served_moves = {"classes": f"mask:{losses.IGNORED}", "confidence": "mask"}

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raise UserError if the loss of `config.loss` is unknown, or a setting does not apply."""
        loss = config.loss
        if loss.name not in LOSSES:
            raise UserError(
                f"config.loss.name is {loss.name!r}{nearest(loss.name, LOSSES)}; for segmentation "
                f"it must be one of {', '.join(LOSSES)}"
            )
        for key in ("threshold", *(("label_smoothing", "class_weights") * (loss.name == "dice"))):
            if loss[key]:
                raise UserError(
                    f"config.loss.{key} is {loss[key]}, which the loss {loss.name!r} does not use"
                )
        if config.eval.metrics:
            raise UserError("config.eval.metrics: the task segmentation does not use it")
        if config.augment.mixup:
            raise UserError(
                f"config.augment.mixup is {config.augment.mixup}: a pixel has one class; use cutmix"
            )

    def check(self) -> None:
        """Raise UserError unless the examples have masks, and the network gives logits for each
        pixel.
        """
        super().check()
        self.make_loss({})
        shape, classes = self.targets["segmentation"].shape, self.outputs
        image = jax.ShapeDtypeStruct((1, *self.description["image_shape"]), jnp.float32)
        model = self.model()
        run = functools.partial(model.init_with_output, train=False)
        found = jax.eval_shape(run, jax.random.key(0), image)[0]
        if getattr(found, "shape", None) != (1, *shape, classes):
            shown = getattr(found, "shape", type(found).__name__)
            raise UserError(
                f"config.model.name is {self.config.model.name!r}, which returns {shown} for one "
                f"image; segmentation needs logits {(1, *shape, classes)}: use unet, "
                "fcn_resnet50, deeplabv3_resnet50 or lraspp_mobilenet_v3_large, with any backbone"
            )

    @classmethod
    def count_classes(cls, source: Source) -> np.ndarray | None:
        """The pixels of each class in all masks, [K]; those of files that cannot be read are left
        out.
        """
        if "segmentation" not in source.targets:
            return None

        classes = len(source.class_names)

        def counted(i: int) -> np.ndarray:
            try:
                mask = np.asarray(source.target(i, "segmentation"))
            except DamagedError:
                return np.zeros(classes, np.int64)
            return np.bincount(mask[mask < classes], minlength=classes)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return sum(pool.map(counted, range(len(source))), np.zeros(classes, np.int64))

    def make_loss(self, swept: Mapping[str, jax.Array]) -> Callable[[Any, Batch], jax.Array]:
        """The loss of `config.loss`."""
        settings = self.config.loss
        smoothing = swept.get("label_smoothing", settings.label_smoothing)
        weights = None
        if settings.class_weights:
            counts = self.description.get("class_counts")
            weights = jnp.asarray(class_weights(settings.class_weights, self.class_names, counts))

        def loss(logits: jax.Array, batch: Batch) -> jax.Array:
            truth, total = batch["segmentation"], jnp.zeros(len(logits))
            if settings.name != "dice":
                total += losses.pixel_cross_entropy(logits, truth, smoothing, weights)
            if settings.name != "softmax":
                total += losses.dice(logits, truth)
            return total

        return loss

    def eval_loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The cross entropy [B]."""
        return losses.pixel_cross_entropy(outputs, batch["segmentation"])

    def training_values(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`accuracy` [B]: of the pixels that count."""
        truth = batch["segmentation"]
        counts = (truth != losses.IGNORED).reshape(len(truth), -1)
        right = (jnp.argmax(outputs, axis=-1) == truth.astype(jnp.int32)).reshape(len(truth), -1)
        return {
            "accuracy": jnp.sum(right & counts, axis=1) / jnp.maximum(jnp.sum(counts, axis=1), 1)
        }

    def mix(
        self, batch: Batch, opposite: Callable[[jax.Array], jax.Array], share: jax.Array
    ) -> dict[str, jax.Array]:
        """The masks of images of which a box was replaced (cutmix)."""
        own = batch["segmentation"]
        return {"segmentation": jnp.where(batch["kept"] > 0, own, opposite(own))}

    def measured(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`loss` [B] and `confusion` [B, K, K]; at the images' own size if the batch has it."""
        if OWN_SIZE in batch:
            truth, sizes = batch["segmentation"], batch[OWN_SIZE]
            outputs = losses.at_own_size(outputs, sizes, truth.shape[1:3])
            batch = {**batch, "segmentation": losses.only_within(truth, sizes)}
        return {
            "loss": self.eval_loss(outputs, batch),
            "confusion": losses.confusion(outputs, batch["segmentation"]),
        }

    def combine(self, outputs: Any) -> Any:
        """The logarithms of the mean probabilities, over members without NaN."""
        return average_logits(outputs)

    def finish(
        self,
        sums: Mapping[str, np.ndarray],
        examples: int,
        kept: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, float]:
        """`loss`, `miou`, `accuracy` and `dice`, from the confusion of the whole set."""
        return finished(sums["confusion"], float(sums["loss"]) / examples)

    def outcomes(self, kept: Mapping[str, np.ndarray], index: np.ndarray) -> Outcomes:
        """The confusion of every example, see outcomes.py."""
        return Outcomes(kept["confusion"], kept["loss"], self.class_names, index)

    def truth(self, outcomes: Outcomes) -> np.ndarray:
        """The pixels of each class [N, K]."""
        return outcomes.confusions.sum(axis=2)

    def truth_in_words(self, outcomes: Outcomes, place: int) -> str:
        """The classes of an example, by pixels."""
        counts = self.truth(outcomes)[place]
        return ", ".join(f"{self.class_names[k]} {counts[k]:,}" for k in np.flatnonzero(counts))

    def intervals(self, outcomes: Outcomes, resamples: int) -> dict[str, tuple[float, float]]:
        """By the bootstrap over images."""
        return intervals(outcomes, resamples)

    def serve(self, outputs: Any) -> dict[str, jax.Array]:
        """`classes` [B, *spatial] int32 and `confidence`, their probability, float32."""
        probabilities = jax.nn.softmax(outputs)
        return {
            "classes": jnp.argmax(outputs, axis=-1).astype(jnp.int32),
            "confidence": jnp.max(probabilities, axis=-1),
        }

    def overlay(self, served: Mapping[str, np.ndarray]) -> Overlay:
        """The mask, and the share of the pixels of each class."""
        mask = np.asarray(served["classes"]).astype(np.uint8)
        shares = np.bincount(mask.reshape(-1), minlength=len(self.class_names)) / mask.size
        order = [k for k in np.argsort(-shares, kind="stable") if shares[k] > 0]
        said = ", ".join(f"{self.class_names[k]} {100 * shares[k]:.1f} %" for k in order[:4])
        return Overlay(said, shares, mask)

    @classmethod
    def describe(
        cls, served: Mapping[str, np.ndarray], description: Mapping[str, Any], top: int
    ) -> tuple[list[str], dict[str, Any]]:
        """The classes with the most pixels first."""
        names, classes = description["class_names"], np.asarray(served["classes"])
        # What the network has not seen of a file has no class.
        counts = np.bincount(classes[classes < len(names)].ravel(), minlength=len(names))
        shown = [k for k in np.argsort(-counts, kind="stable")[:top] if counts[k]]
        found = [{"class": names[k], "share": float(counts[k] / counts.sum())} for k in shown]
        lines = [f"  {100 * one['share']:6.2f} % of the pixels  {one['class']}" for one in found]
        return lines, {"classes": found}

    def caption_of(self, targets: Mapping[str, Any]) -> str:
        """The classes of an example."""
        found = np.unique(np.asarray(targets["segmentation"]))
        return ", ".join(self.class_names[k] for k in found if k < len(self.class_names))

    def draw_targets(self, images: Any, targets: Sequence[Mapping[str, Any]]) -> Any:
        """Each example with its mask over it."""
        from jaxconv.drawing.masks import mask_grid

        truths = [one["segmentation"] for one in targets]
        return mask_grid(images, {"truth": truths}, self.class_names)

    def draw(
        self,
        images: Sequence[Any],
        targets: Sequence[Mapping[str, Any]],
        served: Sequence[Mapping[str, Any]],
        title: str = "",
    ) -> Any:
        """Each example with its truth and its prediction over it, and where that is unsure."""
        from jaxconv.drawing.masks import mask_grid

        masks = {"truth": [true.get("segmentation") for true in targets]}
        masks = {} if any(mask is None for mask in masks["truth"]) else masks
        masks["prediction"] = [one["classes"] for one in served]
        confidences = [one["confidence"] for one in served]
        return mask_grid(images, masks, self.class_names, title, confidences)

    def images(self, served: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """`mask`: the class of each pixel, with a palette; 255 for what was not seen."""
        from jaxconv.drawing.masks import indexed

        return {"mask": indexed(served["classes"], len(self.class_names))}

    def worst(self, outcomes: Outcomes, most: int) -> np.ndarray:
        """Those with the lowest mean IoU first."""
        return worst(outcomes, most)

    @property
    def pictures(self) -> dict[str, Callable[..., Any]]:
        """`classes`: the IoU of each class as bars."""
        from jaxconv.tasks.segmentation import sections

        return {"classes": sections.classes_figure}

    def sections(self) -> Sequence[tuple[str, Callable[[Any], list[Any]]]]:
        """Predictions, classes, and the worst examples."""
        from jaxconv.tasks.segmentation import sections

        return (
            ("Predictions", sections.predictions),
            ("Classes", sections.classes),
            ("Worst", sections.worst_examples),
        )

    def lines(self, outcomes: Outcomes) -> list[str]:
        """All classes, the lowest IoU first."""
        from jaxconv.tasks.segmentation.tables import class_lines

        return class_lines(outcomes)

    @property
    def writers(self) -> dict[str, tuple[tuple[str, ...], Callable[[Any, Any], None]]]:
        """`predictions`: the confusion of each example; and `confusion`, of all pixels."""
        from jaxconv.tasks.segmentation import tables

        return {
            "predictions": ((".npz", ".csv"), tables.write_predictions),
            "confusion": ((".csv", ".png"), tables.write_confusion),
        }

    def caption(self, outcomes: Outcomes) -> str:
        """The number of pixels."""
        total = int(outcomes.confusions.sum(dtype=np.int64))
        right = float(figures(outcomes.confusions.sum(axis=0, dtype=np.int64))["accuracy"])
        return f": {100 * right:.2f} % of {total:,} pixels are right"
