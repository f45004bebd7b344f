"""Classification: one class per example, the one with the highest of K logits."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.interface import SEVERAL
from jaxconv.errors import UserError, nearest
from jaxconv.own import is_own, tried
from jaxconv.tasks.classification import distillation, losses
from jaxconv.tasks.classification.outcomes import Outcomes, averaged, figures, log_mean
from jaxconv.tasks.classification.weights import class_weights, weighted
from jaxconv.tasks.labels import TOP, LabelLoss, LabelMeasure, mix_labels, target_of
from jaxconv.tasks.task import Batch, Figure, Task

LOSSES = ("softmax", "binary")


class Classification(Task):
    """One class per example. See `Task` for the methods.

    Training uses the loss of `config.loss`. Evaluation measures the softmax cross entropy, so that
    all runs are comparable, and the metrics of `config.eval.metrics`.
    """

    figures = (
        Figure("top1", "top-1", higher=True, share=True, panel="Accuracy"),
        Figure("top5", "top-5", higher=True, share=True, panel="Top-5 accuracy"),
        Figure("loss", "loss", unit="nats", panel="Loss"),
        Figure("ece", "ECE", share=True, name="calibration error (ECE)"),
        Figure("height", "height", name="height of a mistake in WordNet"),
    )
    training = ("top1",)
    needs = ("label",)
    uses = (SEVERAL,)
    views = ("center", "flip", "6-crop", "10-crop", "dense")
    kept_outputs = "logits"

    @functools.cached_property
    def _measure(self) -> LabelMeasure:
        # Only on demand: the weights of a run whose custom metric is missing can still be used.
        metrics = own_metrics(self.config.eval.metrics, self.outputs)
        return LabelMeasure(losses.cross_entropy, metrics)

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raise UserError if the loss of `config.loss` is unknown, or its settings do not apply."""
        loss = config.loss
        if loss.name not in LOSSES and not is_own(loss.name):
            raise UserError(
                f"config.loss.name is {loss.name!r}{nearest(loss.name, LOSSES)}; it must be one of "
                f"{', '.join(LOSSES)}"
            )
        if is_own(loss.name) and (loss.label_smoothing or loss.threshold):
            raise UserError(
                f"config.loss.name is {loss.name!r}; label_smoothing and threshold apply only to "
                "built-in losses: leave them at 0"
            )
        if loss.threshold and loss.name != "binary":
            raise UserError(
                f"config.loss.threshold is {loss.threshold}; it applies to the loss 'binary', "
                f"not to {loss.name!r}"
            )

    def check(self) -> None:
        """Raise UserError unless the examples have labels and the loss and metrics can be used."""
        super().check()
        metrics = (self.config.checkpoint.metric, self.config.optimizer.schedule.metric)
        if f"eval/top{TOP}" in metrics and self.outputs <= TOP:
            raise UserError(
                f"config.checkpoint.metric or config.optimizer.schedule.metric is eval/top{TOP}, "
                f"which needs more than {TOP} classes; there are {self.outputs}"
            )
        self.make_loss({})
        own_metrics(self.config.eval.metrics, self.outputs)

    def make_loss(self, swept: Mapping[str, jax.Array]) -> Callable[[Any, Batch], jax.Array]:
        """The loss of `config.loss`; raises UserError if a custom one cannot be used."""
        loss, weights = make_loss(self.config, self.outputs, swept), self.config.loss.class_weights
        if weights:
            counts = self.description.get("class_counts")
            loss = weighted(loss, class_weights(weights, self.class_names, counts))
        return lambda logits, batch: loss(logits, target_of(batch))

    def training_values(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`top1`; where images are mixed, by the class with the largest share."""
        return {"top1": losses.correct(outputs, target_of(batch))}

    def distilled(self, outputs: Any, taught: Any) -> jax.Array:
        """The loss of `config.distill.kind`, see distillation.py."""
        if self.config.distill.kind == "hard":
            return distillation.hard(outputs, taught)
        return distillation.soft(outputs, taught, self.config.distill.temperature)

    def mix(
        self, batch: Batch, opposite: Callable[[jax.Array], jax.Array], share: jax.Array
    ) -> dict[str, jax.Array]:
        """`target` [B, K] float32, the shares of the classes."""
        return mix_labels(self.outputs)(batch, opposite, share)

    def measured(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`loss`, `top1`, `top5` for more than 5 classes, and custom metrics, [B]."""
        return self._measure.measured(outputs, batch)

    def keep(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`logits` [B, K] and `label` [B]."""
        return self._measure.keep(outputs, batch)

    def combine(self, outputs: Any) -> Any:
        """The logarithms of the mean probabilities, over members without infinity or NaN."""
        return self._measure.combine(outputs)

    def outcomes(self, kept: Mapping[str, np.ndarray], index: np.ndarray) -> Outcomes:
        """The logits of every example, see outcomes.py."""
        return Outcomes(kept["label"], kept["logits"], self.class_names, index)

    def join_passes(self, passes: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """The logarithms of the mean probabilities over the passes."""
        return {**passes[0], "logits": log_mean([one["logits"] for one in passes])}

    def averaged(self, each: Sequence[Outcomes]) -> Outcomes:
        """The outcomes of the mean of the probabilities."""
        return averaged(each)

    def joint_figures(self, outcomes: Outcomes) -> dict[str, float]:
        """See `outcomes.figures`."""
        return figures(outcomes)

    def restricted(self, outcomes: Outcomes) -> tuple[Outcomes, int]:
        """The logits of classes without examples are minus infinity."""
        present = np.bincount(outcomes.labels, minlength=len(outcomes.class_names)) > 0
        logits = np.where(present, outcomes.logits, -np.inf).astype(outcomes.logits.dtype)
        return dataclasses.replace(outcomes, logits=logits), int(present.sum())

    def truth(self, outcomes: Outcomes) -> np.ndarray:
        """The labels [N]."""
        return outcomes.labels

    def truth_in_words(self, outcomes: Outcomes, place: int) -> str:
        """The name of the class."""
        return self.class_names[outcomes.labels[place]]

    def intervals(self, outcomes: Outcomes, resamples: int) -> dict[str, tuple[float, float]]:
        """See intervals.py."""
        from jaxconv.tasks.classification.intervals import intervals

        return intervals(outcomes, resamples)

    def more_figures(self, outcomes: Outcomes) -> dict[str, float]:
        """`ece`, and `height` for WordNet's classes."""
        found = figures(outcomes)
        return {name: found[name] for name in ("ece", "height") if name in found}

    def serve(self, outputs: Any) -> dict[str, jax.Array]:
        """`probabilities` [B, K], the softmax with any loss, and `logits`.

        The logits are also served as `votes`, the name of earlier versions.
        """
        return {"probabilities": jax.nn.softmax(outputs), "logits": outputs, "votes": outputs}

    @classmethod
    def describe(
        cls, served: Mapping[str, np.ndarray], description: Mapping[str, Any], top: int
    ) -> tuple[list[str], dict[str, Any]]:
        """The most probable classes first; for people, ImageNet's ids with their words."""
        from jaxconv.data.wordnet import readable

        probabilities = served["probabilities"]
        best = np.argsort(-probabilities, kind="stable")[:top]
        found = [(description["class_names"][k], float(probabilities[k])) for k in best]
        lines = [f"  {100 * p:6.2f} %  {readable(name)}" for name, p in found]
        return lines, {"top": [{"class": name, "probability": p} for name, p in found]}

    def caption_of(self, targets: Mapping[str, Any]) -> str:
        """The name of the class."""
        return self.class_names[int(targets["label"])]

    def draw(
        self,
        images: Sequence[Any],
        targets: Sequence[Mapping[str, Any]],
        served: Sequence[Mapping[str, Any]],
        title: str = "",
    ) -> Any:
        """Examples with their most probable classes as bars."""
        from jaxconv.tasks.classification.examples import predictions

        labels = [int(true.get("label", -1)) for true in targets]
        probabilities = np.stack([said["probabilities"] for said in served])
        return predictions(images, labels, probabilities, self.class_names, title=title)

    def worst(self, outcomes: Outcomes, most: int) -> np.ndarray:
        """Those with the least probability of their class first."""
        return np.argsort(-outcomes.losses, kind="stable")[:most]

    @property
    def pictures(self) -> dict[str, Callable[..., Any]]:
        """`mistakes`, `confusions` and `classes`."""
        from jaxconv.tasks.classification import sections

        return {
            "mistakes": sections.mistakes_figure,
            "confusions": sections.confusions_figure,
            "classes": sections.classes_figure,
        }

    def sections(self) -> Sequence[tuple[str, Callable[[Any], list[Any]]]]:
        """Predictions, mistakes and calibration."""
        from jaxconv.tasks.classification import sections

        return (
            ("Predictions", sections.predictions),
            ("Mistakes", sections.mistakes),
            ("Calibration", sections.calibration),
        )

    def rows(self, outcomes: Outcomes, who: str) -> list[tuple[str, str]]:
        """Mistakes, confidence, classes and confusions."""
        from jaxconv.tasks.classification.tables import remark_rows

        return remark_rows(outcomes, who)

    def remarks(
        self, figures: Mapping[str, float], between: Mapping[str, tuple[float, float]]
    ) -> list[str]:
        """On exact intervals, and an ECE outside its own interval."""
        from jaxconv.tasks.classification.intervals import on_intervals

        return on_intervals(figures, between)

    def caption(self, outcomes: Outcomes) -> str:
        """The number of mistakes."""
        return f": {int((outcomes.ranks > 0).sum()):,} are wrong"

    def lines(self, outcomes: Outcomes) -> list[str]:
        """All classes, the worst first."""
        from jaxconv.tasks.classification.tables import class_lines

        return class_lines(outcomes)

    @property
    def writers(self) -> dict[str, tuple[tuple[str, ...], Callable[[Any, Any], None]]]:
        """`predictions`, `confusion` and `reliability`."""
        from jaxconv.tasks.classification import tables

        return {
            "predictions": ((".npz", ".csv"), tables.write_predictions),
            "confusion": ((".csv", ".png"), tables.write_confusion),
            "reliability": ((".png",), tables.write_reliability),
        }


def _some_logits(num_classes: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of logits and labels to try a custom function on."""
    # More examples than classes, so that the two axes cannot be confused.
    count = num_classes + 1
    return (
        jax.ShapeDtypeStruct((count, num_classes), jnp.float32),
        jax.ShapeDtypeStruct((count,), jnp.int32),
    )


def own_metrics(names: str, num_classes: int) -> dict[str, LabelLoss]:
    """The metrics of `config.eval.metrics` by their short names."""
    logits, labels = _some_logits(num_classes)
    each = {name.replace(":", ".").rpartition(".")[2]: name for name in names.split()}
    return {
        short: tried(name, "config.eval.metrics", labels.shape, logits, labels)
        for short, name in each.items()
    }


def make_loss(config: Any, num_classes: int, swept: Mapping[str, jax.Array]) -> LabelLoss:
    """The training loss of `config.loss`.

    Values in `swept` replace the settings of the same names, and may be traced.

    Raises:
      UserError: a custom loss cannot be used.
    """
    loss = config.loss
    smoothing = swept.get("label_smoothing", loss.label_smoothing)
    if is_own(loss.name):
        logits, labels = _some_logits(num_classes)
        mixed = config.augment.mixup or config.augment.cutmix
        target = logits if mixed else labels
        return tried(loss.name, "config.loss.name", labels.shape, logits, target)
    if loss.name == "binary":
        return lambda logits, target: losses.binary_cross_entropy(
            logits, target, smoothing, loss.threshold
        )
    return lambda logits, target: losses.cross_entropy(logits, target, smoothing)
