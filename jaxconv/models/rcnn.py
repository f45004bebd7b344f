"""Faster R-CNN, Mask R-CNN and Keypoint R-CNN: regions are proposed, then looked at one by one.

    part       reads                  layers                              outputs
    proposals  every level            3x3 to 256, ReLU, 1x1 to A and      objectness, codes
                                      to A x 4
    boxes      7x7 of a region,       two fully connected layers of 1024  logits K + 1, codes
               by RoIAlign
    masks      14x14 of a region      four 3x3 to 256, 2x2 up-            K + 1 masks of 28x28
                                      convolution to 256
    keypoints  14x14 of a region      eight 3x3 to 512, 4x4 up-           17 maps of 56x56
                                      convolution, interpolated
    anchors    of 32 to 512 pixels, one size for each level, ratios 1/2, 1, 2: A = 3

Faster R-CNN: Ren et al. 2015, arXiv:1506.01497; on a pyramid: Lin et al. 2017, arXiv:1612.03144;
Mask R-CNN: He et al. 2017, arXiv:1703.06870, Figure 4. Class 0 of the K + 1 is the background, and
class k of the data is k + 1 there. Version 2 is torchvision's (Li et al. 2021, arXiv:2111.11429):
BatchNorm that is trained, also in the pyramid and heads, two 3x3 for the proposals, and four 3x3 to
256 and one fully connected layer for the boxes.

`faster_rcnn_c4_resnet101` is He et al. 2015, arXiv:1512.03385, Appendix A: conv1 to conv4 are
shared, conv5 with its mean over 7x7 is the head of each region of 14x14. Anchors have 128, 256 and
512 pixels. Regions are read by RoIAlign here, not by RoI pooling.

torchvision's weights know COCO's 91 categories, of which 0 is the background. Published AP of boxes
(and masks, keypoints): fasterrcnn_resnet50_fpn 37.0, _v2 46.7, _mobilenet_v3_large_fpn 32.8, 320
22.8 (shorter side 320, longer at most 640); maskrcnn 37.9 (34.6), _v2 47.4 (41.8); keypointrcnn
54.6 (65.0), of persons; C4 27.2.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv, ConvTranspose, Dense, relu, resize
from jaxconv.layers.roi_align import multilevel_roi_align
from jaxconv.models.detector import DATA, Detector, Levels, Output, Tower, normal, of_levels
from jaxconv.models.network import ConvNorm, Norm, global_mean
from jaxconv.models.registry import Entry
from jaxconv.models.resnet import ResNet, stage_units

# Chooses the regions that a head looks at: outputs so far -> {"boxes": [N, R, 4], ...}.
Choose = Callable[[dict[str, Any]], Mapping[str, jax.Array]]


# Regions of an image that the heads for masks and keypoints see at once, see `where_needed`.
PART = 8


class RCNN(Detector):
    """A detector with two stages, whose second has a head for each kind of answer.

    Attributes:
      rpn_convs: 3x3 convolutions of the proposals' head.
      box_convs: 3x3 convolutions of the boxes' head, before one fully connected layer; with 0 it
        has two fully connected layers.
      masks: whether it has the masks' head.
      keypoints: of each region; 0 for none.
      before_nms, after_nms: proposals of each level that NMS looks at, and the most that stay, in
        training and in inference.
      rpn_nms_threshold, rpn_score_threshold: of the proposals, as for detections.
      rpn_samples, samples: anchors and regions of an image that the losses are of.
      filters: of the pyramid.
      box_filters, mask_filters, keypoint_filters: widths of the heads: of the boxes' fully
        connected layers, and of the others' convolutions.
      aligned: whether regions, and the masks that they learn, are read where they are, as
        Detectron2's second version does, rather than half a cell off, as torchvision's weights
        were trained; see `layers.roi_align`. On small images it matters.
      choices: makes the default of `propose` and `select` in `forward`: (network, size of the
        images with padding (height, width), sizes [N, 2] without) -> both by name, see
        `tasks.detection.detections.choices`. None: one region, the whole image.
    """

    rpn_convs: int = 1
    box_convs: int = 0
    masks: bool = False
    keypoints: int = 0
    before_nms: Sequence[int] = (2000, 1000)
    after_nms: Sequence[int] = (2000, 1000)
    rpn_nms_threshold: float = 0.7
    rpn_score_threshold: float = 0.0
    rpn_samples: int = 256
    samples: int = 512
    filters: int = 256
    box_filters: int = 1024
    mask_filters: int = 256
    keypoint_filters: int = 512
    aligned: bool = False
    choices: Callable[..., Mapping[str, Choose]] | None = None

    @classmethod
    def wanted(cls, strides: Sequence[int]) -> Sequence[int]:
        """C_2 to C_5."""
        return 4, 8, 16, 32

    @nn.compact
    def forward(
        self,
        x: jax.Array,
        train: bool,
        propose: Choose | None = None,
        select: Choose | None = None,
    ) -> dict[str, Any]:
        """Images [N, H, W, C] -> the heads' raw outputs.

        Args:
          propose: chooses the regions for the boxes' head from the proposals' outputs; by default
            there is one, the whole image.
          select: chooses the regions for masks and keypoints from all outputs so far; by default
            they are the same.

        Returns:
          `objectness` [N, h, w, A, 1] and `codes` [N, h, w, A, 4] of each level; `regions`, what
          `propose` returned, and of each of them `box_logits` [N, R, K + 1] and `box_codes`
          [N, R, K + 1, 4]; `selected`, what `select` returned, and of each of them `masks`
          [N, R, 28, 28, K + 1] and `keypoints` [N, R, 56, 56, 17], logits. Where `select` says
          by `own` [N, R] which of the K + 1 masks a region wants, `masks` is [N, R, 28, 28].
        """
        levels = self.pyramid(x, train, "pool", self.head_norm, self.filters)
        if not self.num_classes:
            return {"pyramid": levels}
        found: dict[str, Any] = dict(of_levels([self.proposals(train)], levels))
        found["regions"] = self.chosen("propose", propose, found, x)
        read = functools.partial(self.regions, levels[: len(self.maps)], x)
        tools = self.tools(train, norm=self.head_norm)
        head = BoxHead(
            *(self.num_classes + 1, self.box_convs, *tools, self.box_filters, self.dtype),
            name="boxes",
        )
        found |= by_region(head, read(found["regions"]["boxes"], 7))
        if self.masks or self.keypoints:
            own = select or self.choices
            found["selected"] = self.chosen("select", select, found, x) if own else found["regions"]
        heads: list[nn.Module] = []
        if self.masks:
            settings = (self.num_classes + 1, *tools, self.mask_filters)
            heads.append(MaskHead(*settings, name="masks"))
        if self.keypoints:
            settings = (self.keypoints, *tools, self.keypoint_filters)
            heads.append(KeypointHead(*settings, name="keypoints"))
        see = functools.partial(read, size=14)
        for head in heads:
            found |= where_needed(head, see, found["selected"], self.head_norm == "batch")
        return found

    def proposals(self, train: bool, filters: int = 0) -> Tower:
        """The head of the proposals; its 3x3 has as many filters as the map, or `filters`."""
        tools = self.tools(train, norm="none")
        outputs = [Output("objectness", 1), Output("codes", 4)]
        sizes = (self.rpn_convs, 1, filters)
        return Tower(outputs, self.anchors_per_position(), *tools, *sizes, name="rpn")

    def chosen(
        self, name: str, choose: Choose | None, found: dict[str, Any], x: jax.Array
    ) -> Mapping[str, jax.Array]:
        """The regions for a head; by default those of `choices`, or the whole image `x`."""
        if choose is None and self.choices is not None:
            sizes = jnp.broadcast_to(jnp.array(x.shape[1:3], jnp.float32), (x.shape[0], 2))
            choose = self.choices(self, x.shape[1:3], sizes)[name]
        if choose is not None:
            return choose(found)
        whole = jnp.array([0, 0, *x.shape[1:3]], jnp.float32)
        return {"boxes": jnp.broadcast_to(whole, (x.shape[0], 1, 4))}

    def regions(self, levels: Levels, x: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
        """What a head reads of boxes [N, R, 4] in pixels of the images `x`, [N, R, size, size, C].

        No gradient reaches the boxes.
        """
        by_stride: dict[int, jax.Array] = {}
        for level in levels:  # of two with the same stride, torchvision reads the first
            by_stride.setdefault(2 ** round(math.log2(x.shape[1] / level.shape[1])), level)
        settings: dict[str, Any] = {"strides": [*by_stride], "aligned": self.aligned}
        read = functools.partial(multilevel_roi_align, size=size, **settings)
        return jax.vmap(read)(list(by_stride.values()), boxes)


def by_region(
    head: Callable[[jax.Array], Mapping[str, jax.Array]], pooled: jax.Array
) -> dict[str, jax.Array]:
    """The outputs of a head for regions [N, R, h, w, C], by name: [N, R, ...]."""
    outputs = head(pooled.reshape(-1, *pooled.shape[2:]))
    return {name: y.reshape(*pooled.shape[:2], *y.shape[1:]) for name, y in outputs.items()}


def where_needed(
    head: nn.Module,
    read: Callable[[jax.Array], jax.Array],
    chosen: Mapping[str, jax.Array],
    together: bool,
) -> dict[str, jax.Array]:
    """A head's outputs for regions, but 0 for parts of the regions none of which is valid.

    The regions that are valid stand first, and are few of as many as there may be; a head that is
    the most expensive part of the network is spared for the rest, and so is what it reads.

    Args:
      read: boxes [N, R, 4] -> what the head sees of them, [N, R, h, w, C].
      chosen: `boxes` [N, R, 4]; `valid` [N, R], without which all are; and `own` [N, R], the class
        of each whose mask alone is kept, without which those of all classes are.
      together: whether the head sees all regions at once, as BatchNorm's statistics need.
    """
    given = {name: chosen[name] for name in ("boxes", "own") if name in chosen}
    if "valid" not in chosen or together or head.is_initializing():
        return own_masks(by_region(cast(Any, head), read(given["boxes"])), given)
    pure: Any = functools.partial(head.clone(parent=None, name=None).apply, head.variables)
    images, count = chosen["valid"].shape

    def in_parts(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, -count % PART), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(images, -1, PART, *x.shape[2:]).swapaxes(0, 1)

    def part(given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return own_masks(by_region(pure, read(given["boxes"])), given)

    parts = jax.tree.map(in_parts, given)
    shapes = jax.eval_shape(part, jax.tree.map(lambda x: x[0], parts))

    def none(given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        # Made of the boxes, so that under `shard_map` they are of each device too.
        zero = jnp.where(False, given["boxes"][0, 0, 0], 0)
        return {k: jnp.broadcast_to(zero.astype(y.dtype), y.shape) for k, y in shapes.items()}

    # A part is computed once more in the backward pass: what its layers keep would be kept, as
    # zeros, of the parts without regions too. The outer checkpoint keeps the maps and parameters
    # that `read` and the head take from being kept once for each part.
    @jax.checkpoint
    def either(there: jax.Array, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return jax.lax.cond(there, jax.checkpoint(part), none, given)

    there = in_parts(chosen["valid"]).any(axis=(1, 2))
    found = jax.lax.map(lambda pair: either(*pair), (there, parts))
    return {
        name: y.swapaxes(0, 1).reshape(images, -1, *y.shape[3:])[:, :count]
        for name, y in found.items()
    }


def own_masks(found: dict[str, jax.Array], given: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Outputs whose masks are [N, R, 28, 28], those of the classes `own` [N, R], if it is given."""
    if "masks" not in found or "own" not in given:
        return found
    own = given["own"][..., None, None, None]
    return {**found, "masks": jnp.take_along_axis(found["masks"], own, axis=-1)[..., 0]}


