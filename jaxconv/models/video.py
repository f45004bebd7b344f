"""Residual networks for clips of video (Tran et al. 2017, arXiv:1711.11248, Table 1 and Figure 1).

    layer    output            R3D-18                      MC3-18         R(2+1)D-18
    conv1    T x 56x56         3x7x7, 64, stride 1x2x2     the same       1x7x7, 45; 3x1x1, 64
    conv2_x  T x 56x56         [3x3x3, 64; 3x3x3, 64] x2   the same       [1x3x3; 3x1x1] twice, x2
    conv3_x  T/2 x 28x28       128 x2, stride 2x2x2        1x3x3, 1x2x2   128 x2
    conv4_x  T/4 x 14x14       256 x2, stride 2x2x2        1x3x3, 1x2x2   256 x2
    conv5_x  T/8 x 7x7         512 x2, stride 2x2x2        1x3x3, 1x2x2   512 x2
             1x1x1             average pool over time and space, fc

They are ResNet-18 whose convolutions see time too. R3D's are 3x3x3. MC3's are so in conv1 and
conv2_x; later ones see one frame at a time, so T stays. R(2+1)D splits each into one over space
and one over time, with BatchNorm and ReLU between, and so many filters between them that it has as
many weights as 3x3x3: floor(27 C K / (9 C + 3 K)) for a unit's C input maps and K filters.

Clips are [N, T, H, W, C], published for 16 frames of 112x112. torchvision's weights, of
Kinetics-400, want mean (0.43216, 0.394666, 0.37645), deviation (0.22803, 0.22145, 0.216989).
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxconv.layers import Conv, relu
from jaxconv.models.network import ConvNorm, Network, Norm, global_mean
from jaxconv.models.registry import Entry

KINDS = ("3d", "2d", "2+1d")


class Unit(nn.Module):
    """Two convolutions of a kind, and a shortcut; `between` are the filters between space and time.

    Its convolutions over space alone, in R(2+1)D, are `conv1_space` and `conv2_space`.
    """

    filters: int
    stride: int
    kind: str
    conv: Callable[..., Conv]
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, T, H, W, C] -> [N, T / stride, H / stride, W / stride, filters]; `2d` leaves T."""
        tools: dict[str, Any] = {"conv": self.conv, "norm": self.norm}
        channels, strides = (
            x.shape[-1],
            (1 if self.kind == "2d" else self.stride, *2 * (self.stride,)),
        )
        between = 27 * channels * self.filters // (9 * channels + 3 * self.filters)
        y = x
        for n, (time, space, _) in ((1, strides), (2, (1, 1, 1))):
            name, act = f"conv{n}", relu if n == 1 else None
            settings: dict[str, Any] = {"act": act, "name": name}
            if self.kind == "2+1d":
                y = ConvNorm(
                    between,
                    **tools,
                    filter_size=(1, 3, 3),
                    stride=(1, space, space),
                    name=f"{name}_space",
                )(y)
                settings |= {"filter_size": (3, 1, 1), "stride": (time, 1, 1)}
            else:
                settings["filter_size"] = (1 if self.kind == "2d" else 3, 3, 3)
                settings["stride"] = (time, space, space)
            y = ConvNorm(self.filters, **tools, **settings)(y)
        if self.stride != 1 or channels != self.filters:
            settings = {"filter_size": 1, "stride": strides, "act": None, "name": "shortcut"}
            x = ConvNorm(self.filters, **tools, **settings)(x)
        return relu(x + y)


class VideoResNet(Network):
    """A residual network for clips.

    Attributes:
      kinds: of the stages' convolutions, each one of `KINDS`; the first is also the stem's.
      units: of each stage.
      width: filters of the first stage; each later stage has twice as many.
    """

    kinds: Sequence[str] = ("3d",) * 4
    units: Sequence[int] = (2, 2, 2, 2)
    width: int = 64

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Clips [N, T, H, W, C] -> logits [N, num_classes], float32.

        Raises:
          ValueError: the clips have another number of axes.
        """
        if x.ndim != 5:
            raise ValueError(f"clips are [N, T, H, W, C], but these are {list(x.shape)}")
        conv, norm = self.tools(train)
        tools: dict[str, Any] = {"conv": conv, "norm": norm}
        space: dict[str, Any] = {"filter_size": (3, 7, 7), "stride": (1, 2, 2), "name": "conv1"}
        if self.kinds[0] == "2+1d":
            space |= {"filter_size": (1, 7, 7), "name": "conv1_space"}
            x = ConvNorm(45 * self.width // 64, **tools, **space)(x)
            space = {"filter_size": (3, 1, 1), "name": "conv1"}
        x = self.note("conv1", ConvNorm(self.width, **tools, **space)(x))
        for stage, (kind, units) in enumerate(zip(self.kinds, self.units, strict=True)):
            for n in range(units):
                stride, name = 2 if stage and n == 0 else 1, f"conv{stage + 2}_{n + 1}"
                x = Unit(self.width * 2**stage, stride, kind, conv, norm, name=name)(x)
            x = self.note(f"conv{stage + 2}", x)
        return self.head(self.note("pool", global_mean(x)))

    def check(self) -> None:
        """Raise ValueError for settings that are impossible or would do nothing."""
        if not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds are {self.kinds}; each must be one of {', '.join(KINDS)}")
        super().check()


# kinds, errors (torchvision's weights)
VARIANTS = {
    "r3d_18": (("3d",) * 4, (36.8, 16.521)),
    "mc3_18": (("3d", "2d", "2d", "2d"), (36.04, 15.87)),
    "r2plus1d_18": (("2+1d",) * 4, (32.537, 13.824)),
}
MODELS = {
    name: Entry(
        VideoResNet,
        {"kinds": kinds},
        2017,
        "Tran et al. 2017, arXiv:1711.11248",
        input_size=(16, 112, 112, 3),
        errors=errors,
        data="Kinetics-400 validation, 5 clips of 16 frames a video",
        classes=400,
    )
    for name, (kinds, errors) in VARIANTS.items()
}
