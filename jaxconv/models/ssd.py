"""SSD (Liu et al. 2016, arXiv:1512.02325, Figure 2): boxes on maps of several sizes, no pyramid.

    map       of 300x300   layers                                             boxes at a position
    conv4_3   38x38        of VGG-16, each position of norm 20 (learned)      4
    conv7     19x19        conv5_3, 3x3 max pool at stride 1, 3x3 to 1024     6
                           with dilation 6, 1x1 to 1024
    conv8_2   10x10        1x1 to 256, 3x3 to 512 at stride 2                 6
    conv9_2   5x5          1x1 to 128, 3x3 to 256 at stride 2                 6
    conv10_2  3x3          1x1 to 128, 3x3 to 256, not padded                 4
    conv11_2  1x1          1x1 to 128, 3x3 to 256, not padded                 4

A 3x3 on each map gives logits of K + 1 classes, of which 0 is the background, and codes. SSDlite
(Sandler et al. 2018, arXiv:1801.04381, section 6.2) has depthwise 3x3 and 1x1 in their place, and
reads MobileNetV3 as Howard et al. 2019, arXiv:1905.02244, section 6.3 have it: the expansion of the
last unit with a stride, and the last map, with the channels after it halved:

    map       of 320x320   layers                                             boxes at a position
    C4        20x20        672, the expansion of unit 13                      6
    C5        10x10        480                                                6
    1 to 4    5, 3, 2, 1   1x1, depthwise 3x3 at stride 2, 1x1 to 512, 256,   6
                           256, 128; ReLU6

torchvision's weights of SSD were trained on colours from 0 to 255 less (123, 117, 104): mean
(0.48235, 0.45882, 0.40784), standard deviation 1/255. Those of SSDlite on colours from -1 to 1:
mean and standard deviation 0.5. They know COCO's 91 categories, of which 0 is the background; box
AP 25.1 and 21.3.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.layers import Conv, max_pool, relu
from jaxconv.models.detector import DATA, Detector, Levels
from jaxconv.models.mobilenet import LARGE
from jaxconv.models.network import ConvNorm, Norm
from jaxconv.models.registry import Entry
from jaxconv.models.text import vgg

xavier = nn.initializers.xavier_uniform()


class L2Norm(nn.Module):
    """Scales each position to a norm of 20, then each channel by what it learns (ParseNet, Liu et
    al. 2015, arXiv:1506.04579).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, C] -> the same; a position of zeros stays, and has no gradient."""
        scale = self.param("scale", nn.initializers.constant(20.0), (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
        some = square > 1e-24
        factor = jnp.where(some, lax.rsqrt(jnp.where(some, square, 1)), 0)
        return (wide * factor * scale.reshape(1, 1, 1, -1)).astype(x.dtype)


class SSD(Detector):
    """A detector with one stage.

    Attributes:
      anchor_scales: sides of the squares of each map, as shares of the image, and one more; a
        second square has the geometric mean of two.
      anchor_ratios: of the other boxes of each map, each also lying.
      anchor_steps: pixels between the boxes of each map; empty spreads them evenly.
      extras: after the last map, filters of the 1x1 and the 3x3 of further maps, and the stride.
    """

    anchor_sizes: Sequence[Sequence[float]] = ()
    anchor_ratios: Sequence[Any] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    anchor_scales: Sequence[float] = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
    anchor_steps: Sequence[int] = (8, 16, 32, 64, 100, 300)
    extras: Sequence[Sequence[int]] = ((256, 512, 2), (128, 256, 2), (128, 256, 1), (128, 256, 1))

    @classmethod
    def wanted(cls, strides: Sequence[int]) -> Sequence[int]:
        """Those of conv4_3 and conv5_3."""
        return 8, 16

    def anchors_of_maps(self) -> list[int]:
        """How many anchors each position of each map has."""
        return [2 + 2 * len(ratios) for ratios in self.anchor_ratios]

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> dict[str, Levels]:
        """Images [N, H, W, C] -> `logits` [N, h, w, A, K + 1] and `codes` [N, h, w, A, 4] of each
        map.
        """
        levels = self.levels(x, train)
        anchors = self.anchors_of_maps()
        if len(levels) != len(anchors):
            raise ValueError(
                f"{type(self).__name__}: there are {len(levels)} maps, and anchor_ratios are of "
                f"{len(anchors)}: give one row for each map"
            )
        levels = tuple(self.note(f"map{n}", level) for n, level in enumerate(levels, 1))
        if not self.num_classes:
            return {"pyramid": levels}
        found: dict[str, Levels] = {}
        for name, values in (("logits", self.num_classes + 1), ("codes", 4)):
            outputs = []
            for n, (level, count) in enumerate(zip(levels, anchors, strict=True), 1):
                y = self.last(level, count * values, train, f"{name}{n}").astype(jnp.float32)
                outputs.append(y.reshape(*y.shape[:-1], count, values))
            found[name] = tuple(outputs)
        return found

    def levels(self, x: jax.Array, train: bool) -> list[jax.Array]:
        """The maps, finest first; to be called from `forward`."""
        conv, _ = self.tools(train, norm="none")
        conv = functools.partial(conv, kernel_init=xavier)
        first, x = self.seen(x, train)
        levels = [L2Norm(name="scale")(first)]
        x = max_pool(x, 3, 1, 1)
        x = relu(conv(1024, 3, padding=6, dilation=6, name="fc6")(x))
        levels.append(relu(conv(1024, 1, name="fc7")(x)))
        for n, (narrow, wide, stride) in enumerate(self.extras, 1):
            x = relu(conv(narrow, 1, name=f"extra{n}_1")(levels[-1]))
            layer = conv(wide, 3, stride, padding=int(stride > 1), name=f"extra{n}_2")
            levels.append(relu(layer(x)))
        return levels

    def last(self, x: jax.Array, filters: int, train: bool, name: str) -> jax.Array:
        """The last layer on a map; to be called from `forward`."""
        conv, _ = self.tools(train, norm="none")
        return conv(filters, 3, padding=1, kernel_init=xavier, name=name)(x)


class Separable(nn.Module):
    """Depthwise 3x3 and 1x1, with ReLU6 after the first, and a 1x1 before for `reduced` filters."""

    filters: int
    conv: Callable[..., Conv]
    norm: Norm
    reduced: int = 0
    stride: int = 1
    last: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, C] -> [N, h / stride, w / stride, filters]; `last`: no norm at the end."""
        conv = functools.partial(self.conv, kernel_init=nn.initializers.normal(0.03))
        tools: dict[str, Any] = {"conv": conv, "norm": self.norm, "act": nn.relu6}
        if self.reduced:
            x = ConvNorm(self.reduced, **tools, filter_size=1, name="reduce")(x)
        wide = x.shape[-1]
        x = ConvNorm(wide, **tools, stride=self.stride, groups=wide, name="depthwise")(x)
        if self.last:
            return conv(self.filters, 1, use_bias=True, name="project")(x)
        return ConvNorm(self.filters, **tools, filter_size=1, name="project")(x)


