"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545, Table 9): a ResNet with Transformer-like design.

    stage   output   ConvNeXt-T                            S        B              L
    stem    56x56    4x4, 96, stride 4                     96       128            192
    res2    56x56    [depthwise 7x7 96, 1x1 384, 1x1 96]x3 x3       128..512 x3    192..768 x3
    res3    28x28    192, 768 x3                           x3       256 x3         384 x3
    res4    14x14    384, 1536 x9                          x27      512 x27        768 x27
    res5    7x7      768, 3072 x3                          x3       1024 x3        1536 x3

Layer norm instead of BatchNorm, one per block and one before each 2x2, stride 2 downsampling; GELU;
each residual scaled by a learned vector.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv
from jaxconv.models.network import Network, Norm, global_mean, stochastic_depth
from jaxconv.models.registry import Entry

gelu = functools.partial(nn.gelu, approximate=False)


class Block(nn.Module):
    """Depthwise 7x7, layer norm, 1x1 to four times the filters, GELU, 1x1 back; scaled.

    In training, the residual is dropped with probability `drop`.
    """

    drop: float
    train: bool
    dtype: Any
    norm: Norm
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> the same."""
        filters = x.shape[-1]
        settings = {"groups": filters, "dtype": self.dtype, "atrous": self.atrous}
        y = Conv(filters, 7, padding=3, **settings, name="depthwise")(x)
        y = self.norm(name="norm")(y)
        y = gelu(Conv(4 * filters, 1, dtype=self.dtype, name="expand")(y))
        y = Conv(filters, 1, dtype=self.dtype, name="project")(y)
        scale = self.param("scale", nn.initializers.constant(1e-6), (filters,), jnp.float32)
        y = y * scale.astype(y.dtype).reshape(1, 1, 1, -1)
        return x + stochastic_depth(y, self.drop, self.train)


class ConvNeXt(Network):
    """A ConvNeXt.

    Attributes:
      blocks, widths: of each stage.
      drop_path: probability of dropping the last block in training; it grows from 0 at the first.
      norm: the paper's is `layer`.
    """

    blocks: Sequence[int] = (3, 3, 9, 3)
    widths: Sequence[int] = (96, 192, 384, 768)
    drop_path: float = 0.1
    norm: str = "layer"

    def strides(self) -> tuple[tuple[int, ...], int]:
        """The stem's, which stays, and each stage's."""
        return (4, 1, *(2,) * (len(self.blocks) - 1)), 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (_, norm), spacings = self.tools(train, epsilon=1e-6), self.spacings()
        x = norm(name="stem_norm")(Conv(self.widths[0], 4, 4, dtype=self.dtype, name="stem")(x))
        x = self.note("stem", x)
        done = 0
        for stage, (blocks, width) in enumerate(zip(self.blocks, self.widths, strict=True), 2):
            if stage > 2:
                x = norm(name=f"downsample{stage}_norm")(x)
                settings = {"dtype": self.dtype, "atrous": spacings[stage - 1]}
                x = Conv(width, 2, 2, **settings, name=f"downsample{stage}")(x)
            for n in range(blocks):
                drop = self.drop_path * done / max(1, sum(self.blocks) - 1)
                atrous = spacings[stage - 1] * (2 if stage > 2 else 1)
                settings = {"dtype": self.dtype, "norm": norm, "atrous": atrous}
                x = Block(drop, train, **settings, name=f"res{stage}_{n + 1}")(x)
                done += 1
            x = self.note(f"res{stage}", x)
        x = self.note("pool", global_mean(x))
        return self.head(norm(name="norm")(x)) if self.num_classes else x.astype(jnp.float32)


# blocks, width of the first stage, drop path, errors (torchvision's first weights)
TABLE = {
    "tiny": ((3, 3, 9, 3), 96, 0.1, (17.48, 3.854)),
    "small": ((3, 3, 27, 3), 96, 0.4, (16.384, 3.35)),
    "base": ((3, 3, 27, 3), 128, 0.5, (15.938, 3.13)),
    "large": ((3, 3, 27, 3), 192, 0.5, (15.586, 3.024)),
}
MODELS = {
    f"convnext_{name}": Entry(
        ConvNeXt,
        {"blocks": blocks, "widths": tuple(width * 2**n for n in range(4)), "drop_path": drop},
        2022,
        "Liu et al. 2022, arXiv:2201.03545",
        errors=errors,
    )
    for name, (blocks, width, drop, errors) in TABLE.items()
}