class Predictor(nn.Module):
    """The last two layers for a region: [N, ...] -> `box_logits` [N, K], `box_codes` [N, K, 4]."""

    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """They start as in Girshick 2015, arXiv:1504.08083, section 2.3."""
        last = functools.partial(Dense, dtype=self.dtype)
        logits = last(self.classes, kernel_init=normal, name="logits")(x)
        small = nn.initializers.normal(0.001)
        codes = last(4 * self.classes, kernel_init=small, name="codes")(x)
        codes = codes.reshape(-1, self.classes, 4)
        return {"box_logits": logits.astype(jnp.float32), "box_codes": codes.astype(jnp.float32)}


class BoxHead(nn.Module):
    """Of a region [N, 7, 7, C]: convolutions, fully connected layers, class and box."""

    classes: int
    convs: int
    conv: Callable[..., Conv]
    norm: Norm
    filters: int = 1024
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """[N, h, w, C] -> `box_logits` [N, classes], `box_codes` [N, classes, 4], float32."""
        for n in range(1, self.convs + 1):
            x = ConvNorm(256, self.conv, self.norm, name=f"conv{n}")(x)
        for name in ("fc6",) if self.convs else ("fc6", "fc7"):
            x = relu(Dense(self.filters, dtype=self.dtype, name=name)(x))
        return Predictor(self.classes, self.dtype, name="last")(x)


