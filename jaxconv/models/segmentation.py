"""Networks that give each pixel a class, on the feature maps of any other network.

    network     reads                               produces
    FCN         the last map, at output stride 8    3x3 to a quarter of its channels, dropout 0.1,
                                                    1x1 to classes
    DeepLabV3   the last map, at output stride 8    ASPP: 1x1, three 3x3 with dilations 12, 24, 36
                or 16                               (6, 12, 18 at 16) and the mean, 256 each; 1x1 to
                                                    256, dropout 0.5; 3x3 to 256, 1x1 to classes
    LR-ASPP     the last map, at output stride 16   1x1 to 128, times the sigmoid of a 1x1 to 128 of
                and one at stride 8                 the mean; resized; 1x1 to classes of both, added

FCN: Long et al. 2015, arXiv:1411.4038, with torchvision's head. DeepLabV3: Chen et al. 2017,
arXiv:1706.05587, Figure 5. LR-ASPP: Howard et al. 2019, arXiv:1905.02244, Figure 10. The logits are
resized linearly to the image. In training, FCN and DeepLabV3 have a second FCN head on an earlier
map, whose loss weighs 0.5. torchvision's DeepLabV3 on MobileNetV3 has the dilations of stride 8 at
16, and dilates the convolution that has lost its stride as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv, resize
from jaxconv.models.backbone import OnBackbone
from jaxconv.models.network import AUXILIARY, ConvNorm, Norm
from jaxconv.models.registry import Entry

AUXILIARY_WEIGHT = 0.5


class FCNHead(nn.Module):
    """3x3 to a quarter of the channels, dropout, 1x1 to `classes`; without the last for 0."""

    classes: int
    conv: Callable[..., Conv]
    norm: Norm
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, classes]."""
        x = ConvNorm(x.shape[-1] // 4, self.conv, self.norm, name="hidden")(x)
        x = nn.Dropout(0.1, deterministic=not self.train, name="dropout")(x)
        return self.conv(self.classes, 1, use_bias=True, name="classes")(x) if self.classes else x


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: views of a map at several scales, joined by a 1x1."""

    filters: int
    dilations: Sequence[int]
    conv: Callable[..., Conv]
    norm: Norm
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, filters]."""
        tools: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        views = [ConvNorm(self.filters, **tools, filter_size=1, name="view1")(x)]
        for n, dilation in enumerate(self.dilations, 2):
            views.append(ConvNorm(self.filters, **tools, atrous=dilation, name=f"view{n}")(x))
        mean = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), keepdims=True)
        mean = ConvNorm(self.filters, **tools, filter_size=1, name="mean")(mean)
        views.append(jnp.broadcast_to(mean, views[0].shape))
        x = jnp.concatenate(views, axis=-1)
        x = ConvNorm(self.filters, **tools, filter_size=1, name="project")(x)
        return nn.Dropout(0.5, deterministic=not self.train, name="dropout")(x)


class Segmenter(OnBackbone):
    """The base class of the others.

    Attributes:
      maps: names of the maps that the head reads, the last one first; by default the backbone's
        last maps at its largest stride, before `output_stride`, and at half or, for `LRASPP`, a
        quarter of it.
    """

    # The stride of the second map, as a share of that of the first.
    nearer = 2

    @classmethod
    def wanted(cls, strides: Sequence[int]) -> Sequence[int]:
        """The largest, and half or a quarter of it."""
        return max(strides), max(strides) // cls.nearer

    def resized(self, logits: jax.Array, x: jax.Array) -> jax.Array:
        """The logits at the size of the image `x`, float32."""
        return resize(logits.astype(jnp.float32), x.shape[1:-1])


