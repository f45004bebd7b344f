"""Convolution whose filters are standardised, for networks without norms of activations."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers.conv import Conv


class StandardizedConv(Conv):
    """Convolution with scaled weight standardisation (Brock et al. 2021, arXiv:2101.08692, eq. 1).

    Each filter gets the mean 0 and the variance `gamma^2 / fan-in`, times a learned `gain` [K]:
    then unit variance at the input stays unit variance at the output.

    Attributes:
      gamma: makes up for the variance that an activation before the layer takes.
      epsilon: added to the variance of a filter.
      gain_init: of the gain.
    """

    gamma: float = 1.0
    epsilon: float = 1e-5
    gain_init: float = 1.0

    def weights(self, shape: tuple[int, ...]) -> jax.Array:
        """The standardised kernel [*window, C // groups, K], float32."""
        kernel, axes = super().weights(shape), tuple(range(len(shape) - 1))
        constant = nn.initializers.constant(self.gain_init)
        gain = self.param("gain", constant, shape[-1:], jnp.float32)
        mean, variance = (f(kernel, axis=axes, keepdims=True) for f in (jnp.mean, jnp.var))
        scale = gain * (self.gamma / math.sqrt(math.prod(shape[:-1])))
        scale = scale.reshape(*(1,) * len(axes), -1)
        return (kernel - mean) * (scale * jax.lax.rsqrt(variance + self.epsilon))
