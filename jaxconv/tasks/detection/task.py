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

from jaxconv.data.geometry import Transform, move, move_boxes
from jaxconv.data.interface import RANDOM_KEY
from jaxconv.errors import UserError, needing_extras
from jaxconv.models.configured import build_model
from jaxconv.models.detector import Detector
from jaxconv.models.fcos import FCOS
from jaxconv.models.rcnn import RCNN
from jaxconv.tasks.detection import training
from jaxconv.tasks.detection.boxes import area
from jaxconv.tasks.detection.detections import choices, detections
from jaxconv.tasks.detection.fusion import joined, turned_back
from jaxconv.tasks.detection.instances import all_keypoints, mask_measures
from jaxconv.tasks.detection.mistakes import unpaired
from jaxconv.tasks.detection.outcomes import (
    Outcomes,
    all_figures,
    class_lines,
    figures,
    intervals,
    matched,
    more_figures,
    more_matched,
    remark_rows,
    worst,
)
from jaxconv.tasks.detection.shown import (
    NOTHING,
    drawn,
    drawn_truth,
    lines_of,
    object_map,
    said_of,
    shown_rows,
    size_of,
)
from jaxconv.tasks.detection.truth import HEADS, crowds, learned, present, seen_keypoints
from jaxconv.tasks.task import Batch, Figure, Overlay, Task

ANY = (
    "fcos_resnet50_fpn, retinanet_resnet50_fpn, fasterrcnn_resnet50_fpn or another one, with any "
    "backbone"
)


