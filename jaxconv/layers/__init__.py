"""Reusable Linen modules: the layers of jaxconv's networks, also for use in other JAX code."""

from flax.linen import relu

from jaxconv.layers.conv import Conv, ConvTranspose, convolve
from jaxconv.layers.dense import Dense
from jaxconv.layers.embed import Embed
from jaxconv.layers.norm import (
    BatchNorm,
    FrozenBatchNorm,
    group_count,
    group_norm,
    local_response_norm,
    no_norm,
)
from jaxconv.layers.pool import Pool, adaptive_average_pool, average_pool, max_pool
from jaxconv.layers.resize import repeat, resize
from jaxconv.layers.roi_align import multilevel_roi_align, pyramid_level, roi_align
from jaxconv.layers.standardized import StandardizedConv

__all__ = [
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Dense",
    "Embed",
    "FrozenBatchNorm",
    "Pool",
    "StandardizedConv",
    "adaptive_average_pool",
    "average_pool",
    "convolve",
    "group_count",
    "group_norm",
    "local_response_norm",
    "max_pool",
    "multilevel_roi_align",
    "no_norm",
    "pyramid_level",
    "relu",
    "repeat",
    "resize",
    "roi_align",
]
