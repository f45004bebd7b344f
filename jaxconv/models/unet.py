"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597, Figure 1), for one, two or three axes.

    down   image    3x3 64, 3x3 64      -> joined with the way up
           1/2      2x2 max pooling, 3x3 128, 3x3 128
           1/4      256, 256
           1/8      512, 512
           1/16     1024, 1024
    up     1/8      2x2 up-convolution to 512, joined with the map of this size, 3x3 512, 3x3 512
           1/4      256, 256
           1/2      128, 128
           image    64, 64, 1x1 to classes

Here the 3x3 are padded, so that the result has the size of the image, and followed by BatchNorm
(`norm="none"` is the paper's), and the weights are He's. With a backbone, its feature maps are the
way down, and the finest map's logits are resized linearly to the image.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import Conv, ConvTranspose, Pool, resize
from jaxconv.models.backbone import OnBackbone
from jaxconv.models.network import ConvNorm, Network, Norm
from jaxconv.models.registry import Entry


class Convs(nn.Module):
    """A few 3x3 convolutions, each with norm and ReLU."""

    filters: int
    count: int
    conv: Callable[..., Conv]
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, *spatial, C] -> [N, *spatial, filters]."""
        for n in range(1, self.count + 1):
            x = ConvNorm(self.filters, self.conv, self.norm, name=f"conv{n}")(x)
        return x


class UNet(OnBackbone):
    """A U-Net.

    Attributes:
      backbone: the way down; without one it is the paper's. `create_model` takes its name.
      maps: names of the backbone's maps, the finest first; by default the last at each stride.
      widths: filters at each size, the finest first; with a backbone, of the way up.
      convs: 3x3 convolutions at each size.
    """

    widths: Sequence[int] = (64, 128, 256, 512, 1024)
    convs: int = 2

    @classmethod
    def wanted(cls, strides: Sequence[int]) -> Sequence[int]:
        """All that the backbone has."""
        return strides

    @classmethod
    def assembled(cls, arguments: Mapping[str, Any], build: Callable[..., Any]) -> dict[str, Any]:
        """The arguments of the module, see `OnBackbone.assembled`; without a backbone, as given."""
        if arguments.get("backbone"):
            return super().assembled(arguments, build)
        return {k: v for k, v in arguments.items() if k not in ("backbone", "backbone_kwargs")}

    def spacings(self) -> tuple[int, ...]:
        """None: it has no `output_stride` to choose, since each of its maps has half the size."""
        return Network.spacings(self)

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, *spatial, C] -> logits [N, *spatial, num_classes], float32."""
        (conv, norm), size = self.tools(train), x.shape[1:-1]
        if self.backbone is None:
            skips = []
            for n, width in enumerate(self.widths, 1):
                x = x if n == 1 else Pool("max", 2, 2, name=f"pool{n}")(x)
                x = self.note(f"down{n}", Convs(width, self.convs, conv, norm, name=f"down{n}")(x))
                skips.append(x)
        else:
            names = tuple(self.maps)
            if len(self.widths) < len(names) - 1:
                raise ValueError(
                    f"UNet: {len(names)} maps of the backbone need {len(names) - 1} widths for the "
                    f"way up; there are {len(self.widths)}"
                )
            skips = self.seen(x, train)
            x = skips[-1]
        for n in range(len(skips) - 1, 0, -1):
            width, skip = self.widths[n - 1], skips[n - 1]
            x = ConvTranspose(width, dtype=x.dtype, name=f"up{n}")(x)
            if x.shape[1:-1] != skip.shape[1:-1]:  # an odd size, halved
                x = resize(x, skip.shape[1:-1])
            x = jnp.concatenate([skip, x], axis=-1)
            x = self.note(f"joined{n}", Convs(width, self.convs, conv, norm, name=f"joined{n}")(x))
        if self.num_classes:
            x = conv(self.num_classes, 1, use_bias=True, name="fc")(x)
        x = x.astype(jnp.float32)
        return x if x.shape[1:-1] == size else resize(x, size)


MODELS = {
    "unet": Entry(
        UNet,
        {"backbone": "", "backbone_kwargs": {}},
        2015,
        "Ronneberger et al. 2015, arXiv:1505.04597",
        input_size=(256, 256, 3),
    )
}
