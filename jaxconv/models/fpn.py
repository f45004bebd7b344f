"""Feature pyramid networks (Lin et al. 2017, arXiv:1612.03144, Figure 3).

backbone's map C_n        1x1 to 256, added to the coarser sum, resized by repeating
sum of a level            3x3 to 256: P_n
one level more            P_6: every second pixel of P_5 (the paper, for region proposals)
two levels more           P_6: 3x3 to 256 at stride 2, of P_5 or C_5; P_7: ReLU, 3x3 to 256 at
                          stride 2 (RetinaNet, Lin et al. 2017, arXiv:1708.02002, section 4)
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from jaxconv.layers import Conv, relu, repeat
from jaxconv.models.network import ConvNorm, Norm

# Coarser levels than the backbone's: every second pixel of the last; convolutions of the last
# level, or of the backbone's last map.
EXTRA = ("pool", "level", "map")
uniform = nn.initializers.lecun_uniform()


class FPN(nn.Module):
    """A feature pyramid.

    Attributes:
      conv, norm: from `Network.tools`.
      extra: which levels follow the backbone's: one of `EXTRA`.
      filters: of every level.
    """

    conv: Callable[..., Conv]
    norm: Norm
    extra: str
    filters: int = 256

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """Maps [N, h, w, C], finest first -> levels [N, h, w, filters] of the same sizes, and the
        coarser ones.
        """
        conv = functools.partial(self.conv, kernel_init=uniform)
        layer = functools.partial(ConvNorm, self.filters, conv, self.norm, act=None)
        levels, above = [], None
        for n in range(len(maps), 0, -1):
            x = layer(filter_size=1, name=f"lateral{n}")(maps[n - 1])
            above = x if above is None else x + repeat(above, x.shape[1:-1])
            levels.insert(0, layer(name=f"output{n}")(above))
        if self.extra == "pool":
            return [*levels, levels[-1][:, ::2, ::2]]
        coarser = functools.partial(conv, self.filters, 3, 2, 1, use_bias=True)
        p6 = coarser(name="p6")(levels[-1] if self.extra == "level" else maps[-1])
        return [*levels, p6, coarser(name="p7")(relu(p6))]