class MaskHead(nn.Module):
    """A mask of a region for each class."""

    classes: int
    conv: Callable[..., Conv]
    norm: Norm
    filters: int = 256

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """[N, h, w, C] -> `masks`: logits [N, 2h, 2w, classes], float32."""
        for n in range(1, 5):
            x = ConvNorm(self.filters, self.conv, self.norm, name=f"conv{n}")(x)
        x = relu(ConvTranspose(self.filters, 2, 2, dtype=x.dtype, name="up")(x))
        x = self.conv(self.classes, 1, use_bias=True, name="logits")(x)
        return {"masks": x.astype(jnp.float32)}


class KeypointHead(nn.Module):
    """A map of a region for each keypoint."""

    keypoints: int
    conv: Callable[..., Conv]
    norm: Norm
    filters: int = 512

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """[N, h, w, C] -> `keypoints`: logits [N, 4h, 4w, keypoints], float32."""
        for n in range(1, 9):
            x = ConvNorm(self.filters, self.conv, self.norm, name=f"conv{n}")(x)
        x = ConvTranspose(self.keypoints, 4, 2, 1, dtype=x.dtype, name="up")(x)
        x = resize(x.astype(jnp.float32), [2 * side for side in x.shape[1:-1]])
        return {"keypoints": x}


