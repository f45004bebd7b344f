"""Reusable Linen modules: what every network of jaxconv is made of, and what other JAX code may take."""

from flax.linen import relu

from jaxconv.layers.conv import Conv, convolve
from jaxconv.layers.dense import Dense
from jaxconv.layers.norm import BatchNorm
from jaxconv.layers.pool import Pool, average_pool, max_pool

__all__ = ["BatchNorm", "Conv", "Dense", "Pool", "average_pool", "convolve", "max_pool", "relu"]
