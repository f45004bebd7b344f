"""DenseNet (Huang et al. 2017, arXiv:1608.06993, Table 1): in a block, each layer sees all before.

A layer is norm, ReLU, 1x1 of 4k; norm, ReLU, 3x3 of k = 32 filters. Numbers of layers:

layer                DenseNet-121   -169    -201    -161 (k = 48)
convolution                      7x7, stride 2
pooling                          3x3 max pool, stride 2
dense block 1             6          6       6       6
transition                       1x1 to half the feature maps, 2x2 average pool
dense block 2            12         12      12      12
dense block 3            24         32      48      36
dense block 4            16         32      32      24
classification                   global average pool, 1000-d fc, softmax
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv, average_pool, max_pool, relu
from jaxconv.models.network import ConvNorm, Network, Norm, global_mean
from jaxconv.models.registry import Entry


class DenseLayer(nn.Module):
    """Adds `growth` feature maps to its input."""

    growth: int
    conv: Callable[..., Conv]
    norm: Norm
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, C + growth]."""
        y = self.conv(4 * self.growth, 1, name="conv1")(relu(self.norm(name="norm1")(x)))
        y = relu(self.norm(name="norm2")(y))
        y = self.conv(self.growth, 3, padding=1, atrous=self.atrous, name="conv2")(y)
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(Network):
    """A DenseNet.

    Attributes:
      layers: of each block.
      growth: feature maps that a layer adds (the paper's k).
      width: filters of the first convolution.
    """

    layers: Sequence[int] = (6, 12, 24, 16)
    growth: int = 32
    width: int = 64

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of conv1 and pool1, which stay, and of the transitions."""
        return (2, 2, *(2,) * (len(self.layers) - 1)), 2

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        conv, norm = self.tools(train)
        x = self.note(
            "conv1", ConvNorm(self.width, conv, norm, filter_size=7, stride=2, name="conv1")(x)
        )
        x = self.note("pool1", max_pool(x, 3, 2, 1, layer="pool1"))
        spacings = (0, *self.spacings()[2:])
        for block, layers in enumerate(self.layers, 1):
            for n in range(layers):
                x = DenseLayer(
                    self.growth,
                    conv,
                    norm,
                    2 * spacings[block - 1],
                    name=f"block{block}_{n + 1}",
                )(x)
            x = self.note(f"block{block}", x)
            if block < len(self.layers):
                x = conv(x.shape[-1] // 2, 1, name=f"transition{block}")(
                    relu(norm(name=f"transition{block}_norm")(x))
                )
                settings = {"layer": f"transition{block}", "atrous": spacings[block]}
                x = self.note(f"transition{block}", average_pool(x, 2, 2, **settings))
        x = self.note("norm", relu(norm(name="norm")(x)))
        return self.head(self.note("pool", global_mean(x)))


# layers, growth, width, errors (torchvision's first weights)
TABLE = {
    121: ((6, 12, 24, 16), 32, 64, (25.566, 8.028)),
    161: ((6, 12, 36, 24), 48, 96, (22.862, 6.44)),
    169: ((6, 12, 32, 32), 32, 64, (24.4, 7.194)),
    201: ((6, 12, 48, 32), 32, 64, (23.104, 6.63)),
}
MODELS = {
    f"densenet{depth}": Entry(
        DenseNet,
        {"layers": layers, "growth": growth, "width": width},
        2017,
        "Huang et al. 2017, arXiv:1608.06993",
        errors=errors,
    )
    for depth, (layers, growth, width, errors) in TABLE.items()
}
