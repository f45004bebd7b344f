"""Airbench (Jordan 2024, arXiv:2404.00498, section 3): CIFAR-10 to 94% in the fewest operations.

    layer    output   airbench94                       95               96
    whiten   31x31    2x2, 24, no padding, GELU        the same         the same
    group1   15x15    3x3, 64, max pooling 2, 3x3      128              128, one 3x3 more
    group2   7x7      3x3, 256, max pooling 2, 3x3     384              384, one 3x3 more
    group3   3x3      3x3, 256, max pooling 2, 3x3     384              512, one 3x3 more
             1x1      max pooling 3, fully connected, logits times 1/9

BatchNorm without scale and GELU follow the pooling and each other 3x3. The filters of `whiten` are
the principal components of the training images' 2x2 patches, scaled to equal variance, and their
negatives (section 3.2); they are not trained. Of a 3x3 layer with C input channels the first C
filters begin as the identity (section 3.3). The third 3x3 of airbench96's groups is a residual.

Here `whiten` has no bias, which the paper trains for the first three epochs: its gradient alone
takes a seventh of a step on a CPU. The last layer has one.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxconv.layers import Conv, Pool
from jaxconv.layers.conv import convolve
from jaxconv.models.network import Network, Norm
from jaxconv.models.registry import Entry

gelu = functools.partial(nn.gelu, approximate=False)
# PyTorch's own start: uniform, up to 1/sqrt(fan-in).
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Added to the variances of patches.
EPSILON = 5e-4


def partly_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """A kernel [*window, C, K] whose first C filters give back their channel; others `uniform`."""
    kernel, channels = uniform(key, shape, dtype), min(shape[-2:])
    middle = tuple((f - 1) // 2 for f in shape[:-2])
    kernel = kernel.at[..., :channels].set(0)
    return kernel.at[*middle, jnp.arange(channels), jnp.arange(channels)].set(1)


def whitening_filters(images: jax.Array, size: int) -> jax.Array:
    """Filters [size, size, C, 2 * size * size * C] whose outputs have variance 1, and negatives.

    Args:
      images: [N, H, W, C] float32, such as 5,000 normalised training images.
      size: of the patches, in pixels.
    """
    height, width, channels = images.shape[1:]
    patches = jnp.stack(
        [
            images[:, y : height - size + 1 + y, x : width - size + 1 + x]
            for y in range(size)
            for x in range(size)
        ],
        axis=-2,
    ).reshape(-1, size * size * channels)
    covariance = jnp.matmul(patches.T, patches, precision="highest") / len(patches)
    variances, directions = jnp.linalg.eigh(covariance)
    # The largest variance first.
    deviations = jnp.sqrt(jnp.maximum(variances, 0) + EPSILON)
    filters = (directions / deviations.reshape(1, -1))[:, ::-1]
    return jnp.concatenate([filters, -filters], axis=1).reshape(size, size, channels, -1)


class Whiten(nn.Module):
    """A convolution with fixed filters, see `whitening_filters`.

    They are `kernel` in the collection `whitening`, so that no optimizer changes them.
    """

    size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H - size + 1, W - size + 1, 2 * size * size * C]."""
        filters = 2 * self.size**2 * x.shape[-1]
        shape = (self.size, self.size, x.shape[-1], filters)
        start = functools.partial(self.make_rng, "params")
        kernel = self.variable("whitening", "kernel", lambda: uniform(start(), shape)).value
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return convolve(x, kernel)


class Group(nn.Module):
    """3x3, 2x2 max pooling, then more 3x3; each with a norm and GELU. A third is a residual."""

    filters: int
    convs: int
    norm: Norm
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H // 2, W // 2, filters]."""
        for n in range(1, self.convs + 1):
            settings = {"use_bias": False, "kernel_init": partly_identity, "dtype": self.dtype}
            y = Conv(self.filters, 3, padding=1, **settings, name=f"conv{n}")(x)
            y = Pool("max", 2, 2, name="pool")(y) if n == 1 else y
            y = self.norm(name=f"norm{n}")(y)
            x = gelu(x + y if n > 2 else y)
        return x


class Airbench(Network):
    """An airbench network. Its `data_dependent_init` sets the filters of the first layer.

    Attributes:
      widths: filters of each group.
      convs: 3x3 convolutions in each group.
      scale: factor of the logits.
    """

    widths: Sequence[int] = (64, 256, 256)
    convs: int = 2
    scale: float = 1 / 9

    # How many images `data_dependent_init` takes.
    init_images = 5_000

    def data_dependent_init(self, variables: Any, images: jax.Array) -> Any:
        """The variables with the filters that whiten these images' patches."""
        size = variables["whitening"]["whiten"]["kernel"].shape[0]
        filters = {"whiten": {"kernel": whitening_filters(images, size)}}
        return {**variables, "whitening": filters}

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        _, norm = self.tools(train, epsilon=1e-12, momentum=0.6, scale=False)
        x = self.note("whiten", gelu(Whiten(2, self.dtype, name="whiten")(x)))
        for n, width in enumerate(self.widths, 1):
            group = Group(width, self.convs, norm, self.dtype, name=f"group{n}")
            x = self.note(f"group{n}", group(x))
        x = Pool("max", 3, 3, name="pool")(x)
        return self.head(x, kernel_init=uniform) * (self.scale if self.num_classes else 1)


MODELS = {
    f"airbench{100 - error}": Entry(
        Airbench,
        {"widths": widths, "convs": convs},
        2024,
        "Jordan 2024, arXiv:2404.00498",
        input_size=(32, 32, 3),
        errors=(float(error),),
        data="CIFAR-10",
    )
    for error, widths, convs in (
        (6, (64, 256, 256), 2),
        (5, (128, 384, 384), 2),
        (4, (128, 384, 512), 3),
    )
}
