"""The embedding: each code of a text becomes a row of a table, which is learned.

accepts   codes [N, L] of V different ones, or the same one-hot [N, L, V]
needs     K numbers for each code
produces  [N, L, K]
learns    V * K weights; code 0 is padding, whose row is never used: it becomes zeros

It is a 1x1 convolution of one-hot codes without bias, which is computed by looking rows up. The
table begins as uniform numbers from -0.25 to 0.25 (Kim 2014, arXiv:1408.5882).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers.conv import check_count


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -0.25, 0.25)


class Embed(nn.Module):
    """An embedding with the table `embedding` [V, K], float32.

    Attributes:
      numbers: K.
      dtype: the compute type.
    """

    numbers: int
    dtype: Any = None
    embedding_init: Callable = _uniform

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, L] integers, or one-hot codes [N, L, V] -> [N, L, K].

        It is initialised with one-hot codes, which have V.

        Raises:
          ValueError: it is initialised with integers.
        """
        name = "/".join(self.path)
        check_count(name, "numbers", self.numbers)
        dtype = self.dtype or jnp.float32
        if jnp.issubdtype(x.dtype, jnp.integer):
            if not self.has_variable("params", "embedding"):
                raise ValueError(
                    f"{name}: initialise it with one-hot codes [N, L, V], such as zeros; the "
                    f"integers {list(x.shape)} do not say how many codes there are"
                )
            table = self.get_variable("params", "embedding")
            rows = jnp.take(table, x, axis=0).astype(dtype)
            return jnp.where((x > 0)[..., None], rows, jnp.zeros((), dtype))
        shape = (x.shape[-1], self.numbers)
        table = self.param("embedding", self.embedding_init, shape, jnp.float32)
        return jnp.dot(x[..., 1:].astype(dtype), table[1:].astype(dtype))
