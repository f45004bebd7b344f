"""MobileNets: depthwise convolutions, then 1x1.

Version 1 (Howard et al. 2017, arXiv:1704.04861, Table 1): conv 3x3/2, 32; then depthwise 3x3 and
1x1 of

    filters  64  128 128  256 256  512 512 512 512 512 512  1024 1024
    stride    1    2   1    2   1    2   1   1   1   1   1     2    1

Version 2 (Sandler et al. 2018, arXiv:1801.04381, Table 2), inverted residuals after conv 3x3/2, 32,
and before conv 1x1, 1280:

    expansion t   1   6   6   6   6   6   6
    filters c    16  24  32  64  96 160 320
    units n       1   2   3   4   3   3   1
    stride s      1   2   2   2   1   2   1

Version 3 (Howard et al. 2019, arXiv:1905.02244, Tables 1 and 2): units as `LARGE` and `SMALL`
below, with squeeze-and-excitation (SE) and h-swish (HS).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv, Dense, relu
from jaxconv.models.network import (
    ConvNorm,
    Network,
    Norm,
    SqueezeExcite,
    global_mean,
    named,
    round_channels,
    stochastic_depth,
)
from jaxconv.models.registry import Entry


class MobileNetV1(Network):
    """Depthwise separable convolutions.

    Attributes:
      width: multiplies every layer's filters (the paper's alpha).
    """

    width: float = 1.0

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of conv1, which stays, and of each depthwise convolution."""
        return (2, *(stride for _, stride in V1)), 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (conv, norm), spacings = self.tools(train), self.spacings()
        x = self.note(
            "conv1",
            ConvNorm(round_channels(32 * self.width), conv, norm, stride=2, name="conv1")(x),
        )
        for n, (filters, stride) in enumerate(V1, 2):
            x = ConvNorm(
                x.shape[-1],
                conv,
                norm,
                stride=stride,
                atrous=spacings[n - 1],
                groups=x.shape[-1],
                name=f"conv{n}_depthwise",
            )(x)
            x = self.note(
                f"conv{n}",
                ConvNorm(
                    round_channels(filters * self.width), conv, norm, filter_size=1, name=f"conv{n}"
                )(x),
            )
        x = nn.Dropout(0.001, deterministic=not train, name="dropout")(
            self.note("pool", global_mean(x))
        )
        return self.head(x)


class InvertedResidual(nn.Module):
    """1x1 to `expanded` feature maps, depthwise, 1x1 to `filters`.

    A shortcut joins the narrow ends if their shapes agree.

    Attributes:
      squeezed: filters in the middle of squeeze-and-excitation; 0 for none.
      gate: its last activation.
      se_act: its first activation.
      drop: probability of dropping the unit in training (stochastic depth, arXiv:1603.09382).
      padding: of the depthwise convolution, see `ConvNorm`.
      expansion: a name for the expanded map, see `network.named`.
    """

    filters: int
    expanded: int
    filter_size: int
    stride: int
    conv: Callable[..., Conv]
    norm: Norm
    act: Callable[[jax.Array], jax.Array]
    train: bool
    squeezed: int = 0
    gate: Callable[[jax.Array], jax.Array] = nn.hard_sigmoid
    se_act: Callable[[jax.Array], jax.Array] = relu
    drop: float = 0.0
    atrous: int = 0
    padding: int | str = -1
    expansion: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, filters]."""
        tools = {"conv": self.conv, "norm": self.norm}
        y = x
        if self.expanded != x.shape[-1]:
            y = ConvNorm(self.expanded, **tools, filter_size=1, act=self.act, name="expand")(y)
            y = named(self.expansion, y) if self.expansion else y
        settings = {
            "filter_size": self.filter_size,
            "stride": self.stride,
            "padding": self.padding,
            "atrous": self.atrous,
            "groups": self.expanded,
            "act": self.act,
        }
        y = ConvNorm(self.expanded, **tools, **settings, name="depthwise")(y)
        if self.squeezed:
            y = SqueezeExcite(self.squeezed, self.conv, self.se_act, self.gate, name="se")(y)
        y = ConvNorm(self.filters, **tools, filter_size=1, act=None, name="project")(y)
        if self.stride != 1 or x.shape[-1] != self.filters:
            return y
        # One draw per image drops or keeps the whole unit.
        return x + stochastic_depth(y, self.drop, self.train)


class MobileNetV2(Network):
    """Inverted residuals and linear bottlenecks.

    Attributes:
      width: multiplies every layer's filters.
    """

    width: float = 1.0

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of conv1, which stays, and of each stage."""
        return (2, *(stride for *_, stride in V2)), 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (conv, norm), spacings = self.tools(train), self.spacings()
        tools = {"conv": conv, "norm": norm, "act": nn.relu6}
        x = self.note(
            "conv1", ConvNorm(round_channels(32 * self.width), **tools, stride=2, name="conv1")(x)
        )
        for stage, (expansion, filters, units, stride) in enumerate(V2, 2):
            for n in range(units):
                arguments = (
                    round_channels(filters * self.width),
                    x.shape[-1] * expansion,
                    3,
                    stride if n == 0 else 1,
                )
                x = InvertedResidual(
                    *arguments,
                    **tools,
                    train=train,
                    atrous=spacings[stage - 1] * (stride if n else 1),
                    name=f"block{stage}_{n + 1}",
                )(x)
            x = self.note(f"block{stage}", x)
        x = self.note(
            "conv2",
            ConvNorm(
                round_channels(1280 * max(1.0, self.width)), **tools, filter_size=1, name="conv2"
            )(x),
        )
        return self.head(
            nn.Dropout(0.2, deterministic=not train, name="dropout")(
                self.note("pool", global_mean(x))
            )
        )


