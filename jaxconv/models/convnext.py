"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545, Table 9): a ResNet with Transformer-like design.

    stage   output   ConvNeXt-T                            S        B              L
    stem    56x56    4x4, 96, stride 4                     96       128            192
    res2    56x56    [depthwise 7x7 96, 1x1 384, 1x1 96]x3 x3       128..512 x3    192..768 x3
    res3    28x28    192, 768 x3                           x3       256 x3         384 x3
    res4    14x14    384, 1536 x9                          x27      512 x27        768 x27
    res5    7x7      768, 3072 x3                          x3       1024 x3        1536 x3

Layer norm instead of BatchNorm, one per block and one before each 2x2, stride 2 downsampling; GELU;
each residual scaled by a learned vector.

ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808, section 3.4) has global response normalization
after the GELU in the place of that vector. Its smaller sizes (Table 9 there), which timm has for
the first version too, and its larger:

    A 40 x2 x2 x6 x2   F 48   P 64   N 80 x2 x2 x8 x2   T, S, B, L as above   H 352 x3 x3 x27 x3
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


class GlobalResponseNorm(nn.Module):
    """Feature maps compete by their norms: x + scale * x * N(x) + bias, arXiv:2301.00808.

    N is the norm of a map over all positions, divided by the mean of all maps' norms. `scale` and
    `bias` [C] start at 0, so that the layer is the identity.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> the same."""
        axes, zeros, shape = tuple(range(1, x.ndim - 1)), nn.initializers.zeros_init(), x.shape[-1:]
        squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes, keepdims=True)
        # The gradient of the root is infinite at 0, as where a map is 0 everywhere.
        norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
        response = norms / (jnp.mean(norms, axis=-1, keepdims=True) + self.epsilon)
        scale, bias = (
            self.param(name, zeros, shape, jnp.float32).reshape(*(1,) * (x.ndim - 1), -1)
            for name in ("scale", "bias")
        )
        return x + (scale * response).astype(x.dtype) * x + bias.astype(x.dtype)


class Block(nn.Module):
    """Depthwise 7x7, layer norm, 1x1 to four times the filters, GELU, 1x1 back; scaled.

    In training, the residual is dropped with probability `drop`. With `response`, version 2's norm
    is before the last 1x1, and the residual is not scaled.
    """

    drop: float
    train: bool
    dtype: Any
    norm: Norm
    atrous: int = 0
    response: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> the same."""
        filters = x.shape[-1]
        settings = {"groups": filters, "dtype": self.dtype, "atrous": self.atrous}
        y = Conv(filters, 7, padding=3, **settings, name="depthwise")(x)
        y = self.norm(name="norm")(y)
        y = gelu(Conv(4 * filters, 1, dtype=self.dtype, name="expand")(y))
        if self.response:
            y = GlobalResponseNorm(name="grn")(y)
        y = Conv(filters, 1, dtype=self.dtype, name="project")(y)
        if self.response:
            return x + stochastic_depth(y, self.drop, self.train)
        scale = self.param("scale", nn.initializers.constant(1e-6), (filters,), jnp.float32)
        y = y * scale.astype(y.dtype).reshape(1, 1, 1, -1)
        return x + stochastic_depth(y, self.drop, self.train)


class ConvNeXt(Network):
    """A ConvNeXt.

    Attributes:
      blocks, widths: of each stage.
      drop_path: probability of dropping the last block in training; it grows from 0 at the first.
      response: whether it is version 2, with global response normalization.
      norm: the paper's is `layer`.
    """

    blocks: Sequence[int] = (3, 3, 9, 3)
    widths: Sequence[int] = (96, 192, 384, 768)
    drop_path: float = 0.1
    response: bool = False
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
                name = f"res{stage}_{n + 1}"
                x = Block(drop, train, **settings, response=self.response, name=name)(x)
                done += 1
            x = self.note(f"res{stage}", x)
        x = self.note("pool", global_mean(x))
        return self.head(norm(name="norm")(x)) if self.num_classes else x.astype(jnp.float32)


# blocks, width of the first stage, drop path, errors (torchvision's first weights)
TABLE = {
    "atto": ((2, 2, 6, 2), 40, 0.0, None),
    "femto": ((2, 2, 6, 2), 48, 0.0, None),
    "pico": ((2, 2, 6, 2), 64, 0.0, None),
    "nano": ((2, 2, 8, 2), 80, 0.0, None),
    "tiny": ((3, 3, 9, 3), 96, 0.1, (17.48, 3.854)),
    "small": ((3, 3, 27, 3), 96, 0.4, (16.384, 3.35)),
    "base": ((3, 3, 27, 3), 128, 0.5, (15.938, 3.13)),
    "large": ((3, 3, 27, 3), 192, 0.5, (15.586, 3.024)),
}
# The same of version 2, with drop path as in its fine-tuning, and errors (its Table 9: pretrained
# by a masked autoencoder on ImageNet-1K).
V2 = {
    "atto": ((2, 2, 6, 2), 40, 0.1, (23.3, None)),
    "femto": ((2, 2, 6, 2), 48, 0.1, (21.5, None)),
    "pico": ((2, 2, 6, 2), 64, 0.1, (19.7, None)),
    "nano": ((2, 2, 8, 2), 80, 0.1, (18.1, None)),
    "tiny": ((3, 3, 9, 3), 96, 0.2, (17.0, None)),
    "small": ((3, 3, 27, 3), 96, 0.1, None),
    "base": ((3, 3, 27, 3), 128, 0.1, (15.1, None)),
    "large": ((3, 3, 27, 3), 192, 0.2, (14.2, None)),
    "huge": ((3, 3, 27, 3), 352, 0.3, (13.7, None)),
}
MODELS = {
    f"convnext{version}_{name}": Entry(
        ConvNeXt,
        {
            "blocks": blocks,
            "widths": tuple(width * 2**n for n in range(4)),
            "drop_path": drop,
            **({"response": True} if version else {}),
        },
        2023 if version else 2022,
        "Woo et al. 2023, arXiv:2301.00808" if version else "Liu et al. 2022, arXiv:2201.03545",
        errors=errors,
    )
    for version, table in (("", TABLE), ("v2", V2))
    for name, (blocks, width, drop, errors) in table.items()
}
