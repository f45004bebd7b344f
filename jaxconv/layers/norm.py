"""Normalisation. BatchNorm is Linen's, with the settings that networks share (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# momentum: weight of the old running statistics; PyTorch writes the same setting as 0.1. Statistics stay float32.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def local_response_norm(x: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> jax.Array:
    """AlexNet's norm: x / (k + alpha * the sum of squares over `size` neighbouring feature maps)^beta; [N, ..., C], same dtype.

    Krizhevsky et al. 2012, section 3.3. Caffe and PyTorch divide alpha by the size, the paper does not.
    """
    squares = jnp.square(x.astype(jnp.float32))
    before = (size - 1) // 2
    window = (1,) * (x.ndim - 1) + (size,)
    pads = ((0, 0),) * (x.ndim - 1) + ((before, size - 1 - before),)
    total = lax.reduce_window(squares, 0.0, lax.add, window, (1,) * x.ndim, pads)
    return (x.astype(jnp.float32) * (k + alpha * total) ** -beta).astype(x.dtype)
