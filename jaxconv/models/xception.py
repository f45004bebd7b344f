"""Xception (Chollet 2017, arXiv:1610.02357, Figure 5): Inception of separable convolutions alone.

A separable convolution is a depthwise 3x3 and a 1x1, without anything between. All have BatchNorm;
blocks have ReLU before each, and a shortcut, a 1x1/2 where they end with a 3x3/2 max pooling.

    part          layers                                           output of 299x299
    entry flow    conv 3x3/2 32, conv 3x3 64, both without padding 147x147
                  block 1: 128, 128, pool                          74x74
                  block 2: 256, 256, pool                          37x37
                  block 3: 728, 728, pool                          19x19
    middle flow   blocks 4 to 11: 728, 728, 728                    19x19
    exit flow     block 12: 728, 1024, pool                        10x10
                  1536, 2048 with ReLU after each                  10x10
                  mean, 1000-d fc, softmax
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxconv.layers import Conv, max_pool, relu
from jaxconv.models.network import ConvNorm, Network, Norm, global_mean
from jaxconv.models.registry import Entry


def separable(
    x: jax.Array, filters: int, conv: Callable[..., Conv], atrous: int, name: str
) -> jax.Array:
    """Depthwise 3x3, then 1x1: [N, H, W, C] -> [N, H, W, filters]; in a compact method.

    Parameters are under `{name}_depthwise` and `name`.
    """
    settings: dict[str, Any] = {"groups": x.shape[-1], "atrous": atrous}
    x = conv(x.shape[-1], 3, padding=1, **settings, name=f"{name}_depthwise")(x)
    return conv(filters, 1, name=name)(x)


class Block(nn.Module):
    """Separable convolutions to these `filters`, with ReLU before, and a shortcut.

    Attributes:
      pool: ends with max pooling of stride 2.
      first_relu: whether it starts with ReLU; not the first block, which follows one.
    """

    filters: Sequence[int]
    pool: bool
    conv: Callable[..., Conv]
    norm: Norm
    first_relu: bool = True
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / 2, W / 2, filters] with pooling, else the same size."""
        y = x
        for n, filters in enumerate(self.filters, 1):
            y = relu(y) if n > 1 or self.first_relu else y
            y = separable(y, filters, self.conv, self.atrous, f"conv{n}")
            y = self.norm(name=f"norm{n}")(y)
        if self.pool:
            y = max_pool(y, 3, 2, 1, layer="pool", atrous=self.atrous)
        if self.pool or x.shape[-1] != y.shape[-1]:
            settings: dict[str, Any] = {"filter_size": 1, "stride": 2 if self.pool else 1}
            settings |= {"atrous": self.atrous, "act": None, "name": "shortcut"}
            x = ConvNorm(y.shape[-1], self.conv, self.norm, **settings)(x)
        return x + y


class Xception(Network):
    """Xception.

    Attributes:
      blocks: filters of each block's convolutions.
      pooled: numbers, from 1, of the blocks that end with pooling.
    """

    blocks: Sequence[Sequence[int]] = ()
    pooled: Sequence[int] = ()

    def strides(self) -> tuple[tuple[int, ...], int]:
        """The first convolution's, which stays, and each block's."""
        blocks = range(1, len(self.blocks) + 1)
        return (2, *(2 if n in self.pooled else 1 for n in blocks)), 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (conv, norm), spacings = self.tools(train), self.spacings()
        x = self.note("conv1", ConvNorm(32, conv, norm, stride=2, padding=0, name="conv1")(x))
        x = self.note("conv2", ConvNorm(64, conv, norm, padding=0, name="conv2")(x))
        for n, filters in enumerate(self.blocks, 1):
            settings: dict[str, Any] = {"atrous": spacings[n], "first_relu": n > 1}
            block = Block(filters, n in self.pooled, conv, norm, **settings, name=f"block{n}")
            x = self.note(f"block{n}", block(x))
        last = spacings[-1] * (2 if len(self.blocks) in self.pooled else 1)
        for n, filters in ((3, 1536), (4, 2048)):
            x = relu(norm(name=f"norm{n}")(separable(x, filters, conv, last, f"conv{n}")))
            x = self.note(f"conv{n}", x)
        return self.head(self.note("pool", global_mean(x)))


BLOCKS = ((128, 128), (256, 256), (728, 728), *((728, 728, 728),) * 8, (728, 1024))
MODELS = {
    "xception": Entry(
        Xception,
        {"blocks": BLOCKS, "pooled": (1, 2, 3, 12)},
        2017,
        "Chollet 2017, arXiv:1610.02357",
        input_size=(299, 299, 3),
        errors=(21.0, 5.5),
    )
}
