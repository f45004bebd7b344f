"""What all networks share: the fields of `create_model`, named feature maps, common layers."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxconv.layers import BatchNorm, Conv, Dense, relu

# The version of the public parameter paths: increase it whenever a path of any network changes (see
# train/initial.py).
LAYOUT = 1
FEATURES, AUXILIARY = "features", "auxiliary"


class Network(nn.Module):
    """Base of the networks.

    Attributes:
      num_classes: logits to return; 0 returns the input of the last layer, the features.
      dtype: the compute type; parameters, running statistics and logits are float32.
      axis_name: under `pmap`, the axis over which BatchNorm takes its statistics.
      norm_groups: number of consecutive parts of the batch that BatchNorm normalises separately,
        see `layers.BatchNorm`.
      frozen_norm: BatchNorm uses its running statistics in training too, and gradients flow through
        it (a frozen backbone).
    """

    num_classes: int
    dtype: Any = jnp.float32
    axis_name: str | None = None
    norm_groups: int = 1
    frozen_norm: bool = False

    def tools(
        self, train: bool, **norm: Any
    ) -> tuple[Callable[..., Conv], Callable[..., nn.Module]]:
        """Constructors of bias-free convolution and of BatchNorm, for this network and mode."""
        settings = {
            "use_running_average": not train or self.frozen_norm,
            "axis_name": self.axis_name,
            "groups": self.norm_groups,
        }
        settings |= {"dtype": self.dtype}
        return functools.partial(Conv, use_bias=False, dtype=self.dtype), functools.partial(
            BatchNorm, **settings, **norm
        )

    def note(self, name: str, x: jax.Array) -> jax.Array:
        """Name a feature map and return it.

        `jaxconv.features`, `jaxconv.summarize` and rematerialisation use the name.
        """
        x = checkpoint_name(x, name)
        self.keep(FEATURES, name, x)
        return x

    def keep(self, collection: str, name: str, value: Any) -> None:
        """Store a value in a collection if the caller of `apply` made it `mutable`.

        Unlike in Linen's `sow`, the name may be that of a layer.
        """
        if self.is_mutable_collection(collection) and not self.is_initializing():
            self.put_variable(collection, name, value)

    def head(self, x: jax.Array, name: str = "fc") -> jax.Array:
        """The last fully connected layer: [N, ...] -> logits [N, num_classes], float32.

        With 0 classes its input is returned, [N, C] float32.
        """
        if not self.num_classes:
            return x.reshape(x.shape[0], -1).astype(jnp.float32)
        return Dense(self.num_classes, dtype=self.dtype, name=name)(x).astype(jnp.float32)


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, and the activation; parameters under `conv` and `norm`.

    Attributes:
      conv, norm: from `Network.tools`.
      act: the activation; None for none.
      padding: pixels; -1 is (F - 1)/2.
    """

    filters: int
    conv: Callable[..., Conv]
    norm: Callable[..., nn.Module]
    filter_size: int = 3
    stride: int = 1
    padding: int = -1
    groups: int = 1
    act: Callable[[jax.Array], jax.Array] | None = relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> [N, *output, filters]."""
        padding = (self.filter_size - 1) // 2 if self.padding == -1 else self.padding
        x = self.conv(
            self.filters, self.filter_size, self.stride, padding, groups=self.groups, name="conv"
        )(x)
        x = self.norm(name="norm")(x)
        return x if self.act is None else self.act(x)


class SqueezeExcite(nn.Module):
    """Scales each feature map by a weight computed from the means of all of them.

    Hu et al. 2018, arXiv:1709.01507. Parameters are under `reduce` and `expand`.

    Attributes:
      squeezed: filters of `reduce`.
      act, gate: the two activations.
    """

    squeezed: int
    conv: Callable[..., Conv]
    act: Callable[[jax.Array], jax.Array] = relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> the same."""
        weights = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), keepdims=True)
        weights = self.act(self.conv(self.squeezed, 1, use_bias=True, name="reduce")(weights))
        return x * self.gate(self.conv(x.shape[-1], 1, use_bias=True, name="expand")(weights))


def stochastic_depth(x: jax.Array, share: float, train: bool) -> jax.Array:
    """In training, drop a residual [N, *spatial, C] for a share of examples and scale the others.

    Huang et al. 2016, arXiv:1603.09382. Call it inside a module.
    """
    return nn.Dropout(share, broadcast_dims=tuple(range(1, x.ndim)), deterministic=not train)(x)


def global_mean(x: jax.Array) -> jax.Array:
    """[N, *spatial, C] -> [N, C], the mean over all positions."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, at least 90% of it (MobileNets' rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
