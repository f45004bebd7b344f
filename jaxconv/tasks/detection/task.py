"""Detection: the class and the box of every object of an image.

The network is one of the detectors, on any backbone; training lowers the sum of its losses, see
training.py. Evaluation gives COCO's AP, see outcomes.py; the loss that it measures is each image's
alone, and for R-CNN that of the proposals.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.data.interface import RANDOM_KEY
from jaxconv.errors import UserError, needing_extras
from jaxconv.models.detector import Detector
from jaxconv.models.fcos import FCOS
from jaxconv.models.rcnn import RCNN
from jaxconv.tasks.detection import training
from jaxconv.tasks.detection.boxes import at_least
from jaxconv.tasks.detection.detections import choices, detections
from jaxconv.tasks.detection.fusion import joined, turned_back
from jaxconv.tasks.detection.mistakes import SHOWN, unpaired
from jaxconv.tasks.detection.outcomes import (
    Outcomes,
    all_figures,
    class_lines,
    figures,
    intervals,
    matched,
    remark_rows,
    worst,
)
from jaxconv.tasks.task import Batch, Figure, Overlay, Task

# Objects of which a crop or a shift leaves less than this, in pixels, are no objects any more.
SMALLEST = 1.0
ANY = (
    "fcos_resnet50_fpn, retinanet_resnet50_fpn, fasterrcnn_resnet50_fpn or another one, with any "
    "backbone"
)


class Detection(Task):
    """Any number of objects. See `Task` for the methods, and the module.

    An example has `boxes` [M, 4], `classes` [M] and `valid` [M]; and it may have `crowd` [M]: boxes
    around many objects, which are not learned, and in which no detection is wrong.
    """

    figures = (
        Figure("ap", "AP", "", True, True, "AP", "mean AP, IoU 0.50 to 0.95"),
        Figure("ap50", "AP50", "", True, True, "AP50", "mean AP, IoU 0.50"),
        Figure("ap75", "AP75", "", True, True, "AP75", "mean AP, IoU 0.75"),
        Figure("ap_small", "AP small", "", True, True, "AP, small", "mean AP, small objects"),
        Figure("ap_medium", "AP medium", "", True, True, "AP, medium", "mean AP, medium objects"),
        Figure("ap_large", "AP large", "", True, True, "AP, large", "mean AP, large objects"),
        Figure("ar", "AR", "", True, True, "AR", "mean recall, IoU 0.50 to 0.95"),
        Figure("loss", "loss", panel="Loss"),
    )
    needs = ("boxes", "classes", "valid")
    uses = ("crowd",)
    keeps = True
    served_moves = {"boxes": "boxes"}
    views = ("center", "flip")
    joins_views = True

    @functools.cached_property
    def network(self) -> Detector:
        """The network, for its settings."""
        return self.model()

    @property
    def logged(self) -> tuple[str, ...]:
        """The losses whose sum is the loss."""
        names: tuple[str, ...] = ("classes", "boxes")
        if isinstance(self.network, RCNN):
            names = ("objectness", "proposals", *names)
        elif isinstance(self.network, FCOS):
            names = (*names, "centerness")
        return tuple(f"{name}_loss" for name in names)

    # Checks, and the network.

    def model(self, axis_name: str | None = None) -> Any:
        """The detector of `config.model`; an R-CNN chooses its regions by `choices`.

        Raises:
          UserError: the network is no detector, or has other heads; or it is to be evaluated on
            images of another size, which the anchors would not fit.
        """
        size = self.config.data.eval_image_size
        if size and (size, size) != self.size:
            raise UserError(
                f"config.data.eval_image_size is {size}, and a detector is evaluated on images of "
                "the size that it is trained on: leave it at 0"
            )
        model = super().model(axis_name)
        named = f"config.model.name is {self.config.model.name!r}, which"
        if not isinstance(model, Detector):
            raise UserError(f"{named} is no detector; use {ANY}")
        for head in ("masks", "keypoints"):
            if getattr(model, head, None):
                raise UserError(
                    f"{named} has a head for {head}, which the task detection does not train; use "
                    f"{ANY}"
                )
        return model.clone(choices=choices) if isinstance(model, RCNN) else model

    def check(self) -> None:
        """Raise UserError unless the examples are images of one size with objects, and what
        evaluation needs is there.
        """
        super().check()
        source = self.config.data.source
        if self.description["kind"] != "image":
            raise UserError(
                f"config.task.name is detection, and {source} holds {self.description['kind']}s; "
                "it needs images"
            )
        ensemble = self.config.ensemble
        if isinstance(self.network, RCNN) and (ensemble.size > 1 or ensemble.over):
            raise UserError(
                f"config.ensemble.size is {ensemble.size}: the members of an R-CNN "
                "look at different regions, which have no mean; train several runs, or use "
                "fcos_resnet50_fpn or retinanet_resnet50_fpn"
            )
        with needing_extras("COCO's average precision"):
            import pycocotools  # noqa: F401

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that the network sees."""
        height, width = self.description["image_shape"][:2]
        return height, width

    # On the devices.

    def sizes(self, outputs: Any) -> jax.Array:
        """[B, 2] height and width of each image."""
        sides = jnp.array([self.size], jnp.float32)
        return jnp.broadcast_to(sides, (outputs["codes"][0].shape[0], 2))

    def call(self, batch: Batch) -> Mapping[str, Any]:
        """How an R-CNN chooses the regions that it learns from."""
        key = jax.random.fold_in(batch[RANDOM_KEY], 1)
        sizes = jnp.broadcast_to(jnp.array([self.size], jnp.float32), (len(batch["image"]), 2))
        return training.training_choices(self.network, learned(batch), self.size, sizes, key)

    def each_loss(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """The losses [B] by the names of `logged`."""
        key = jax.random.fold_in(batch.get(RANDOM_KEY, jax.random.key(0)), 2)
        found = training.losses(self.network, outputs, learned(batch), self.size, key)
        return {f"{name}_loss": value for name, value in found.items()}

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The sum of the losses."""
        return sum(self.each_loss(outputs, batch).values(), jnp.zeros(len(batch["image"])))

    def training_values(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """The losses [B]."""
        return self.each_loss(outputs, batch)

    def eval_loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The loss of each image alone, so that it does not depend on the others of its batch."""
        names = ("image", *self.needs, *(name for name in self.uses if name in batch))

        def of_image(outputs: Any, batch: Batch) -> jax.Array:
            return self.loss(*jax.tree.map(lambda x: x[None], (outputs, batch)))[0]

        return jax.vmap(of_image)(outputs, {name: batch[name] for name in names})

    def measured(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`loss` [B]."""
        return {"loss": self.eval_loss(outputs, batch)}

    def keep(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`loss`; the detections, see `serve`; and the truth: `true_boxes`, `true_classes`,
        `true_valid` and `true_crowd`.
        """
        truth = {name: batch[name] for name in ("boxes", "classes")}
        truth |= {"valid": present(batch), "crowd": crowds(batch)}
        kept = self.measured(outputs, batch) | self.serve(outputs)
        return kept | {f"true_{name}": value for name, value in truth.items()}

    def serve(self, outputs: Any) -> dict[str, jax.Array]:
        """`boxes` [B, D, 4] in pixels, `scores`, `classes` and `valid` [B, D], the best first."""
        found = detections(self.network, outputs, self.size, self.sizes(outputs))
        return {name: found[name] for name in ("boxes", "scores", "classes", "valid")}

    # On the host.

    def finish(
        self,
        sums: Mapping[str, np.ndarray],
        examples: int,
        kept: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, float]:
        """`loss` and COCO's figures."""
        assert kept is not None  # it keeps
        found = figures(matched(kept, len(self.class_names)))
        shown = {one.key: found[one.key] for one in self.figures if one.key in found}
        return {"loss": float(sums["loss"] / examples), **shown}

    def outcomes(self, kept: Mapping[str, np.ndarray], index: np.ndarray) -> Outcomes:
        """The detections and the truth of every example."""
        return Outcomes(kept, self.class_names, index, matched(kept, len(self.class_names)))

    def more_figures(self, outcomes: Outcomes) -> dict[str, float]:
        """COCO's other figures and VOC's, see precision.py."""
        shown = {one.key for one in self.figures}
        return {name: value for name, value in all_figures(outcomes).items() if name not in shown}

    def fused(self, each: Sequence[Outcomes]) -> Outcomes:
        """By weighted boxes, see fusion.py; without a loss."""
        values = joined([one.values for one in each])
        del values["loss"]
        return self.outcomes(values, each[0].index)

    def joint_figures(self, outcomes: Outcomes) -> dict[str, float]:
        """Those of `figures` but the loss."""
        found = figures(outcomes.matches)
        return {one.key: found[one.key] for one in self.figures if one.key in found}

    def join_passes(self, passes: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """The boxes in images and in their mirror images, fused; the loss of the former."""
        if len(passes) == 1:
            return passes[0]
        first, mirrored = passes
        return joined([first, turned_back(mirrored, self.size[1])])

    def truth(self, outcomes: Outcomes) -> np.ndarray:
        """The boxes of each example, [N, M x 4]."""
        boxes = np.asarray(outcomes.values["true_boxes"])
        return boxes.reshape(len(boxes), -1)

    def truth_in_words(self, outcomes: Outcomes, place: int) -> str:
        """How many objects of each class there are."""
        of = {name: outcomes.values[f"true_{name}"][place] for name in ("classes", "valid")}
        return self.in_words(of["classes"][of["valid"]])

    def in_words(self, classes: np.ndarray) -> str:
        """`2 x, 1 o` of class indices [n], or `nothing`."""
        counts = np.bincount(classes, minlength=len(self.class_names))
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        return ", ".join(f"{counts[k]} {self.class_names[k]}" for k in order) or "nothing"

    def intervals(self, outcomes: Outcomes, resamples: int) -> dict[str, tuple[float, float]]:
        """By the bootstrap over images."""
        return intervals(outcomes, resamples)

    def rows(self, outcomes: Outcomes, who: str) -> list[tuple[str, str]]:
        """Recalls, VOC's AP, and what the mistakes cost."""
        return remark_rows(outcomes, who)

    def lines(self, outcomes: Outcomes) -> list[str]:
        """All classes, the lowest AP first."""
        return class_lines(outcomes)

    @property
    def writers(self) -> dict[str, tuple[tuple[str, ...], Callable[[Any, Any], None]]]:
        """`predictions`, `detections` for COCO's server, and `confusion`."""
        from jaxconv.tasks.detection import tables

        return super().writers | {
            "detections": ((".json",), tables.write_detections),
            "confusion": ((".csv", ".png"), tables.write_confusion),
        }

    def worst(self, outcomes: Outcomes, most: int) -> np.ndarray:
        """Those with the lowest F1 first, see mistakes.py."""
        return worst(outcomes, most)

    # For people.

    def overlay(self, served: Mapping[str, np.ndarray]) -> Overlay:
        """The boxes with a score of at least `SHOWN`; of each class the best score."""
        boxes, scores, classes = of_valid(served)
        shares = np.zeros(len(self.class_names))
        np.maximum.at(shares, classes, scores)
        seen = scores >= SHOWN
        said = self.in_words(classes[seen])
        return Overlay(said, shares, None, boxes[seen], classes[seen], scores[seen])

    @classmethod
    def describe(
        cls, served: Mapping[str, np.ndarray], description: Mapping[str, Any], top: int
    ) -> tuple[list[str], dict[str, Any]]:
        """The objects with the highest scores first, each with its box."""
        found = [
            {
                "class": description["class_names"][k],
                "score": float(score),
                "box": [round(float(x), 1) for x in box],
            }
            for box, score, k in zip(*of_valid(served), strict=True)
        ][:top]
        lines = [
            f"  {100 * one['score']:6.2f} %  {one['class']}  box "
            + " ".join(f"{x:.0f}" for x in one["box"])
            for one in found
        ]
        return lines or ["  nothing"], {"objects": found}

    def caption_of(self, targets: Mapping[str, Any]) -> str:
        """How many objects of each class there are."""
        return self.in_words(np.asarray(targets["classes"])[np.asarray(present(targets))])

    def draw_targets(self, images: Any, targets: Sequence[Mapping[str, Any]]) -> Any:
        """Each example with its boxes."""
        from jaxconv.drawing.boxes import box_grid

        captions = [self.caption_of(one) for one in targets]
        return box_grid(images, [self._drawn_truth(one) for one in targets], captions)

    def draw(
        self,
        images: Sequence[Any],
        targets: Sequence[Mapping[str, Any]],
        served: Sequence[Mapping[str, Any]],
        title: str = "",
    ) -> Any:
        """Each example with its objects, and beside it those with a score of at least `SHOWN`."""
        from jaxconv.drawing.boxes import Drawn, beside_grid, box_grid

        drawn, captions = [], []
        for true, said in zip(targets, served, strict=True):
            boxes, scores, classes = of_valid(said)
            seen = scores >= SHOWN
            captions.append(self.in_words(classes[seen]))
            found = [
                Drawn(box, False, f"{self.class_names[k]} {100 * score:.0f} %")
                for box, score, k in zip(boxes[seen], scores[seen], classes[seen], strict=True)
            ]
            if "boxes" in true:
                captions[-1] = f"{self.caption_of(true)}; found {captions[-1]}"
                objects = self._drawn_truth(true)
                wrong = unpaired({**true, "valid": np.asarray(present(true))}, said)
                found = [
                    one._replace(wrong=bool(mark))
                    for one, mark in zip([*objects, *found], np.concatenate(wrong), strict=True)
                ]
            drawn.append(found)
        known = all("boxes" in true for true in targets)
        return (beside_grid if known else box_grid)(images, drawn, captions, title)

    def _drawn_truth(self, targets: Mapping[str, Any]) -> list[Any]:
        from jaxconv.drawing.boxes import Drawn

        valid = np.asarray(present(targets))
        rows = zip(np.asarray(targets["boxes"])[valid], targets["classes"][valid], strict=True)
        return [Drawn(box, True, self.class_names[k]) for box, k in rows]

    @property
    def pictures(self) -> dict[str, Callable[..., Any]]:
        """`classes`, `precision`, `mistakes` and `confusions`."""
        from jaxconv.tasks.detection import sections

        return {
            "classes": sections.classes_figure,
            "precision": sections.precision_figure,
            "mistakes": sections.mistakes_figure,
            "confusions": sections.confusions_figure,
        }

    def sections(self) -> Sequence[tuple[str, Callable[[Any], list[Any]]]]:
        """Predictions, precision, mistakes, confusions, and the worst examples."""
        from jaxconv.tasks.detection import sections

        return (
            ("Predictions", sections.predictions),
            ("Precision", sections.precision),
            ("Mistakes", sections.mistakes),
            ("Confusions", sections.confusions),
            ("Worst", sections.worst_examples),
        )


def present(batch: Mapping[str, Any]) -> jax.Array:
    """[B, M] which rows of the truth are objects, of which the image still shows something."""
    return batch["valid"] & at_least(batch["boxes"], SMALLEST)


def crowds(batch: Batch) -> jax.Array:
    """[B, M] which of them are crowds."""
    return batch["crowd"] if "crowd" in batch else jnp.zeros_like(batch["valid"])


def learned(batch: Batch) -> dict[str, jax.Array]:
    """The truth that is learned: `boxes`, `classes`, `valid`, without crowds."""
    valid = present(batch) & ~crowds(batch)
    return {"boxes": batch["boxes"], "classes": batch["classes"], "valid": valid}


def of_valid(served: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [n, 4], scores [n] and classes [n] of the detections of one image."""
    valid = np.asarray(served["valid"])
    boxes, scores, classes = (np.asarray(served[name]) for name in ("boxes", "scores", "classes"))
    return boxes[valid], scores[valid], classes[valid]
