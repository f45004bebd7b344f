"""EfficientNetV2 (Tan and Le 2021, arXiv:2104.00298, Table 4): fused convolutions first.

Fused-MBConv has one convolution in the place of MBConv's 1x1 and depthwise. EfficientNetV2-S:

    stage  operator                  stride  filters  units
    0      conv3x3                   2       24       1
    1      Fused-MBConv1 k3x3        1       24       2
    2      Fused-MBConv4 k3x3        2       48       4
    3      Fused-MBConv4 k3x3        2       64       4
    4      MBConv4 k3x3, SE 0.25     2       128      6
    5      MBConv6 k3x3, SE 0.25     1       160      9
    6      MBConv6 k3x3, SE 0.25     2       256      15
    7      conv1x1                   -       1280     1

M and L (github.com/google/automl) have another stage before the last, see `STAGES`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxconv.layers import Conv
from jaxconv.models.mobilenet import InvertedResidual
from jaxconv.models.network import ConvNorm, Network, Norm, global_mean, stochastic_depth
from jaxconv.models.registry import Entry

# expansion, stride, filters, units; the first three stages are fused
STAGES = {
    "s": ((1, 1, 24, 2), (4, 2, 48, 4), (4, 2, 64, 4), (4, 2, 128, 6), (6, 1, 160, 9))
    + ((6, 2, 256, 15),),
    "m": ((1, 1, 24, 3), (4, 2, 48, 5), (4, 2, 80, 5), (4, 2, 160, 7), (6, 1, 176, 14))
    + ((6, 2, 304, 18), (6, 1, 512, 5)),
    "l": ((1, 1, 32, 4), (4, 2, 64, 7), (4, 2, 96, 7), (4, 2, 192, 10), (6, 1, 224, 19))
    + ((6, 2, 384, 25), (6, 1, 640, 7)),
}
FUSED = 3


class FusedMBConv(nn.Module):
    """3x3 to `expanded` maps and 1x1 to `filters`; one 3x3 where nothing is expanded.

    A shortcut joins the ends if their shapes agree; `drop` is as in `InvertedResidual`.
    """

    filters: int
    expanded: int
    stride: int
    conv: Callable[..., Conv]
    norm: Norm
    act: Callable[[jax.Array], jax.Array]
    train: bool
    drop: float = 0.0
    atrous: int = 0
    padding: int | str = -1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, filters]."""
        tools: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        settings: dict[str, Any] = {"stride": self.stride, "padding": self.padding}
        settings |= {"atrous": self.atrous, "act": self.act, "name": "fused"}
        if self.expanded == x.shape[-1]:
            y = ConvNorm(self.filters, **tools, **settings)(x)
        else:
            y = ConvNorm(self.expanded, **tools, **settings)(x)
            y = ConvNorm(self.filters, **tools, filter_size=1, act=None, name="project")(y)
        if self.stride != 1 or x.shape[-1] != self.filters:
            return y
        return x + stochastic_depth(y, self.drop, self.train)


class EfficientNetV2(Network):
    """Stages of Fused-MBConv and MBConv units.

    Attributes:
      stages: expansion, stride, filters and units of each.
      dropout: share of the last features dropped.
      drop_path: probability of dropping the last unit in training; it grows from 0 at the first
        (arXiv:1603.09382).
      epsilon: of BatchNorm.
      padding: of all windows, see `ConvNorm`; the authors' weights want `same`.
    """

    stages: Sequence[Sequence[int]] = STAGES["s"]
    dropout: float = 0.2
    drop_path: float = 0.2
    epsilon: float = 1e-3
    padding: int | str = -1

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of the first convolution, which stays, and of each stage."""
        return (2, *(stride for _, stride, _, _ in self.stages)), 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (conv, norm), spacings = self.tools(train, epsilon=self.epsilon), self.spacings()
        tools: dict[str, Any] = {"conv": conv, "norm": norm, "act": nn.silu}
        x = ConvNorm(self.stages[0][2], **tools, stride=2, padding=self.padding, name="stage0")(x)
        x, done, units = self.note("stage0", x), 0, sum(row[-1] for row in self.stages)
        for stage, (expansion, stride, filters, count) in enumerate(self.stages, 1):
            for n in range(count):
                settings: dict[str, Any] = {
                    "stride": 1 if n else stride,
                    "drop": self.drop_path * done / units,
                    "train": train,
                    "padding": self.padding,
                    "atrous": spacings[stage] * (stride if n else 1),
                    "name": f"stage{stage}_{n + 1}",
                }
                channels = x.shape[-1]
                if stage <= FUSED:
                    x = FusedMBConv(filters, expansion * channels, **settings, **tools)(x)
                else:
                    settings |= {"filter_size": 3, "squeezed": max(1, channels // 4)}
                    settings |= {"gate": nn.sigmoid, "se_act": nn.silu}
                    x = InvertedResidual(filters, expansion * channels, **settings, **tools)(x)
                done += 1
            x = self.note(f"stage{stage}", x)
        last = f"stage{len(self.stages) + 1}"
        x = self.note(last, ConvNorm(1280, **tools, filter_size=1, name=last)(x))
        x = self.note("pool", global_mean(x))
        return self.head(nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x))


# dropout, input size, errors (torchvision's weights)
SCALES = {
    "s": (0.2, 384, (15.772, 3.122)),
    "m": (0.3, 480, (14.888, 2.844)),
    "l": (0.4, 480, (14.192, 2.212)),
}
MODELS = {
    f"efficientnet_v2_{name}": Entry(
        EfficientNetV2,
        {"stages": STAGES[name], "dropout": dropout},
        2021,
        "Tan and Le 2021, arXiv:2104.00298",
        input_size=(size, size, 3),
        errors=errors,
    )
    for name, (dropout, size, errors) in SCALES.items()
}