class Detection(Task):
    """Any number of objects. See `Task` for the methods, and the module.

    An example has `boxes` [M, 4], `classes` [M] and `valid` [M]; and it may have `crowd` [M]: boxes
    around many objects, which are not learned, and in which no detection is wrong. A network with
    the head needs `masks` [H, W, ceil(M / 8)] uint8, bits of the objects, see `objects.as_bits`, or
    `keypoints` [M, J, 3], see data/geometry.py. By `filled` [M], the share of its box that each
    object fills, it is small, medium or large.
    """

    figures = (
        Figure("ap", "AP", "", True, True, "AP", "mean AP, IoU 0.50 to 0.95"),
        Figure("ap50", "AP50", "", True, True, "AP50", "mean AP, IoU 0.50"),
        Figure("ap75", "AP75", "", True, True, "AP75", "mean AP, IoU 0.75"),
        Figure("ap_small", "AP small", "", True, True, "AP, small", "mean AP, small objects"),
        Figure("ap_medium", "AP medium", "", True, True, "AP, medium", "mean AP, medium objects"),
        Figure("ap_large", "AP large", "", True, True, "AP, large", "mean AP, large objects"),
        Figure("ar", "AR", "", True, True, "AR", "mean recall, IoU 0.50 to 0.95"),
        Figure("mask_ap", "mask AP", "", True, True, "Mask AP", "mean AP of masks"),
        Figure("mask_ap50", "mask AP50", "", True, True, "Mask AP50", "mean AP of masks, IoU 0.50"),
        Figure("mask_ap75", "mask AP75", "", True, True, "Mask AP75", "mean AP of masks, IoU 0.75"),
        Figure("keypoint_ap", "keypoint AP", "", True, True, "Keypoint AP", "mean AP of keypoints"),
        Figure(
            *("keypoint_ap50", "keypoint AP50", "", True, True, "Keypoint AP50"),
            "mean AP of keypoints, OKS 0.50",
        ),
        Figure("loss", "loss", panel="Loss"),
    )
    needs = ("boxes", "classes", "valid")
    uses = ("crowd", "filled", "size", "seen")
    keeps = True
    served_moves = {"boxes": "boxes", "keypoints": "keypoints"}
    views = ("center", "flip")
    joins_views = True

    def __init__(self, config: Any, description: dict[str, Any]):
        super().__init__(config, description)
        self.heads = heads_of(config)
        self.figures, self.needs = self.measures(config), (*type(self).needs, *self.heads)
        self.uses = self.reads(config)[len(self.needs) :]

    @classmethod
    def reads(cls, config: Any) -> tuple[str, ...]:
        """The targets that a source is asked for: masks and keypoints if the network has heads for
        them.
        """
        heads = heads_of(config)
        return (*cls.needs, *heads, *cls.uses)

    @classmethod
    def measures(cls, config: Any) -> tuple[Figure, ...]:
        """The figures of boxes, and those of the network's other heads."""
        others = [head[:-1] for head in HEADS if head not in heads_of(config)]
        return tuple(one for one in cls.figures if one.key.partition("_")[0] not in others)

    @functools.cached_property
    def network(self) -> Detector:
        """The network, for its settings."""
        return self.model()

    @property
    def logged(self) -> tuple[str, ...]:
        """The losses whose sum is the loss."""
        names: tuple[str, ...] = ("classes", "boxes")
        if isinstance(self.network, RCNN):
            names = ("objectness", "proposals", *names, *self.heads)
        elif isinstance(self.network, FCOS):
            names = (*names, "centerness")
        return tuple(f"{name}_loss" for name in names)

    # Checks, and the network.

    def model(self, axis_name: str | None = None) -> Any:
        """The detector of `config.model`; an R-CNN chooses its regions by `choices`.

        Raises:
          UserError: the network is no detector; or it is to be evaluated on images of another size,
            which the anchors would not fit.
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
        joints = getattr(self.network, "keypoints", 0)
        if joints and joints != (has := self.targets["keypoints"].shape[1]):
            raise UserError(
                f"config.model.kwargs.keypoints is {joints}, and the objects of {source} have "
                f"{has} keypoints; set --config.model.kwargs.keypoints={has}"
            )
        with needing_extras("COCO's average precision"):
            import pycocotools  # noqa: F401

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that the network sees."""
        height, width = self.description["image_shape"][:2]
        return height, width

    # On the devices.

    def sizes(self, count: int, batch: Batch | None = None) -> jax.Array:
        """[B, 2] height and width of what each of `count` images shows, without padding.

        Without a batch, as where an image is all there is, nothing counts as padding.
        """
        if batch is not None and "seen" in batch:
            return batch["seen"]
        return jnp.broadcast_to(jnp.array([self.size], jnp.float32), (count, 2))

    def call(self, batch: Batch) -> Mapping[str, Any]:
        """How an R-CNN chooses the regions that it learns from."""
        keys = numbered(batch[RANDOM_KEY], 1)
        sizes = self.sizes(len(batch["image"]), batch)
        return training.training_choices(self.network, learned(batch), self.size, sizes, keys)

    def eval_call(self, batch: Batch) -> Mapping[str, Any]:
        """How an R-CNN chooses its regions inside of what images on a canvas show."""
        return choices(self.network, self.size, batch["seen"]) if "seen" in batch else {}

    def each_loss(self, outputs: Any, batch: Batch, axis_name: str | None) -> dict[str, jax.Array]:
        """The losses [B] by the names of `logged`."""
        same = jax.vmap(jax.random.key)(jnp.zeros(len(batch["image"]), jnp.uint32))
        keys, truth = numbered(batch.get(RANDOM_KEY, same), 2), learned(batch)
        found = training.losses(self.network, outputs, truth, self.size, keys, axis_name)
        return {f"{name}_loss": value for name, value in found.items()}

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The sum of the losses."""
        return summed(self.each_loss(outputs, batch, self.axis_name))

    def training_values(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """The losses [B]."""
        return self.each_loss(outputs, batch, self.axis_name)

    def eval_loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The loss of each image alone, so that it does not depend on the others of its batch."""
        names = ("image", *self.needs, *(name for name in self.uses if name in batch))

        def of_image(outputs: Any, batch: Batch) -> jax.Array:
            alone = jax.tree.map(lambda x: x[None], (outputs, batch))
            return summed(self.each_loss(*alone, axis_name=None))[0]

        return jax.vmap(of_image)(outputs, {name: batch[name] for name in names})

    def measured(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`loss` [B]."""
        return {"loss": self.eval_loss(outputs, batch)}

    def keep(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`loss`; the detections, see `serve`; the truth: `true_boxes`, `true_classes`,
        `true_valid` and `true_crowd`; `size` and `seen`, if the images stand on a canvas; and the
        areas and overlaps of masks, see instances.py, with `masks` too for `--detections`.
        """
        truth = {name: batch[name] for name in ("boxes", "classes")}
        truth |= {"valid": present(batch), "crowd": crowds(batch)}
        found, more = self.found(outputs, batch), {}
        if "keypoints" in self.heads:
            truth["keypoints"] = seen_keypoints(batch["keypoints"], self.size)
        if "filled" in batch:
            more["true_mask_areas"] = area(batch["boxes"]) * batch["filled"]
        if "masks" in self.heads:
            masks = found.pop("masks")
            of_masks = (masks, found["boxes"], found["valid"])
            # Of COCO's 5,000 images they are 1.6 GB.
            more |= {"masks": masks} if "detections" in self.files else {}
            more |= jax.vmap(mask_measures)(*of_masks, batch["masks"], truth["crowd"])
        kept = self.measured(outputs, batch) | found | more
        kept |= {name: batch[name] for name in ("size", "seen") if name in batch}
        return kept | {f"true_{name}": value for name, value in truth.items()}

    def serve(self, outputs: Any) -> dict[str, jax.Array]:
        """`boxes` [B, D, 4] in pixels, `scores`, `classes` and `valid` [B, D], the best first; with
        the heads `masks` [B, D, 28, 28], probabilities in the boxes, and `keypoints` [B, D, J, 3]:
        y, x and the score.
        """
        return self.found(outputs)

    def found(self, outputs: Any, batch: Batch | None = None) -> dict[str, jax.Array]:
        """The detections, see `serve`; of a batch, inside of what its images show."""
        sizes = self.sizes(outputs["codes"][0].shape[0], batch)
        found = detections(self.network, outputs, self.size, sizes)
        if "keypoints" in found:
            given = (found["keypoints"], found["boxes"], found["valid"])
            found["keypoints"] = jax.vmap(all_keypoints)(*given)
        return {name: found[name] for name in ("boxes", "scores", "classes", "valid", *self.heads)}

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
        found |= more_figures(more_matched(kept, len(self.class_names)))
        shown = {one.key: found[one.key] for one in self.figures if one.key in found}
        return {"loss": float(sums["loss"] / examples), **shown}

    def outcomes(self, kept: Mapping[str, np.ndarray], index: np.ndarray) -> Outcomes:
        """The detections and the truth of every example."""
        classes = len(self.class_names)
        each = matched(kept, classes), more_matched(kept, classes)
        return Outcomes(kept, self.class_names, index, *each)

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
        """The boxes with a score of at least `mistakes.SHOWN`; of each class the best score."""
        names, shares = ("boxes", "classes", "scores"), np.zeros(len(self.class_names))
        _, classes, scores = (np.asarray(served[name])[served["valid"]] for name in names)
        np.maximum.at(shares, classes, scores)
        rows = shown_rows(served)
        boxes, classes, scores = (np.asarray(served[name])[rows] for name in names)
        of_class = classes % NOTHING  # of many classes some have the same colour
        mask = object_map(served, rows, of_class, self.size) if "masks" in served else None
        points = np.asarray(served["keypoints"])[rows] if "keypoints" in served else None
        lines = () if points is None else lines_of(points.shape[1])
        said = self.in_words(classes)
        return Overlay(said, shares, mask, boxes, classes, scores, points, lines)

    def in_file(
        self, served: Mapping[str, np.ndarray], transform: Transform, size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """In the pixels of the file; with masks also its `size` [2], in which they are pasted, and
        `mask_boxes` [D, 4], the boxes of the masks, which may reach beyond it.
        """
        moves = {name: kind for name, kind in self.served_moves.items() if name in served}
        found = move(dict(served), moves, transform, size)
        if "masks" in served:
            whole = move_boxes(served["boxes"], transform)
            found |= {"size": np.array(size), "mask_boxes": whole}
        return found

    def images(self, served: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """With masks `objects`: 0 where there is none, k where the k-th object shown is."""
        if "masks" not in served:
            return {}
        from jaxconv.drawing.masks import indexed

        rows = shown_rows(served)[: NOTHING - 1]
        size = size_of(served, self.description)
        found = object_map(served, rows, 1 + np.arange(len(rows)), size)
        return {"objects": indexed(np.where(found == NOTHING, 0, found), 1 + len(rows))}

    @classmethod
    def describe(
        cls, served: Mapping[str, np.ndarray], description: Mapping[str, Any], top: int
    ) -> tuple[list[str], dict[str, Any]]:
        """The objects with the highest scores first, each with its box, mask and keypoints."""
        found = []
        for row in np.flatnonzero(np.asarray(served["valid"])).tolist()[:top]:
            one = {
                "class": description["class_names"][int(served["classes"][row])],
                "score": float(served["scores"][row]),
                "box": [round(float(x), 1) for x in served["boxes"][row]],
            }
            found.append(one | said_of(served, row, size_of(served, description)))
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
        """Each example with its objects."""
        from jaxconv.drawing.boxes import box_grid

        captions = [self.caption_of(one) for one in targets]
        return box_grid(
            images, [drawn_truth(one, self.class_names, True) for one in targets], captions
        )

    def draw(
        self,
        images: Sequence[Any],
        targets: Sequence[Mapping[str, Any]],
        served: Sequence[Mapping[str, Any]],
        title: str = "",
    ) -> Any:
        """Each example with its objects, and beside it what was found, see `shown_rows`."""
        from jaxconv.drawing.boxes import beside_grid, box_grid

        shown, captions = [], []
        for image, true, said in zip(images, targets, served, strict=True):
            rows = shown_rows(said)
            captions.append(self.in_words(np.asarray(said["classes"])[rows]))
            found = [drawn(said, row, np.shape(image)[:2], self.class_names) for row in rows]
            if "boxes" in true:
                captions[-1] = f"{self.caption_of(true)}; found {captions[-1]}"
                objects = drawn_truth(true, self.class_names)
                wrong = unpaired({**true, "valid": np.asarray(present(true))}, said)
                found = [
                    one._replace(wrong=bool(mark))
                    for one, mark in zip([*objects, *found], np.concatenate(wrong), strict=True)
                ]
            shown.append(found)
        known = all("boxes" in true for true in targets)
        return (beside_grid if known else box_grid)(images, shown, captions, title)

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


def heads_of(config: Any) -> tuple[str, ...]:
    """Those of `HEADS` that the config's network has."""
    model = build_model(config.model, 1)
    return tuple(head for head in HEADS if isinstance(model, RCNN) and getattr(model, head))


def numbered(keys: jax.Array, number: int) -> jax.Array:
    """Keys [B] for one of several uses."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def summed(losses: Mapping[str, jax.Array]) -> jax.Array:
    """The sum [B] of losses."""
    return functools.reduce(jnp.add, losses.values())
