"""RegNet (Radosavovic et al. 2020, arXiv:2003.13678, section 3.3): quantised linear widths.

Unit j of `depth` has the target width w_0 + w_a * j. Its width is w_0 * w_m^s with s rounded, as a
multiple of 8; units of the same width form a stage. A unit is 1x1, 3x3 in groups of `group_width`,
1x1, without a bottleneck; RegNetY adds squeeze-and-excitation to RegNetX.

`X` and `Y` below list depth, w_0, w_a, w_m and group width (Tables 5 to 8 of the appendix).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxconv.layers import Conv, relu
from jaxconv.models.network import (
    ConvNorm,
    Network,
    Norm,
    SqueezeExcite,
    global_mean,
    round_channels,
)
from jaxconv.models.registry import Entry


def stages(
    depth: int, w_0: int, w_a: float, w_m: float, group_width: int
) -> list[tuple[int, int, int]]:
    """(width, units, group width) of each stage."""
    wanted = w_0 + w_a * np.arange(depth)
    power = np.round(np.log(wanted / w_0) / np.log(w_m))
    widths, counts = np.unique((np.round(w_0 * w_m**power / 8) * 8).astype(int), return_counts=True)
    groups = [min(group_width, int(width)) for width in widths]
    return [
        (round_channels(int(w), g), int(n), g)
        for w, n, g in zip(widths, counts, groups, strict=True)
    ]


class Unit(nn.Module):
    """1x1, grouped 3x3, squeeze-and-excitation (`squeezed` filters, 0: none), 1x1; a shortcut."""

    filters: int
    stride: int
    groups: int
    squeezed: int
    conv: Callable[..., Conv]
    norm: Norm
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, filters]."""
        tools: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        y = ConvNorm(self.filters, **tools, filter_size=1, name="conv1")(x)
        strided: dict[str, Any] = {"stride": self.stride, "atrous": self.atrous}
        y = ConvNorm(self.filters, **tools, **strided, groups=self.groups, name="conv2")(y)
        if self.squeezed:
            y = SqueezeExcite(self.squeezed, self.conv, name="se")(y)
        y = ConvNorm(self.filters, **tools, filter_size=1, act=None, name="conv3")(y)
        if self.stride != 1 or x.shape[-1] != self.filters:
            settings: dict[str, Any] = {"filter_size": 1, "act": None, "name": "shortcut"}
            x = ConvNorm(self.filters, **tools, **strided, **settings)(x)
        return relu(x + y)


class RegNet(Network):
    """A RegNet.

    Attributes:
      depth, w_0, w_a, w_m, group_width: see the module's docstring.
      squeeze: filters of squeeze-and-excitation as a share of the unit's input; 0 for none.
    """

    depth: int = 16
    w_0: int = 48
    w_a: float = 27.89
    w_m: float = 2.09
    group_width: int = 8
    squeeze: float = 0.0

    def stages(self) -> list[tuple[int, int, int]]:
        """(width, units, group width) of each stage."""
        return stages(self.depth, self.w_0, self.w_a, self.w_m, self.group_width)

    def strides(self) -> tuple[tuple[int, ...], int]:
        """The stem's, which stays, and each stage's."""
        return (2, *(2,) * len(self.stages())), 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        conv, norm = self.tools(train)
        x = self.note("stem", ConvNorm(32, conv, norm, stride=2, name="stem")(x))
        spacings = self.spacings()
        for stage, (width, units, group_width) in enumerate(self.stages(), 1):
            for n in range(units):
                squeezed = round(self.squeeze * x.shape[-1])
                x = Unit(
                    width,
                    1 if n else 2,
                    width // group_width,
                    squeezed,
                    conv,
                    norm,
                    spacings[stage] * (2 if n else 1),
                    name=f"stage{stage}_{n + 1}",
                )(x)
            x = self.note(f"stage{stage}", x)
        return self.head(self.note("pool", global_mean(x)))


# depth, w_0, w_a, w_m, group width, errors (torchvision's first weights)
X = {
    "400mf": (22, 24, 24.48, 2.54, 16, (27.166, 9.05)),
    "800mf": (16, 56, 35.73, 2.28, 16, (24.788, 7.652)),
    "1_6gf": (18, 80, 34.01, 2.25, 24, (22.96, 6.56)),
    "3_2gf": (25, 88, 26.31, 2.25, 48, (21.636, 6.008)),
    "8gf": (23, 80, 49.56, 2.88, 120, (20.656, 5.314)),
    "16gf": (22, 216, 55.59, 2.1, 128, (19.942, 5.056)),
    "32gf": (23, 320, 69.86, 2.0, 168, (19.378, 4.752)),
}
Y = {
    "400mf": (16, 48, 27.89, 2.09, 8, (25.954, 8.284)),
    "800mf": (14, 56, 38.84, 2.4, 16, (23.58, 6.864)),
    "1_6gf": (27, 48, 20.71, 2.65, 24, (22.05, 6.034)),
    "3_2gf": (21, 80, 42.63, 2.66, 24, (21.052, 5.424)),
    "8gf": (17, 192, 76.82, 2.19, 56, (19.968, 4.952)),
    "16gf": (18, 200, 106.23, 2.48, 112, (19.576, 4.76)),
    "32gf": (20, 232, 115.89, 2.53, 232, (19.122, 4.66)),
    "128gf": (27, 456, 160.83, 2.52, 264, None),
}
FIELDS = ("depth", "w_0", "w_a", "w_m", "group_width")
MODELS = {
    f"regnet_{kind}_{name}": Entry(
        RegNet,
        {**dict(zip(FIELDS, numbers, strict=True)), "squeeze": squeeze},
        2020,
        "Radosavovic et al. 2020, arXiv:2003.13678",
        errors=errors,
    )
    for kind, squeeze, table in (("x", 0.0, X), ("y", 0.25, Y))
    for name, (*numbers, errors) in table.items()
}