class RCNNC4(RCNN):
    """Faster R-CNN whose second stage is the last stage of a ResNet, its backbone."""

    @classmethod
    def wanted(cls, strides: Sequence[int]) -> Sequence[int]:
        """C_4."""
        return (16,)

    def check(self) -> None:
        """Raise ValueError for settings that are impossible or would do nothing."""
        super().check()
        if not isinstance(self.backbone, ResNet) or self.backbone.version == 2:
            raise ValueError(
                f"the backbone is {type(self.backbone).__name__}; the last stage of a ResNet of "
                "version 1 or 1.5 becomes the head: use one, or fasterrcnn_resnet50_fpn, which "
                "takes any backbone"
            )
        for name, value in (
            *(("masks", False), ("keypoints", 0), ("box_convs", 0), ("box_filters", 1024)),
            *(("mask_filters", 256), ("keypoint_filters", 512)),
        ):
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)!r}, and C4 has a head for boxes")

    @nn.compact
    def forward(
        self,
        x: jax.Array,
        train: bool,
        propose: Choose | None = None,
        select: Choose | None = None,
    ) -> dict[str, Any]:
        """Images [N, H, W, C] -> the heads' raw outputs, see `RCNN`; no `select`."""
        levels = tuple(self.seen(x, train))
        if not self.num_classes:
            return {"pyramid": levels}
        found: dict[str, Any] = dict(of_levels([self.proposals(train, 512)], levels))
        found["regions"] = self.chosen("propose", propose, found, x)
        conv, norm = self.tools(train)
        network = cast(ResNet, self.backbone)
        last = len(network.units) - 1
        units = stage_units(network, last, conv=conv, norm=norm, train=train)
        predictor = Predictor(self.num_classes + 1, self.dtype, name="last")

        def head(y: jax.Array) -> dict[str, jax.Array]:
            for unit in units:
                y = unit(y)
            return predictor(global_mean(y))

        return found | by_region(head, self.regions(levels, x, found["regions"]["boxes"], 14))


