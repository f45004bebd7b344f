"""Normalisation: BatchNorm (Ioffe and Szegedy 2015, arXiv:1502.03167) and AlexNet's LRN."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.BatchNorm):
    """Linen's BatchNorm, which can also normalise parts of the batch by their own statistics.

    The running statistics are then the mean over the parts. Everything else is as in Linen.

    Attributes:
      momentum: weight of the old running statistics; PyTorch writes the same setting as 0.1.
        Statistics stay float32.
      groups: number of consecutive parts of the batch. It must divide the number of examples; under
        an `axis_name` it must divide the number of devices or be a multiple of it.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """[N, ..., C] -> the same shape, in the compute type.

        Raises:
          ValueError: the batch or the devices cannot be split into this many parts.
        """
        running = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        if running or self.groups == 1 or self.is_initializing():
            return super().__call__(x, use_running_average)
        devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        if devices % self.groups == 0:
            return self._of_parts(x, 1, devices // self.groups)
        if self.groups % devices:
            raise ValueError(
                f"BatchNorm: {self.groups} groups on {devices} devices; groups must divide the "
                "number of devices or be a multiple of it"
            )
        return self._of_parts(x, self.groups // devices, 1)

    def _of_parts(self, x: jax.Array, parts: int, devices: int) -> jax.Array:
        """Normalise each of `parts` parts of `x`, with statistics over `devices` devices."""
        if len(x) % parts:
            raise ValueError(
                f"BatchNorm: {len(x)} examples / {parts} groups = {len(x) / parts:.2f} is not a "
                "whole number"
            )
        split = x.reshape(parts, len(x) // parts, *x.shape[1:]).astype(jnp.float32)
        axes = tuple(range(1, split.ndim - 1))
        mean, square = jnp.mean(split, axes), jnp.mean(jnp.square(split), axes)
        if devices > 1:
            count = lax.axis_size(self.axis_name)
            groups = [list(range(first, first + devices)) for first in range(0, count, devices)]
            mean, square = lax.pmean((mean, square), self.axis_name, axis_index_groups=groups)
        variance = jnp.maximum(0.0, square - jnp.square(mean))
        features = (x.shape[-1],)
        for name, value, start in (("mean", mean, jnp.zeros), ("var", variance, jnp.ones)):
            running = self.variable("batch_stats", name, start, features, jnp.float32)
            running.value = self.momentum * running.value + (1 - self.momentum) * jnp.mean(
                value, axis=0
            )
        factor = lax.rsqrt(variance + self.epsilon)
        if self.use_scale:
            factor *= self.param("scale", self.scale_init, features, self.param_dtype)[None]
        around = (parts, *(1,) * len(axes), *features)
        y = (split - mean.reshape(around)) * factor.reshape(around)
        if self.use_bias:
            y += self.param("bias", self.bias_init, features, self.param_dtype).reshape(
                (1,) * (y.ndim - 1) + features
            )
        return y.reshape(x.shape).astype(self.dtype or x.dtype)


class FrozenBatchNorm(nn.Module):
    """BatchNorm with everything as it was loaded: `mean`, `var`, `scale` and `bias` are statistics,
    so there is nothing to learn, and nothing changes in training (detectors, He et al. 2017).
    """

    epsilon: float = 1e-5
    dtype: Any = None
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, ..., C] -> the same shape, in the compute type."""

        def fixed(name: str, start: Callable[..., jax.Array]) -> jax.Array:
            return self.variable("batch_stats", name, start, (x.shape[-1],), jnp.float32).value

        mean, factor = fixed("mean", jnp.zeros), lax.rsqrt(fixed("var", jnp.ones) + self.epsilon)
        if self.use_scale:
            factor *= fixed("scale", jnp.ones)
        around = (1,) * (x.ndim - 1) + mean.shape
        shift = (fixed("bias", jnp.zeros) - mean * factor).reshape(around)
        y = x.astype(jnp.float32) * factor.reshape(around) + shift
        return y.astype(self.dtype or x.dtype)


def group_count(channels: int, most: int = 32) -> int:
    """How many groups `GroupNorm` makes of so many channels.

    As many as possible up to `most` that divide them and leave two channels each: of single
    channels, a map of one position would become zero.
    """
    fitting = (n for n in range(1, most + 1) if channels % n == 0 and channels >= 2 * n)
    return max(fitting, default=1)


def group_norm(name: str | None = None, **settings: Any) -> Callable[[jax.Array], jax.Array]:
    """Group normalisation (Wu and He 2018, arXiv:1803.08494) of [N, ..., C], in `group_count`
    groups; to be called inside a module's compact method.

    `settings` are those of Linen's `GroupNorm`; its parameters `scale` and `bias` are [C].
    """
    return lambda x: nn.GroupNorm(group_count(x.shape[-1]), name=name, **settings)(x)


def no_norm(name: str | None = None) -> Callable[[jax.Array], jax.Array]:
    """The identity, where a network takes a norm."""
    return lambda x: x


def local_response_norm(
    x: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """AlexNet's local response norm: [N, ..., C] -> the same shape and dtype.

    x / (k + alpha * the sum of squares over `size` neighbouring feature maps)^beta, Krizhevsky et
    al. 2012, section 3.3. Caffe and PyTorch divide alpha by the size; the paper does not.
    """
    squares = jnp.square(x.astype(jnp.float32))
    before = (size - 1) // 2
    window = (1,) * (x.ndim - 1) + (size,)
    pads = ((0, 0),) * (x.ndim - 1) + ((before, size - 1 - before),)
    total = lax.reduce_window(squares, 0.0, lax.add, window, (1,) * x.ndim, pads)
    return (x.astype(jnp.float32) * (k + alpha * total) ** -beta).astype(x.dtype)
