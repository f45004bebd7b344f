"""GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842, Table 1): inception modules, going deeper.

    type            patch/stride   output       #1x1  #3x3 reduce  #3x3  #5x5 reduce  #5x5  proj
    convolution     7x7/2          112x112x64
    max pool        3x3/2          56x56x64
    convolution     3x3/1          56x56x192               64       192
    max pool        3x3/2          28x28x192
    inception (3a)                 28x28x256     64        96       128       16        32     32
    inception (3b)                 28x28x480    128       128       192       32        96     64
    max pool        3x3/2          14x14x480
    inception (4a)                 14x14x512    192        96       208       16        48     64
    inception (4b)                 14x14x512    160       112       224       24        64     64
    inception (4c)                 14x14x512    128       128       256       24        64     64
    inception (4d)                 14x14x528    112       144       288       32        64     64
    inception (4e)                 14x14x832    256       160       320       32       128    128
    max pool        3x3/2          7x7x832
    inception (5a)                 7x7x832      256       160       320       32       128    128
    inception (5b)                 7x7x1024     384       192       384       48       128    128
    avg pool        7x7/1          1x1x1024
    dropout (40%), linear, softmax

The last column is the projection after pooling. All pooling rounds up. In training, two auxiliary
classifiers are attached to 4a and 4d, and their losses have weight 0.3 (section 5). `torchvision`
selects that library's port, which public weights fit: BatchNorm, 3x3 instead of 5x5, a 2x2 fourth
pooling, no LRN.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import (
    Conv,
    Dense,
    adaptive_average_pool,
    average_pool,
    local_response_norm,
    max_pool,
    relu,
)
from jaxconv.models.network import AUXILIARY, ConvNorm, Network, every_nth, global_mean
from jaxconv.models.registry import Entry

# #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
LOSS_WEIGHT = 0.3


class Inception(nn.Module):
    """1x1, 3x3, 5x5 (of `large` pixels) and pooling, concatenated.

    `conv` builds a convolution together with what follows it.
    """

    sizes: tuple[int, ...]
    large: int
    conv: Callable[..., nn.Module]
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, sum of the four]."""
        one, three_reduce, three, five_reduce, five, pool = self.sizes
        return jnp.concatenate(
            [
                self.conv(one, 1, name="conv1x1")(x),
                self.conv(three, 3, atrous=self.atrous, name="conv3x3")(
                    self.conv(three_reduce, 1, name="reduce3x3")(x)
                ),
                self.conv(five, self.large, atrous=self.atrous, name="conv5x5")(
                    self.conv(five_reduce, 1, name="reduce5x5")(x)
                ),
                self.conv(pool, 1, name="pool_proj")(max_pool(x, 3, 1, 1, atrous=self.atrous)),
            ],
            axis=-1,
        )


class ConvRelu(nn.Module):
    """Convolution with bias, and ReLU; parameters under `conv`."""

    filters: int
    filter_size: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, filters]."""
        padding = (self.filter_size - 1) // 2
        settings = {"dtype": self.dtype, "atrous": self.atrous, "name": "conv"}
        return relu(Conv(self.filters, self.filter_size, self.stride, padding, **settings)(x))


class GoogLeNet(Network):
    """Inception modules, with two auxiliary classifiers.

    Attributes:
      torchvision: build torchvision's port instead of the paper's network.
      auxiliary: add the two auxiliary classifiers. In training, their logits are stored in the
        collection `auxiliary`.
      modules: the inception modules to include, such as `3a 4a 4d` for a smaller network.
    """

    torchvision: bool = False
    auxiliary: bool = True
    modules: str = " ".join(INCEPTIONS)

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of conv1 and pool1, which stay, and of pool2, pool3 and pool4."""
        return (2, 2, 2, 2, 2), 2

    def normless(self) -> str:
        """The paper's network has none."""
        return "" if self.torchvision else "GoogLeNet has norms only with torchvision=True"

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        conv = self._convolution(train)

        def lrn(name: str, x: jax.Array) -> jax.Array:
            return x if self.torchvision else self.note(name, local_response_norm(x))

        x = self.note("conv1", conv(64, 7, stride=2, name="conv1")(x))
        x = lrn("norm1", self.note("pool1", max_pool(x, 3, 2, rounding="ceil", layer="pool1")))
        x = conv(64, 1, name="conv2_reduce")(x)
        x = lrn("norm2", self.note("conv2", conv(192, 3, name="conv2")(x)))
        pools = dict(zip(("3a", "4a", "5a"), self.spacings()[2:], strict=True))
        for name, sizes in INCEPTIONS.items():
            if name in pools:
                pool, atrous = f"pool{int(name[0]) - 1}", pools[name]
                window = 2 if self.torchvision and name == "5a" else 3
                settings = {"rounding": "ceil", "layer": pool, "atrous": atrous}
                x = self.note(pool, max_pool(x, window, 2, **settings))
            if name not in self.modules.split():
                continue
            large = 3 if self.torchvision else 5
            x = Inception(sizes, large, conv, 2 * atrous, name=f"inception{name}")(x)
            x = self.note(f"inception{name}", x)
            if (
                name in ("4a", "4d")
                and self.auxiliary
                and self.classifies()
                and (train or self.is_initializing())
            ):
                seen = every_nth(x, 2 * atrous)
                self._auxiliary("aux1" if name == "4a" else "aux2", seen, conv, train)
        x = self.note("pool", global_mean(x))
        return self.head(
            nn.Dropout(0.2 if self.torchvision else 0.4, deterministic=not train, name="dropout")(x)
        )

    def _convolution(self, train: bool) -> Callable[..., nn.Module]:
        plain, norm = self.tools(train, epsilon=1e-3)
        if not self.torchvision:
            return lambda filters, size, **arguments: ConvRelu(
                filters, size, dtype=self.dtype, **arguments
            )
        return lambda filters, size, **arguments: ConvNorm(
            filters, plain, norm, filter_size=size, **arguments
        )

    def _auxiliary(
        self, name: str, x: jax.Array, conv: Callable[..., nn.Module], train: bool
    ) -> None:
        """5x5/3 average pool, 1x1 of 128, fully connected 1024, dropout of 70%, logits."""
        x = adaptive_average_pool(x, 4) if self.torchvision else average_pool(x, 5, 3, layer=name)
        x = conv(128, 1, name=f"{name}_conv")(x)
        x = relu(Dense(1024, dtype=self.dtype, name=f"{name}_fc1")(x))
        logits = self.head(
            nn.Dropout(0.7, deterministic=not train, name=f"{name}_dropout")(x), f"{name}_fc2"
        )
        if train:
            self.keep(AUXILIARY, name, (logits, LOSS_WEIGHT))


PAPER = "Szegedy et al. 2014, arXiv:1409.4842"
MODELS = {
    "googlenet": Entry(GoogLeNet, {}, 2014, PAPER, errors=(None, 10.07)),
    "googlenet_torchvision": Entry(
        GoogLeNet, {"torchvision": True}, 2014, PAPER, errors=(30.222, 10.47)
    ),
}
