"""Chain networks: [(CONV-RELU)*N-POOL?]*M-(FC-RELU)*K,SOFTMAX, the lecture's typical architecture.

    N  convolutions between two poolings     `convs`
    M  stages, each with its filters         `filters`, one number per stage
    K  fully connected layers                `neurons`, one number per layer
    SOFTMAX                                  logits are returned; the loss applies the softmax

The lecture's hyperparameters are the fields: number and size of features; window and stride of
pooling; number of neurons.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxconv.arithmetic import same_padding
from jaxconv.layers import Dense, Pool, relu
from jaxconv.layers.conv import check_count
from jaxconv.models.network import Network, every_nth
from jaxconv.models.registry import Entry


class Chain(Network):
    """A chain of stages of convolutions and pooling, then fully connected layers.

    Attributes:
      filters: filters of the convolutions of each stage (M stages).
      convs: convolutions in each stage (N).
      filter_size: F of every convolution, in pixels.
      stride: S of every convolution.
      padding: P of every convolution; -1 is the lecture's (F - 1)/2.
      pool: `max`, `average` or `none`, after each stage.
      pool_window, pool_stride: F and S of the pooling.
      global_pool: feed the mean of each feature map, instead of all its values, to the fully
        connected layers.
      neurons: neurons of each fully connected layer (K layers) before the logits.
      batch_norm: add BatchNorm between CONV and RELU; the convolutions then have no bias.
      dropout: share of values dropped before each fully connected layer while training.
      rounding: `floor`, `exact` or `ceil`, for both convolution and pooling.
    """

    filters: Sequence[int] = (16, 32)
    convs: int = 1
    filter_size: int = 3
    stride: int = 1
    padding: int = -1
    pool: str = "max"
    pool_window: int = 2
    pool_stride: int = 2
    global_pool: bool = False
    neurons: Sequence[int] = ()
    batch_norm: bool = False
    dropout: float = 0.0
    rounding: str = "floor"

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of every convolution and pooling in order; all may change."""
        check_count("", "convs", self.convs)
        stage = (self.stride,) * self.convs + (self.pool_stride,) * (self.pool != "none")
        return stage * len(self.filters), 0

    def normless(self) -> str:
        """It has norms with `batch_norm` alone."""
        return "" if self.batch_norm else "batch_norm is False, so there are no norms"

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, *spatial, C], such as images, -> logits [N, num_classes], float32."""
        if self.pool not in ("max", "average", "none"):
            raise ValueError(f"pool is {self.pool!r}; it must be max, average or none")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and less than 1")
        padding = same_padding(self.filter_size) if self.padding == -1 else self.padding
        (conv, norm), spacings = self.tools(train), iter(self.spacings())
        strides, _ = self.strides()
        for m, filters in enumerate(self.filters, 1):
            for n in range(1, self.convs + 1):
                settings = {
                    "rounding": self.rounding,
                    "use_bias": not self.batch_norm or self.norm == "none",
                    "atrous": next(spacings),
                    "name": f"conv{m}_{n}",
                }
                x = self.note(
                    f"conv{m}_{n}",
                    conv(filters, self.filter_size, self.stride, padding, **settings)(x),
                )
                if self.batch_norm:
                    x = norm(name=f"norm{m}_{n}")(x)
                x = relu(x)
            if self.pool != "none":
                sizes, name = (self.pool_window, self.pool_stride, 0), f"pool{m}"
                pool = Pool(self.pool, *sizes, self.rounding, next(spacings), name=name)
                x = self.note(name, pool(x))
        if self.global_pool:
            x = self.note("global_pool", Pool("global", name="global_pool")(x))
        x = every_nth(x, math.prod(strides) // self.output_stride if self.output_stride else 1)
        for k, neurons in enumerate(self.neurons, 1):
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{k}")(x)
            x = self.note(f"fc{k}", relu(Dense(neurons, dtype=self.dtype, name=f"fc{k}")(x)))
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout_votes")(x)
        return self.head(x, "votes")


MODELS = {
    "chain": Entry(Chain, {}, 2016, "the lecture's typical architecture", input_size=(32, 32, 1))
}
