"""What detectors share: a pyramid on the backbone's maps, and heads at every position of a level.

A detector returns its heads' raw outputs, level by level from the finest on:

    logits   [N, h, w, A, K]   of A anchors at each position
    codes    [N, h, w, A, 4]   of the anchors' boxes, see tasks/detection/boxes.py

With 0 classes it returns the pyramid. What follows, from anchors to boxes, has no parameters and
stands in tasks/detection/. Published weights were trained on images whose shorter side has 800
pixels and whose longer has at most 1333, padded to a multiple of 32, with ImageNet's mean (0.485,
0.456, 0.406) and standard deviation (0.229, 0.224, 0.225) of colours from 0 to 1, where the file
of a family does not say otherwise.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.errors import nearest
from jaxconv.layers import Conv
from jaxconv.models.backbone import OnBackbone
from jaxconv.models.fpn import FPN
from jaxconv.models.network import NORMS, ConvNorm, Norm

Levels = tuple[jax.Array, ...]
DATA = "boxes of COCO 2017 validation, 100 - AP"
# What torchvision's heads start with.
normal = nn.initializers.normal(0.01)


class Detector(OnBackbone):
    """The base class of the detectors.

    Attributes:
      head_norm: the norm of the heads, one of `NORMS`; `norm` is the backbone's.
      anchor_sizes: the square roots of the anchors' areas in pixels, for each level.
      anchor_ratios: their heights over their widths.
      score_threshold: detections have at least this score.
      nms_threshold: of two detections of a class with more IoU than this the better stays.
      candidates: the best so many of each level are looked at.
      detections: the most that an image can have.
    """

    head_norm: str = "none"
    anchor_sizes: Sequence[Sequence[float]] = ()
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    candidates: int = 1000
    detections: int = 100

    def check(self) -> None:
        """Raise ValueError for settings that are impossible or would do nothing."""
        super().check()
        if self.head_norm not in NORMS:
            raise ValueError(
                f"head_norm is {self.head_norm!r}{nearest(self.head_norm, NORMS)}; it must be one "
                f"of {', '.join(NORMS)}"
            )

    def anchors_per_position(self) -> int:
        """How many anchors each position of a level has."""
        return len(self.anchor_ratios) * len(self.anchor_sizes[0])

    def pyramid(
        self, x: jax.Array, train: bool, extra: str, norm: str = "none", filters: int = 256
    ) -> Levels:
        """Images [N, H, W, C] -> the levels of an FPN, noted as `pyramid1` and so on; to be called
        from `forward`.
        """
        tools = self.tools(train, norm=norm)
        levels = FPN(*tools, extra, filters, name="fpn")(self.seen(x, train))
        if len(levels) != len(self.anchor_sizes):
            raise ValueError(
                f"{type(self).__name__}: the pyramid has {len(levels)} levels, and anchor_sizes "
                f"are of {len(self.anchor_sizes)}: give one row for each level"
            )
        return tuple(self.note(f"pyramid{n}", level) for n, level in enumerate(levels, 1))


class Output(NamedTuple):
    """The last layer of a head: its name, its values for an anchor, and its first bias."""

    name: str
    values: int
    bias: float = 0.0


class Tower(nn.Module):
    """3x3 convolutions, then one layer for each output; the same for every level.

    Attributes:
      outputs: its last layers.
      anchors: at each position.
      convs: 3x3 convolutions before.
      window: of the last layers.
      filters: of the convolutions; 0 is as many as the map has.
    """

    outputs: Sequence[Output]
    anchors: int
    conv: Callable[..., Conv]
    norm: Norm
    convs: int = 4
    window: int = 3
    filters: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """[N, h, w, C] -> {name: [N, h, w, anchors, values]}, float32."""
        conv = functools.partial(self.conv, kernel_init=normal)
        for n in range(1, self.convs + 1):
            x = ConvNorm(self.filters or x.shape[-1], conv, self.norm, name=f"conv{n}")(x)
        found = {}
        for name, values, bias in self.outputs:
            y = conv(
                self.anchors * values,
                self.window,
                padding=self.window // 2,
                use_bias=True,
                bias_init=nn.initializers.constant(bias),
                name=name,
            )(x)
            y = y.reshape(*y.shape[:-1], self.anchors, values)
            found[name] = y.astype(jnp.float32)
        return found


def of_levels(
    heads: Sequence[Callable[[jax.Array], Mapping[str, jax.Array]]], levels: Sequence[jax.Array]
) -> dict[str, Levels]:
    """The outputs of the same heads on each level, by name."""
    found: dict[str, list[Any]] = {}
    for level in levels:
        for head in heads:
            for name, output in head(level).items():
                found.setdefault(name, []).append(output)
    return {name: tuple(outputs) for name, outputs in found.items()}