class SSDLite(SSD):
    """SSD with separable convolutions.

    Attributes:
      extras: filters of the further maps, each at half the size.
    """

    head_norm: str = "batch"
    extras: Sequence[Any] = (512, 256, 256, 128)

    @classmethod
    def wanted(cls, strides: Sequence[int]) -> Sequence[int]:
        """C_4 and C_5."""
        return 16, 32

    def lite_tools(self, train: bool) -> tuple[Callable[..., Conv], Norm]:
        """Convolution and norm of the heads, with the settings of MobileNetV3."""
        return self.tools(train, epsilon=1e-3, momentum=0.97, norm=self.head_norm)

    def levels(self, x: jax.Array, train: bool) -> list[jax.Array]:
        """The maps, finest first; to be called from `forward`."""
        levels = self.seen(x, train)
        for n, filters in enumerate(self.extras, 1):
            tools = self.lite_tools(train)
            layer = Separable(filters, *tools, filters // 2, 2, name=f"extra{n}")
            levels.append(layer(levels[-1]))
        return levels

    def last(self, x: jax.Array, filters: int, train: bool, name: str) -> jax.Array:
        """The last layer on a map; to be called from `forward`."""
        return Separable(filters, *self.lite_tools(train), last=True, name=name)(x)


def _reduced() -> tuple:
    """MobileNetV3's rows with the channels after the last stride halved."""
    last = max(n for n, row in enumerate(LARGE) if row.stride > 1)
    rows = list(LARGE)
    for n in range(last, len(rows)):
        narrow = {"expanded": rows[n].expanded // 2} if n > last else {}
        rows[n] = rows[n]._replace(filters=rows[n].filters // 2, **narrow)
    return tuple(rows)


# The third pooling rounds up, so that conv4_3 has 38x38 positions.
_TEXT = vgg("vgg16").replace("[conv3-256 relu]*3 maxpool2", "[conv3-256 relu]*3 maxpool2ceil")
MODELS = {
    "ssd300_vgg16": Entry(
        SSD,
        {
            "backbone": "vgg16",
            "backbone_kwargs": {"text": _TEXT},
            "maps": ("relu4_3", "relu5_3"),
            "score_threshold": 0.01,
            "nms_threshold": 0.45,
            "candidates": 400,
            "detections": 200,
        },
        2016,
        "Liu et al. 2016, arXiv:1512.02325",
        (300, 300, 3),
        (74.9,),
        DATA,
        90,
    ),
    "ssdlite320_mobilenet_v3_large": Entry(
        SSDLite,
        {
            "backbone": "mobilenet_v3_large",
            "backbone_kwargs": {"rows": _reduced(), "expansions": True, "momentum": 0.97},
            "maps": ("block13_expand", "conv2"),
            "anchor_ratios": ((2, 3),) * 6,
            # From 0.2 to 0.95, evenly.
            "anchor_scales": (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0),
            "anchor_steps": (),
            "score_threshold": 0.001,
            "nms_threshold": 0.55,
            "candidates": 300,
            "detections": 300,
        },
        2019,
        "Howard et al. 2019, arXiv:1905.02244",
        (320, 320, 3),
        (78.7,),
        DATA,
        90,
    ),
}
