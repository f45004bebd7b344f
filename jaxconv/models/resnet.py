"""ResNet and its variants: deep residual learning (He et al. 2015, arXiv:1512.03385, Table 1).

    layer   output    18-layer       34-layer       50-layer             101-layer   152-layer
    conv1   112x112                  7x7, 64, stride 2
    conv2_x 56x56                    3x3 max pool, stride 2
                      [3x3, 64       [3x3, 64       [1x1 64, 3x3 64,     the same    the same
                       3x3, 64]x2     3x3, 64]x3     1x1 256]x3          x3          x3
    conv3_x 28x28     128 x2         128 x4         128, 128, 512 x4     x4          x8
    conv4_x 14x14     256 x2         256 x6         256, 256, 1024 x6    x23         x36
    conv5_x 7x7       512 x2         512 x3         512, 512, 2048 x3    x3          x3
            1x1                      average pool, 1000-d fc, softmax

Version 1 has a stage's stride on the first 1x1 of its first unit, as in the paper. Version 1.5 has
it on the 3x3, as is now usual. Version 2 applies BatchNorm and ReLU before each convolution
("Identity mappings", He et al. 2016, arXiv:1603.05027, Figure 4e). The CIFAR networks (section 4.2)
have 3 stages of n units with 16, 32 and 64 filters, 6n + 2 layers, and shortcuts without weights.
Wide ResNet (arXiv:1605.07146) widens the 3x3, ResNeXt (arXiv:1611.05431) splits it into groups, and
SE-ResNet (arXiv:1709.01507) reweights the unit's feature maps. Further variants are in
resnet_variants.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.errors import nearest
from jaxconv.layers import Conv, average_pool, max_pool, relu
from jaxconv.models.attention import EfficientChannelAttention, SelectiveKernel
from jaxconv.models.network import (
    ConvNorm,
    Network,
    Norm,
    SqueezeExcite,
    global_mean,
    stochastic_depth,
)
from jaxconv.models.registry import Entry

SHORTCUTS = ("projection", "pool", "pad")
# What `selective` lists: fields of `attention.SelectiveKernel`.
SELECTIVE = ("ratio", "divisor", "split")


class Unit(nn.Module):
    """A unit of version 1 or 1.5: two 3x3 convolutions, or 1x1, 3x3, 1x1 as a bottleneck.

    Attributes:
      filters: of the unit's output.
      middle: of its 3x3 convolutions.
      first_stride: whether the stride is on the first convolution (version 1) or, in a bottleneck,
        on the 3x3.
      shortcut: `projection` (a 1x1 convolution where the shape changes), `pool` (2x2 means instead
        of its stride) or `pad` (zeros for the new feature maps).
      squeeze, eca, selective: see `ResNet`.
      drop: probability of dropping the residual in training, see `network.stochastic_depth`.
      atrous: of the convolutions up to the stride, see `layers.convolve`; later ones follow.
    """

    filters: int
    middle: int
    stride: int
    conv: Callable[..., Conv]
    norm: Norm
    bottleneck: bool
    train: bool
    groups: int = 1
    first_stride: bool = False
    squeeze: int = 0
    eca: bool = False
    selective: Sequence[int] = ()
    shortcut: str = "projection"
    drop: float = 0.0
    atrous: int = 0

    def convolve(self, x: jax.Array, name: str, groups: int = 1, **strided: Any) -> jax.Array:
        """The unit's main 3x3 convolution, to `middle` filters."""
        tools: dict[str, Any] = {"conv": self.conv, "norm": self.norm, "groups": groups}
        if not self.selective:
            return ConvNorm(self.middle, **tools, **strided, name=name)(x)
        settings: dict[str, Any] = dict(zip(SELECTIVE, self.selective, strict=True))
        return SelectiveKernel(self.middle, **tools, **strided, **settings, name=name)(x)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, filters]."""
        tools: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        strided: dict[str, Any] = {"stride": self.stride, "atrous": self.atrous}
        after: dict[str, Any] = {"stride": 1, "atrous": self.atrous * self.stride}
        if self.bottleneck:
            first, second = (strided, after) if self.first_stride else ({}, strided)
            y = ConvNorm(self.middle, **tools, **first, filter_size=1, name="conv1")(x)
            y = self.convolve(y, "conv2", self.groups, **second)
            y = ConvNorm(self.filters, **tools, filter_size=1, act=None, name="conv3")(y)
        else:
            y = self.convolve(x, "conv1", **strided)
            y = ConvNorm(self.filters, **tools, **after, act=None, name="conv2")(y)
        if self.squeeze:
            y = SqueezeExcite(self.filters // self.squeeze, self.conv, name="se")(y)
        if self.eca:
            y = EfficientChannelAttention(self.conv, name="eca")(y)
        if self.stride != 1 or x.shape[-1] != self.filters:
            if self.shortcut == "pad":
                x = _pad_shortcut(x, 1 if self.atrous else self.stride, self.filters)
            else:
                if self.shortcut == "pool":
                    # Windows that lack a row or column at the border are means of what is there.
                    if self.stride != 1:
                        x = average_pool(x, 2, **strided, rounding="ceil", layer="shortcut")
                    x, strided = x[:, : y.shape[1], : y.shape[2]], {}
                settings: dict[str, Any] = {**strided, "act": None, "name": "shortcut"}
                x = ConvNorm(self.filters, **tools, filter_size=1, **settings)(x)
        return relu(x + stochastic_depth(y, self.drop, self.train))


class PreactivationUnit(nn.Module):
    """A unit of version 2: norm and ReLU before each convolution.

    A shortcut with weights starts after the first ReLU.
    """

    filters: int
    middle: int
    stride: int
    conv: Callable[..., Conv]
    norm: Norm
    bottleneck: bool
    train: bool
    drop: float = 0.0
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, filters]."""
        y = relu(self.norm(name="norm1")(x))
        if self.stride != 1 or x.shape[-1] != self.filters:
            x = self.conv(self.filters, 1, self.stride, atrous=self.atrous, name="shortcut")(y)
        strided, after = (self.stride, self.atrous), (1, self.atrous * self.stride)
        if self.bottleneck:
            sizes = ((self.middle, 1, (1, 0)), (self.middle, 3, strided), (self.filters, 1, (1, 0)))
        else:
            sizes = ((self.middle, 3, strided), (self.filters, 3, after))
        for n, (filters, size, (stride, atrous)) in enumerate(sizes, 1):
            if n > 1:
                y = relu(self.norm(name=f"norm{n}")(y))
            y = self.conv(filters, size, stride, size // 2, atrous=atrous, name=f"conv{n}")(y)
        return x + stochastic_depth(y, self.drop, self.train)


def _pad_shortcut(x: jax.Array, stride: int, filters: int) -> jax.Array:
    """The paper's option A: every stride-th pixel, and zero feature maps added on both sides."""
    new = filters - x.shape[-1]
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))


