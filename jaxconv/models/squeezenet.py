"""SqueezeNet (Iandola et al. 2016, arXiv:1602.07360, Table 1): AlexNet's error with few weights.

    layer     output        filter/stride  squeeze 1x1  expand 1x1  expand 3x3
    conv1     111x111x96    7x7/2
    maxpool1  55x55x96      3x3/2
    fire2     55x55x128                    16           64          64
    fire3     55x55x128                    16           64          64
    fire4     55x55x256                    32           128         128
    maxpool4  27x27x256     3x3/2
    fire5     27x27x256                    32           128         128
    fire6     27x27x384                    48           192         192
    fire7     27x27x384                    48           192         192
    fire8     27x27x512                    64           256         256
    maxpool8  13x13x512     3x3/2
    fire9     13x13x512                    64           256         256
    conv10    13x13x1000    1x1/1
    avgpool10 1x1x1000      13x13/1

A fire module squeezes its input to few maps and expands them by 1x1 and 3x3 filters side by side.
Version 1.1 (github.com/forresti/SqueezeNet) has 64 filters of 3x3 in conv1 and pools after conv1,
fire3 and fire5: 2.4 times fewer multiply-adds for the same error.

As published, with torchvision's weights too, conv1 has no padding (so it gives 109x109 maps of
224x224 pixels, and 111x111 of 227x227), and pooling rounds up. The authors' files for Caffe pad
conv10 by 1 (`last_padding=1`), so its outermost logits are the biases alone; they want images of 0
to 255 minus (123, 117, 104).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv, max_pool, relu
from jaxconv.models.network import Network, global_mean
from jaxconv.models.registry import Entry

# fire module -> filters of squeeze, expand 1x1 and expand 3x3
FIRES = {
    2: (16, 64, 64),
    3: (16, 64, 64),
    4: (32, 128, 128),
    5: (32, 128, 128),
    6: (48, 192, 192),
    7: (48, 192, 192),
    8: (64, 256, 256),
    9: (64, 256, 256),
}


class Fire(nn.Module):
    """1x1 filters, then 1x1 and 3x3 side by side, each with ReLU."""

    squeeze: int
    expand1x1: int
    expand3x3: int
    conv: Callable[..., Conv]
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, expand1x1 + expand3x3]."""
        x = relu(self.conv(self.squeeze, 1, name="squeeze1x1")(x))
        near = self.conv(self.expand1x1, 1, name="expand1x1")(x)
        wide = self.conv(self.expand3x3, 3, 1, 1, atrous=self.atrous, name="expand3x3")(x)
        return relu(jnp.concatenate([near, wide], axis=-1))


class SqueezeNet(Network):
    """Fire modules without a fully connected layer.

    Attributes:
      stem: filters and filter size of conv1.
      pools: layers after which there is a max pooling.
      last_padding: of conv10.
    """

    stem: Sequence[int] = (96, 7)
    pools: Sequence[int] = (1, 4, 8)
    last_padding: int = 0

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of conv1, which stays, and of each pooling."""
        return (2, *(2,) * len(self.pools)), 1

    def normless(self) -> str:
        """It has none."""
        return "SqueezeNet has no norm"

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        conv, _ = self.tools(train, norm="none")
        spacings, atrous = dict(zip(self.pools, self.spacings()[1:], strict=True)), 0
        x = self.note("conv1", relu(conv(self.stem[0], self.stem[1], 2, name="conv1")(x)))
        for layer in (1, *FIRES):
            if layer in FIRES:
                x = Fire(*FIRES[layer], conv, atrous, name=f"fire{layer}")(x)
                x = self.note(f"fire{layer}", x)
            if layer in self.pools:
                spacing, pool = spacings[layer], f"pool{layer}"
                x = max_pool(x, 3, 2, rounding="ceil", layer=pool, atrous=spacing)
                x, atrous = self.note(pool, x), 2 * spacing
        x = nn.Dropout(0.5, deterministic=not train, name="dropout")(x)
        if not self.num_classes:
            return self.head(self.note("pool", global_mean(x)))
        last = conv(self.num_classes, 1, 1, self.last_padding, name="conv10")
        return global_mean(self.note("conv10", relu(last(x)))).astype(jnp.float32)


PAPER = "Iandola et al. 2016, arXiv:1602.07360"
# Errors of torchvision's weights.
MODELS = {
    "squeezenet1_0": Entry(SqueezeNet, {}, 2016, PAPER, errors=(41.908, 19.58)),
    "squeezenet1_1": Entry(
        SqueezeNet,
        {"stem": (64, 3), "pools": (1, 3, 5)},
        2016,
        PAPER,
        errors=(41.822, 19.376),
    ),
}
