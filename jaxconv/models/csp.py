"""DarkNet-53 and cross stage partial networks.

DarkNet-53 (Redmon and Farhadi 2018, "YOLOv3", arXiv:1804.02767, Table 1), for 256x256 images:

    layer        output    filters            units
    3x3          256x256   32
    3x3/2        128x128   64
    1x1, 3x3               32, 64             1
    3x3/2        64x64     128
    1x1, 3x3               64, 128            2
    3x3/2        32x32     256
    1x1, 3x3               128, 256           8
    3x3/2        16x16     512
    1x1, 3x3               256, 512           8
    3x3/2        8x8       1024
    1x1, 3x3               512, 1024          4
    mean, 1000-d fc, softmax

Each unit adds its input; each convolution has BatchNorm and a leaky ReLU.

In a cross stage partial network (CSPNet, Wang et al. 2019, arXiv:1911.11929, Figure 2) half of a
stage's maps go around its units: 1x1, then units on one half and a 1x1 after them, then a 1x1 of
both halves. Slopes, sizes and names are timm's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv, max_pool
from jaxconv.models.network import ConvNorm, Network, Norm, global_mean
from jaxconv.models.registry import Entry


class Unit(nn.Module):
    """1x1 to `middle` maps and 3x3 to `filters`, added to the input.

    A `bottleneck` is 1x1, 3x3 and 1x1, with the last activation after the sum, as ResNet's.
    """

    filters: int
    middle: int
    conv: Callable[..., Conv]
    norm: Norm
    act: Callable[[jax.Array], jax.Array]
    groups: int = 1
    atrous: int = 0
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, filters] -> the same."""
        tools: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        wide: dict[str, Any] = {"groups": self.groups, "atrous": self.atrous, "name": "conv2"}
        y = ConvNorm(self.middle, **tools, filter_size=1, act=self.act, name="conv1")(x)
        if not self.bottleneck:
            return x + ConvNorm(self.filters, **tools, **wide, act=self.act)(y)
        y = ConvNorm(self.middle, **tools, **wide, act=self.act)(y)
        y = ConvNorm(self.filters, **tools, filter_size=1, act=None, name="conv3")(y)
        return self.act(x + y)


class CSPNet(Network):
    """DarkNet-53, and cross stage partial networks.

    Attributes:
      units, widths: of each stage.
      stem: filters of the first convolution.
      resnet: has ResNet's stem, 7x7/2 and max pooling, a first stage without stride, and
        bottlenecks; otherwise the stem is 3x3 without stride and the units are DarkNet's.
      cross: whether half of a stage's maps go around its units.
      expand, inner, middle: maps of both halves together and of the units' outputs, as shares of
        the stage's width, and maps between a unit's convolutions, as a share of `inner`: in the
        first stage and in later ones.
      groups: of 3x3 convolutions after the stem.
      slope: of the leaky ReLU below 0.
    """

    units: Sequence[int] = (1, 2, 8, 8, 4)
    widths: Sequence[int] = (64, 128, 256, 512, 1024)
    stem: int = 32
    resnet: bool = False
    cross: bool = False
    expand: Sequence[float] = (1.0, 1.0)
    inner: Sequence[float] = (1.0, 1.0)
    middle: Sequence[float] = (0.5, 0.5)
    groups: int = 1
    slope: float = 0.01

    def strides(self) -> tuple[tuple[int, ...], int]:
        """The stem's, which stay, and each stage's."""
        stem = (2, 2, 1) if self.resnet else (1, 2)
        return (*stem, *(2,) * (len(self.units) - 1)), 2 if self.resnet else 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (conv, norm), spacings = self.tools(train), self.spacings()[-len(self.units) :]
        act = functools.partial(nn.leaky_relu, negative_slope=self.slope)
        tools: dict[str, Any] = {"conv": conv, "norm": norm, "act": act}
        size, stride = (7, 2) if self.resnet else (3, 1)
        stem = ConvNorm(self.stem, **tools, filter_size=size, stride=stride, name="conv1")
        x = self.note("conv1", stem(x))
        if self.resnet:
            x = self.note("pool1", max_pool(x, 3, 2, 1, layer="pool1"))
        for stage in range(1, len(self.units) + 1):
            x = self.note(f"stage{stage}", self.stage(x, stage, spacings[stage - 1], tools))
        return self.head(self.note("pool", global_mean(x)))

    def stage(self, x: jax.Array, stage: int, atrous: int, tools: dict[str, Any]) -> jax.Array:
        """[N, H, W, C] -> [N, H / 2, W / 2, width]; the first of a `resnet` keeps the size."""
        width, later, aside = self.widths[stage - 1], min(stage - 1, 1), None
        expanded, inner = (round(width * part[later]) for part in (self.expand, self.inner))
        one: dict[str, Any] = {**tools, "filter_size": 1}
        if stage > 1 or not self.resnet:
            settings: dict[str, Any] = {**tools, "stride": 2, "atrous": atrous}
            settings["groups"] = self.groups
            filters = x.shape[-1] if self.resnet else width
            x = ConvNorm(filters, **settings, name=f"stage{stage}_down")(x)
            atrous *= 2
        if self.cross:
            settings: dict[str, Any] = one | ({"act": None} if self.resnet else {})
            x = ConvNorm(expanded, **settings, name=f"stage{stage}_expand")(x)
            aside, x = jnp.split(x, 2, axis=-1)
        for n in range(1, self.units[stage - 1] + 1):
            settings: dict[str, Any] = {**tools, "groups": self.groups, "atrous": atrous}
            settings |= {"bottleneck": self.resnet, "name": f"stage{stage}_{n}"}
            x = Unit(inner, round(inner * self.middle[later]), **settings)(x)
        if aside is None:
            return x
        x = ConvNorm(expanded // 2, **one, name=f"stage{stage}_inner")(x)
        x = jnp.concatenate([aside, x], axis=-1)
        return ConvNorm(width, **one, name=f"stage{stage}_join")(x)


_DARK = (2018, "Redmon and Farhadi 2018, arXiv:1804.02767")
_CSP = (2019, "Wang et al. 2019, arXiv:1911.11929")
_RESNET = {"units": (3, 3, 5, 2), "stem": 64, "resnet": True, "cross": True}
# Network -> year, paper, errors, and arguments.
TABLE = {
    "darknet53": (*_DARK, (22.8, 6.2), {}),
    "cspdarknet53": (
        *_CSP,
        None,
        {"cross": True, "expand": (2.0, 1.0), "inner": (1.0, 0.5), "middle": (0.5, 1.0)},
    ),
    "cspresnet50": (
        *_CSP,
        None,
        {**_RESNET, "widths": (128, 256, 512, 1024), "expand": (2.0, 2.0)},
    ),
    "cspresnext50": (
        *_CSP,
        None,
        {
            **_RESNET,
            "widths": (256, 512, 1024, 2048),
            "inner": (0.5, 0.5),
            "middle": (1.0, 1.0),
            "groups": 32,
        },
    ),
}
MODELS = {
    name: Entry(CSPNet, arguments, year, paper, input_size=(256, 256, 3), errors=errors)
    for name, (year, paper, errors, arguments) in TABLE.items()
}
