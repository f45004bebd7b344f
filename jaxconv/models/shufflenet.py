"""ShuffleNet v2 (Ma et al. 2018, arXiv:1807.11164, Table 5): half of the maps pass unchanged.

    layer       output    stride  units  filters  0.5x   1x    1.5x   2x
    conv1 3x3   112x112   2       1               24     24    24     24
    max pool    56x56     2
    stage2      28x28     2       4               48     116   176    244
    stage3      14x14     2       8               96     232   352    488
    stage4      7x7       2       4               192    464   704    976
    conv5 1x1   7x7       1       1               1024   1024  1024   2048
    global pool, fc

A unit (Figure 3c) leaves the first half of its maps as they are; the second goes through 1x1,
depthwise 3x3, 1x1. The first unit of a stage (Figure 3d) has all maps on both ways, and a depthwise
3x3 and a 1x1 on the first. Then the maps of both ways take turns: the channels are shuffled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv, max_pool
from jaxconv.models.network import ConvNorm, Network, Norm, global_mean
from jaxconv.models.registry import Entry


def shuffle(x: jax.Array, groups: int = 2) -> jax.Array:
    """Channels of consecutive groups take turns: [..., C] -> the same; a a b b becomes a b a b."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], groups, -1), -1, -2).reshape(x.shape)


class Unit(nn.Module):
    """A unit of the figure; `filters` are those of both ways together."""

    filters: int
    stride: int
    conv: Callable[..., Conv]
    norm: Norm
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, filters]."""
        tools: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        strided: dict[str, Any] = {"stride": self.stride, "atrous": self.atrous, "act": None}
        half = self.filters // 2

        def depthwise(x: jax.Array, name: str) -> jax.Array:
            return ConvNorm(x.shape[-1], **tools, **strided, groups=x.shape[-1], name=name)(x)

        if self.stride == 1:
            kept, y = jnp.split(x, 2, axis=-1)
        else:
            kept = depthwise(x, "shortcut_depthwise")
            kept, y = ConvNorm(half, **tools, filter_size=1, name="shortcut")(kept), x
        y = depthwise(ConvNorm(half, **tools, filter_size=1, name="conv1")(y), "depthwise")
        y = ConvNorm(half, **tools, filter_size=1, name="conv2")(y)
        return shuffle(jnp.concatenate([kept, y], axis=-1))


class ShuffleNetV2(Network):
    """Units that shuffle channels.

    Attributes:
      widths: filters of the three stages.
      last: filters of conv5.
      units: of the three stages.
    """

    widths: Sequence[int] = (116, 232, 464)
    last: int = 1024
    units: Sequence[int] = (4, 8, 4)

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of conv1 and of the pooling, which stay, and of each stage."""
        return (2, 2, *(2,) * len(self.widths)), 2

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (conv, norm), spacings = self.tools(train), self.spacings()
        x = self.note("conv1", ConvNorm(24, conv, norm, stride=2, name="conv1")(x))
        x = self.note("pool1", max_pool(x, 3, 2, 1, layer="pool1"))
        for stage, (filters, units) in enumerate(zip(self.widths, self.units, strict=True), 2):
            for n in range(units):
                atrous, name = spacings[stage] * (2 if n else 1), f"stage{stage}_{n + 1}"
                x = Unit(filters, 1 if n else 2, conv, norm, atrous, name=name)(x)
            x = self.note(f"stage{stage}", x)
        x = self.note("conv5", ConvNorm(self.last, conv, norm, filter_size=1, name="conv5")(x))
        return self.head(self.note("pool", global_mean(x)))


# filters of the stages, of conv5, errors (torchvision's weights)
WIDTHS = {
    "x0_5": ((48, 96, 192), 1024, (39.448, 18.254)),
    "x1_0": ((116, 232, 464), 1024, (30.638, 11.684)),
    "x1_5": ((176, 352, 704), 1024, (27.004, 8.914)),
    "x2_0": ((244, 488, 976), 2048, (23.77, 6.994)),
}
MODELS = {
    f"shufflenet_v2_{name}": Entry(
        ShuffleNetV2,
        {"widths": widths, "last": last},
        2018,
        "Ma et al. 2018, arXiv:1807.11164",
        errors=errors,
    )
    for name, (widths, last, errors) in WIDTHS.items()
}