class FCN(Segmenter):
    """A fully convolutional network.

    Attributes:
      auxiliary: whether to have the second head, on the second of `maps`. In training its logits
        are stored in the collection `auxiliary`.
    """

    auxiliary: bool = True

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, H, W, num_classes], float32."""
        conv, norm = self.tools(train)
        second = self.auxiliary and bool(self.num_classes) and (train or self.is_initializing())
        maps = self.seen(x, train, 1 + second)
        if second:
            head = FCNHead(self.num_classes, conv, norm, train, name="aux")
            self.keep(AUXILIARY, "aux", (self.resized(head(maps[1]), x), AUXILIARY_WEIGHT))
        return self.resized(self.decoded(maps[0], train, conv, norm), x)

    def decoded(
        self, x: jax.Array, train: bool, conv: Callable[..., Conv], norm: Norm
    ) -> jax.Array:
        """[N, h, w, C] -> logits [N, h, w, num_classes]."""
        return FCNHead(self.num_classes, conv, norm, train, name="head")(x)


class DeepLabV3(FCN):
    """DeepLab, version 3.

    Attributes:
      dilations: of the three 3x3 convolutions of ASPP.
    """

    dilations: Sequence[int] = (12, 24, 36)

    def decoded(
        self, x: jax.Array, train: bool, conv: Callable[..., Conv], norm: Norm
    ) -> jax.Array:
        """[N, h, w, C] -> logits [N, h, w, num_classes]."""
        x = self.note("aspp", ASPP(256, self.dilations, conv, norm, train, name="aspp")(x))
        x = self.note("head", ConvNorm(256, conv, norm, name="head")(x))
        return conv(self.num_classes, 1, use_bias=True, name="fc")(x) if self.num_classes else x


class LRASPP(Segmenter):
    """Lite reduced ASPP, for mobile networks."""

    nearer = 4

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, H, W, num_classes], float32."""
        conv, norm = self.tools(train)
        high, low = self.seen(x, train, 2)
        y = ConvNorm(128, conv, norm, filter_size=1, name="high")(high)
        mean = jnp.mean(high, axis=tuple(range(1, high.ndim - 1)), keepdims=True)
        y = y * nn.sigmoid(conv(128, 1, use_bias=False, name="scale")(mean))
        y = self.note("head", resize(y, low.shape[1:-1]))
        if self.num_classes:
            of_low = conv(self.num_classes, 1, use_bias=True, name="low_fc")(low)
            y = conv(self.num_classes, 1, use_bias=True, name="fc")(y) + of_low
        return self.resized(y, x)


DATA = "COCO 2017 validation, the 20 classes of VOC"
FCN_PAPER = "Long et al. 2015, arXiv:1411.4038"
DEEPLAB_PAPER = "Chen et al. 2017, arXiv:1706.05587"
_MOBILE = {
    "backbone": "mobilenet_v3_large",
    "backbone_kwargs": {"dilated_stride": True},
    "output_stride": 16,
    "maps": ("conv2", "block4"),
}


def _resnet(depth: int) -> dict[str, Any]:
    return {"backbone": f"resnet{depth}", "backbone_kwargs": {}, "output_stride": 8}


# The errors are 100 - mean IoU of torchvision's weights.
MODELS = {
    **{
        f"fcn_resnet{depth}": Entry(
            FCN, _resnet(depth), 2015, FCN_PAPER, (520, 520, 3), (error,), DATA
        )
        for depth, error in ((50, 39.5), (101, 36.3))
    },
    **{
        f"deeplabv3_resnet{depth}": Entry(
            DeepLabV3, _resnet(depth), 2017, DEEPLAB_PAPER, (520, 520, 3), (error,), DATA
        )
        for depth, error in ((50, 33.6), (101, 32.6))
    },
    "deeplabv3_mobilenet_v3_large": Entry(
        DeepLabV3, _MOBILE, 2017, DEEPLAB_PAPER, (520, 520, 3), (39.7,), DATA
    ),
    "lraspp_mobilenet_v3_large": Entry(
        LRASPP, _MOBILE, 2019, "Howard et al. 2019, arXiv:1905.02244", (520, 520, 3), (42.1,), DATA
    ),
}