class ResNet(Network):
    """A residual network.

    Attributes:
      units: of each stage.
      bottleneck: use 1x1, 3x3, 1x1 units, whose output is four times as wide.
      version: 1, 1.5 or 2.
      width: filters of the first stage; each later stage has twice as many.
      groups: of the 3x3 convolutions (ResNeXt's cardinality).
      group_width: filters of a group in the first stage; 0 is `width / groups`.
      squeeze: reduction ratio of squeeze-and-excitation; 0 for none.
      eca: efficient channel attention in its place, see attention.py.
      selective: ratio, divisor and split of `attention.SelectiveKernel` in the place of the first
        3x3 of each unit; empty for none.
      small_images: use the CIFAR networks' stem, one 3x3 convolution without stride or pooling.
      deep_stem: filters of the 3x3 convolutions of a stem that ends with one of `width` filters, in
        the place of the 7x7; empty for the 7x7.
      strided_stem: a 3x3 convolution with stride 2 in the place of the max pooling.
      shortcut: `projection`, `pool` or `pad`, see `Unit`.
      drop_path: probability of dropping the last unit in training; it grows from 0 at the first
        (arXiv:1603.09382).
    """

    units: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    version: float = 1.5
    width: int = 64
    groups: int = 1
    group_width: int = 0
    squeeze: int = 0
    eca: bool = False
    selective: Sequence[int] = ()
    small_images: bool = False
    deep_stem: Sequence[int] = ()
    strided_stem: bool = False
    shortcut: str = "projection"
    drop_path: float = 0.0

    def check(self) -> None:
        """Raise ValueError for settings that are impossible or would do nothing."""
        super().check()
        if self.shortcut not in SHORTCUTS:
            raise ValueError(
                f"shortcut is {self.shortcut!r}{nearest(self.shortcut, SHORTCUTS)}; it must be one "
                f"of {', '.join(SHORTCUTS)}"
            )
        if len(self.selective) not in (0, len(SELECTIVE)):
            raise ValueError(f"selective is {self.selective}; give {', '.join(SELECTIVE)}")
        stem = {"deep_stem": self.deep_stem, "strided_stem": self.strided_stem}
        units = {"squeeze": self.squeeze, "eca": self.eca, "selective": self.selective}
        idle = {}
        if self.small_images:
            idle |= dict.fromkeys(stem, "small_images is True")
        if self.version == 2:
            idle |= dict.fromkeys([*stem, *units], "version is 2")
        if self.squeeze:
            idle["eca"] = f"squeeze is {self.squeeze}"
        for name, why in idle.items():
            if value := (stem | units)[name]:
                raise ValueError(f"{name} is {value!r}, which would do nothing: {why}")

    def strides(self) -> tuple[tuple[int, ...], int]:
        """The stem's, which stay, and each stage's."""
        stem, stages = (1,) if self.small_images else (2, 2), (1, *(2,) * (len(self.units) - 1))
        return (*stem, *stages), len(stem)

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        conv, norm = self.tools(train)
        tools, spacings = {"conv": conv, "norm": norm}, self.spacings()[-len(self.units) :]
        stem = (3, 1) if self.small_images else (7, 2)
        if self.version == 2:
            x = conv(self.width, *stem, stem[0] // 2, name="conv1")(x)
        elif self.deep_stem:
            for n, filters in enumerate((*self.deep_stem, self.width), 1):
                x = ConvNorm(filters, **tools, stride=1 if n > 1 else 2, name=f"conv1_{n}")(x)
        else:
            x = ConvNorm(self.width, **tools, filter_size=stem[0], stride=stem[1], name="conv1")(x)
        x = self.note("conv1", x)
        if self.strided_stem:
            x = self.note("pool1", ConvNorm(self.width, **tools, stride=2, name="pool1")(x))
        elif not self.small_images:
            x = self.note("pool1", max_pool(x, 3, 2, 1, layer="pool1"))
        for stage in range(len(self.units)):
            for unit in stage_units(self, stage, spacings[stage], **tools, train=train):
                x = unit(x)
            x = self.note(f"conv{stage + 2}", x)
        if self.version == 2:
            x = self.note("norm", relu(norm(name="norm")(x)))
        return self.head(self.note("pool", global_mean(x)))


def stage_units(
    network: ResNet, stage: int, spacing: int = 0, **settings: Any
) -> list[Unit | PreactivationUnit]:
    """The units of a stage, counted from 0, of a ResNet; to be called in a compact method.

    Args:
      spacing: of the stage, see `Network.spacings`.
      **settings: `conv`, `norm` and `train` of the units.
    """
    width = network.width * 2**stage
    group_width = network.group_width or network.width // network.groups
    made = []
    for n in range(network.units[stage]):
        done = sum(network.units[:stage]) + n
        arguments = {
            "filters": width * (4 if network.bottleneck else 1),
            "middle": network.groups * group_width * 2**stage,
            "stride": 2 if stage and n == 0 else 1,
            "atrous": spacing * (2 if stage and n else 1),
            "bottleneck": network.bottleneck,
            "drop": network.drop_path * done / max(1, sum(network.units) - 1),
            "name": f"conv{stage + 2}_{n + 1}",
            **settings,
        }
        if network.version == 2:
            made.append(PreactivationUnit(**arguments))
            continue
        made.append(
            Unit(
                **arguments,
                groups=network.groups,
                squeeze=network.squeeze,
                eca=network.eca,
                selective=network.selective,
                shortcut=network.shortcut,
                first_stride=network.version == 1,
            )
        )
    return made


PAPER = "He et al. 2015, arXiv:1512.03385"
# 26 and 200 are variants' alone.
UNITS = {
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
# Top-1 and top-5 error of one crop on ILSVRC's validation images. Version 1: the paper's
# repository; 1.5: torchvision's first weights.
ERRORS_V1 = {50: (24.7, 7.8), 101: (23.6, 7.1), 152: (23.0, 6.7)}
ERRORS_V15 = {
    18: (30.242, 10.922),
    34: (26.686, 8.58),
    50: (23.87, 7.138),
    101: (22.626, 6.454),
    152: (21.688, 5.954),
}
CIFAR_ERRORS = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}


def of_depth(depth: int, **arguments: Any) -> dict[str, Any]:
    """The arguments of a network of `depth` layers."""
    return {"units": UNITS[depth], "bottleneck": depth not in (18, 34), **arguments}


MODELS = {
    **{
        f"resnet{d}": Entry(ResNet, of_depth(d), 2015, PAPER, errors=e)
        for d, e in ERRORS_V15.items()
    },
    **{
        f"resnet{d}_v1": Entry(
            ResNet, of_depth(d, version=1.0), 2015, PAPER, errors=ERRORS_V1.get(d)
        )
        for d in ERRORS_V15
    },
    **{
        f"resnet{d}_v2": Entry(
            ResNet, of_depth(d, version=2.0), 2016, "He et al. 2016, arXiv:1603.05027"
        )
        for d in ERRORS_V15
    },
    **{
        f"resnet{d}_cifar": Entry(
            ResNet,
            {"units": ((d - 2) // 6,) * 3, "width": 16, "small_images": True, "shortcut": "pad"},
            2015,
            PAPER,
            input_size=(32, 32, 3),
            errors=(error,),
            data="CIFAR-10",
        )
        for d, error in CIFAR_ERRORS.items()
    },
    **{
        f"wide_resnet{d}_2": Entry(
            ResNet,
            of_depth(d, group_width=128),
            2016,
            "Zagoruyko and Komodakis 2016, arXiv:1605.07146",
            errors=errors,
        )
        for d, errors in {50: (21.532, 5.914), 101: (21.152, 5.716)}.items()
    },
    **{
        f"resnext{d}_{g}x{w}d": Entry(
            ResNet,
            of_depth(d, groups=g, group_width=w),
            2016,
            "Xie et al. 2017, arXiv:1611.05431",
            errors=errors,
        )
        for (d, g, w), errors in {
            (50, 32, 4): (22.382, 6.302),
            (101, 32, 8): (20.688, 5.474),
            (101, 64, 4): (16.754, 3.546),
        }.items()
    },
    **{
        f"se_resnet{d}": Entry(
            ResNet,
            of_depth(d, squeeze=16, version=1.0),
            2017,
            "Hu et al. 2018, arXiv:1709.01507",
            errors=errors,
        )
        for d, errors in {50: (23.29, 6.62), 101: (22.38, 6.07), 152: (21.57, 5.73)}.items()
    },
}
