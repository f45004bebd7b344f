"""Normalisation. BatchNorm is Linen's, with the settings that networks share (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

import functools

import flax.linen as nn

# momentum: weight of the old running statistics; PyTorch writes the same setting as 0.1. Statistics stay float32.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