PAPERS = {
    "faster": "Ren et al. 2015, arXiv:1506.01497",
    "mask": "He et al. 2017, arXiv:1703.06870",
    "residual": "He et al. 2015, arXiv:1512.03385",
}
RESNET = {
    "backbone": "resnet50",
    "backbone_kwargs": {},
    "norm": "frozen",
    "anchor_sizes": ((32,), (64,), (128,), (256,), (512,)),
}
# With the backbone's own norm, which is trained.
V2 = {**RESNET, "norm": "batch", "head_norm": "batch", "rpn_convs": 2, "box_convs": 4}
MOBILE = {
    "backbone": "mobilenet_v3_large",
    "backbone_kwargs": {"epsilon": 1e-5},
    "norm": "frozen",
    "maps": ("block13", "conv2"),
    "anchor_sizes": ((32, 64, 128, 256, 512),) * 3,
    "rpn_score_threshold": 0.05,
}
SMALLER = {**MOBILE, "before_nms": (2000, 150), "after_nms": (2000, 150)}
C4 = {
    "backbone": "resnet101_v1",
    "backbone_kwargs": {},
    "norm": "frozen",
    "anchor_sizes": ((128, 256, 512),),
    "before_nms": (12000, 6000),
    "after_nms": (2000, 300),
    "nms_threshold": 0.3,
}


def _entry(
    arguments: dict[str, Any],
    year: int,
    paper: str,
    precision: float,
    module: type[RCNN] = RCNN,
    size: tuple[int, int, int] = (800, 1088, 3),
    classes: int = 90,
) -> Entry:
    error = round(100 - precision, 1)
    return Entry(module, arguments, year, PAPERS[paper], size, (error,), DATA, classes)


MODELS = {
    "fasterrcnn_resnet50_fpn": _entry(RESNET, 2017, "faster", 37.0),
    "fasterrcnn_resnet50_fpn_v2": _entry(V2, 2021, "faster", 46.7),
    "fasterrcnn_mobilenet_v3_large_fpn": _entry(MOBILE, 2019, "faster", 32.8),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _entry(
        SMALLER, 2019, "faster", 22.8, size=(320, 448, 3)
    ),
    "maskrcnn_resnet50_fpn": _entry({**RESNET, "masks": True}, 2017, "mask", 37.9),
    "maskrcnn_resnet50_fpn_v2": _entry({**V2, "masks": True}, 2021, "mask", 47.4),
    "keypointrcnn_resnet50_fpn": _entry({**RESNET, "keypoints": 17}, 2017, "mask", 54.6, classes=1),
    "faster_rcnn_c4_resnet101": _entry(C4, 2015, "residual", 27.2, module=RCNNC4, classes=80),
}
