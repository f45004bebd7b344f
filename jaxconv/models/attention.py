"""Attention over feature maps and over filter sizes, cheaper than squeeze-and-excitation's."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv
from jaxconv.models.network import ConvNorm, Norm, global_mean, round_channels


class EfficientChannelAttention(nn.Module):
    """Scales each feature map by a weight computed from its mean and those of its neighbours.

    Wang et al. 2020, arXiv:1910.03151: one convolution along the channels, without bias, whose
    filter has about (log2(C) + 1) / 2 values, an odd number of at least 3. Parameters are under
    `conv`.
    """

    conv: Callable[..., Conv]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> the same."""
        half = int((math.log2(x.shape[-1]) + 1) / 2)
        size = max(half + 1 - half % 2, 3)
        means = global_mean(x)[..., None]
        weights = self.conv(1, size, padding=size // 2, use_bias=False, name="conv")(means)[..., 0]
        return x * nn.sigmoid(weights).reshape(len(x), *(1,) * (x.ndim - 2), -1)


class SelectiveKernel(nn.Module):
    """A 3x3 convolution and one as wide as 5x5, mixed by shares that the image determines.

    Li et al. 2019, arXiv:1903.06586, section 3.1; the 5x5 is a 3x3 dilated by 2. Parameters are
    under `path3`, `path5`, `reduce` and `select`.

    Attributes:
      filters, stride, groups, atrous: see `ConvNorm`.
      ratio, divisor: the shares are computed from `filters / ratio` values, rounded to a multiple
        of `divisor`.
      split: each convolution takes half of the feature maps; otherwise both take all.
    """

    filters: int
    conv: Callable[..., Conv]
    norm: Norm
    stride: int = 1
    groups: int = 1
    atrous: int = 0
    ratio: int = 16
    divisor: int = 8
    split: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> [N, *output, filters]."""
        inputs = jnp.split(x, 2, axis=-1) if self.split else (x, x)
        paths = [
            ConvNorm(
                self.filters,
                self.conv,
                self.norm,
                stride=self.stride,
                groups=self.groups,
                atrous=self.atrous,
                dilation=dilation,
                name=f"path{2 * dilation + 1}",
            )(part)
            for dilation, part in enumerate(inputs, 1)
        ]
        squeezed = round_channels(self.filters / self.ratio, self.divisor)
        mean = jnp.mean(paths[0] + paths[1], axis=tuple(range(1, x.ndim - 1)), keepdims=True)
        reduce = ConvNorm(squeezed, self.conv, self.norm, filter_size=1, name="reduce")
        votes = self.conv(2 * self.filters, 1, name="select")(reduce(mean))
        shares = nn.softmax(votes.reshape(*votes.shape[:-1], 2, self.filters), axis=-2)
        return paths[0] * shares[..., 0, :] + paths[1] * shares[..., 1, :]
