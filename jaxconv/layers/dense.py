"""The fully connected layer: every value gets a vote.

accepts   a list of D1 values (a volume is flattened first, in the order H, W, C)
needs     K neurons
produces  K votes
learns    D1 * K weights and K biases
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxconv.layers.conv import check_count


class Dense(nn.Module):
    """A fully connected layer: `kernel` [D1, K] and `bias` [K], both float32.

    Attributes:
      neurons: K.
      dtype: the compute type.
    """

    neurons: int
    dtype: Any = None
    kernel_init: Callable = nn.initializers.he_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, ...] -> [N, K]; all axes but the first are flattened."""
        check_count("/".join(self.path), "neurons", self.neurons)
        x = x.reshape(x.shape[0], -1)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.neurons), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.neurons,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.dot(x, kernel) + bias.reshape(1, -1)