class Row(NamedTuple):
    """A row of version 3's tables."""

    filter_size: int
    expanded: int
    filters: int
    squeeze: bool
    act: str
    stride: int


class MobileNetV3(Network):
    """A network found by architecture search.

    Attributes:
      rows: the units.
      hidden: neurons of the layer before the logits.
      dilated_stride: with `output_stride`, dilate a convolution that has lost its stride as those
        after it, which is what torchvision's segmentation networks do.
      expansions: name the expanded map of each unit with a stride too: `block13_expand`.
      momentum, epsilon: of the norms, see `layers.BatchNorm`.
      padding: of all windows, see `ConvNorm`; the authors' weights want `same`.
    """

    rows: Sequence[Row] = ()
    hidden: int = 1280
    dilated_stride: bool = False
    expansions: bool = False
    momentum: float = 0.99
    epsilon: float = 1e-3
    padding: int | str = -1

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of conv1, which stays, and of each unit."""
        return (2, *(row.stride for row in self.rows)), 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        conv, norm = self.tools(train, epsilon=self.epsilon, momentum=self.momentum)
        tools, spacings = {"conv": conv, "norm": norm}, self.spacings()
        first = {"stride": 2, "padding": self.padding, "act": nn.hard_swish, "name": "conv1"}
        x = self.note("conv1", ConvNorm(16, **tools, **first)(x))
        for n, row in enumerate(self.rows, 1):
            lost = self.dilated_stride and spacings[n] and row.stride > 1
            stride, atrous = (1, spacings[n] * row.stride) if lost else (row.stride, spacings[n])
            arguments = (row.filters, row.expanded, row.filter_size, stride)
            squeezed = round_channels(row.expanded // 4) if row.squeeze else 0
            x = InvertedResidual(
                *arguments,
                **tools,
                act=ACTIVATIONS[row.act],
                train=train,
                squeezed=squeezed,
                atrous=atrous,
                padding=self.padding,
                expansion=f"block{n}_expand" if self.expansions and row.stride > 1 else "",
                name=f"block{n}",
            )(x)
            x = self.note(f"block{n}", x)
        x = self.note(
            "conv2",
            ConvNorm(6 * x.shape[-1], **tools, filter_size=1, act=nn.hard_swish, name="conv2")(x),
        )
        x = self.note("pool", global_mean(x))
        if not self.num_classes:
            return x.astype(jnp.float32)
        x = nn.hard_swish(Dense(self.hidden, dtype=self.dtype, name="fc1")(x))
        return self.head(nn.Dropout(0.2, deterministic=not train, name="dropout")(x), "fc2")


V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *(((512, 1),) * 5),
    (1024, 2),
    (1024, 1),
)
V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
ACTIVATIONS = {"RE": relu, "HS": nn.hard_swish}
LARGE = (
    Row(3, 16, 16, False, "RE", 1),
    Row(3, 64, 24, False, "RE", 2),
    Row(3, 72, 24, False, "RE", 1),
    Row(5, 72, 40, True, "RE", 2),
    Row(5, 120, 40, True, "RE", 1),
    Row(5, 120, 40, True, "RE", 1),
    Row(3, 240, 80, False, "HS", 2),
    Row(3, 200, 80, False, "HS", 1),
    Row(3, 184, 80, False, "HS", 1),
    Row(3, 184, 80, False, "HS", 1),
    Row(3, 480, 112, True, "HS", 1),
    Row(3, 672, 112, True, "HS", 1),
    Row(5, 672, 160, True, "HS", 2),
    Row(5, 960, 160, True, "HS", 1),
    Row(5, 960, 160, True, "HS", 1),
)
SMALL = (
    Row(3, 16, 16, True, "RE", 2),
    Row(3, 72, 24, False, "RE", 2),
    Row(3, 88, 24, False, "RE", 1),
    Row(5, 96, 40, True, "HS", 2),
    Row(5, 240, 40, True, "HS", 1),
    Row(5, 240, 40, True, "HS", 1),
    Row(5, 120, 48, True, "HS", 1),
    Row(5, 144, 48, True, "HS", 1),
    Row(5, 288, 96, True, "HS", 2),
    Row(5, 576, 96, True, "HS", 1),
    Row(5, 576, 96, True, "HS", 1),
)
PAPERS = {
    1: "Howard et al. 2017, arXiv:1704.04861",
    2: "Sandler et al. 2018, arXiv:1801.04381",
    3: "Howard et al. 2019, arXiv:1905.02244",
}
# Errors: version 1 from the paper's Table 8 (top-1 only), 2 and 3 from torchvision's first weights.
MODELS = {
    "mobilenet_v1": Entry(MobileNetV1, {}, 2017, PAPERS[1], errors=(29.4,)),
    "mobilenet_v2": Entry(MobileNetV2, {}, 2018, PAPERS[2], errors=(28.122, 9.714)),
    "mobilenet_v3_large": Entry(
        MobileNetV3, {"rows": LARGE, "hidden": 1280}, 2019, PAPERS[3], errors=(25.958, 8.66)
    ),
    "mobilenet_v3_small": Entry(
        MobileNetV3, {"rows": SMALL, "hidden": 1024}, 2019, PAPERS[3], errors=(32.332, 12.598)
    ),
}
