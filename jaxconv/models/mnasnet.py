"""MNASNet (Tan et al. 2018, arXiv:1807.11626, section 4): inverted residuals that a search found.

This is the network without squeeze-and-excitation, B1, as torchvision has it. After conv 3x3/2 of
32 filters, and a depthwise 3x3 and a 1x1 to 16 of them:

    block  expansion  filter  stride  filters  units
    3      3          3x3     2       24       3
    4      3          5x5     2       40       3
    5      6          5x5     2       80       3
    6      6          3x3     1       96       2
    7      6          5x5     2       192      4
    8      6          3x3     1       320      1

and conv 1x1 to 1280. `width` multiplies all filters but the last, rounded to multiples of 8.
"""

from typing import Any

import flax.linen as nn
import jax

from jaxconv.layers import relu
from jaxconv.models.mobilenet import InvertedResidual
from jaxconv.models.network import ConvNorm, Network, global_mean, round_channels
from jaxconv.models.registry import Entry

# expansion, filter size, stride, filters, units
STAGES = (
    (1, 3, 1, 16, 1),
    (3, 3, 2, 24, 3),
    (3, 5, 2, 40, 3),
    (6, 5, 2, 80, 3),
    (6, 3, 1, 96, 2),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class MNASNet(Network):
    """A network found by architecture search.

    Attributes:
      width: multiplies the filters.
      units: of each row of the table; fewer for a smaller network.
    """

    width: float = 1.0
    units: tuple[int, ...] = tuple(row[-1] for row in STAGES)

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of conv1, which stays, and of each block."""
        return (2, *(stride for _, _, stride, _, _ in STAGES)), 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (conv, norm), spacings = self.tools(train, momentum=0.9997), self.spacings()
        tools: dict[str, Any] = {"conv": conv, "norm": norm, "act": relu}
        x = ConvNorm(round_channels(32 * self.width), **tools, stride=2, name="conv1")(x)
        x = self.note("conv1", x)
        for block, (expansion, size, stride, filters, _) in enumerate(STAGES, 2):
            for n in range(self.units[block - 2]):
                x = InvertedResidual(
                    round_channels(filters * self.width),
                    expansion * x.shape[-1],
                    size,
                    1 if n else stride,
                    **tools,
                    train=train,
                    atrous=spacings[block - 1] * (stride if n else 1),
                    name=f"block{block}_{n + 1}",
                )(x)
            x = self.note(f"block{block}", x)
        x = self.note("conv2", ConvNorm(1280, **tools, filter_size=1, name="conv2")(x))
        x = self.note("pool", global_mean(x))
        return self.head(nn.Dropout(0.2, deterministic=not train, name="dropout")(x))


# width, errors (torchvision's weights)
WIDTHS = {
    "0_5": (0.5, (32.266, 12.51)),
    "0_75": (0.75, (28.82, 9.504)),
    "1_0": (1.0, (26.544, 8.49)),
    "1_3": (1.3, (23.494, 6.478)),
}
MODELS = {
    f"mnasnet{name}": Entry(
        MNASNet, {"width": width}, 2018, "Tan et al. 2018, arXiv:1807.11626", errors=errors
    )
    for name, (width, errors) in WIDTHS.items()
}
