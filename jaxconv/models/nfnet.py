"""NFNet (Brock et al. 2021, arXiv:2102.06171, Tables 1 and 3): a ResNet without normalization.

    stage   output of 192x192   width                    F0 units   F1   F2    F3    F4 ...
    stem    48x48               3x3/2 16, 3x3 32,
                                3x3 64, 3x3/2 128
    1       48x48               256                      1          2    3     4     n + 1
    2       24x24               512                      2          4    6     8     2(n + 1)
    3       12x12               1536                     6          12   18    24    6(n + 1)
    4       6x6                 1536                     3          6    9     12    3(n + 1)
    end     6x6                 1x1 3072, mean, 1000-d fc

A unit is 1x1, two 3x3 in groups of 128 maps, 1x1, squeeze-and-excitation doubled, with an
activation before each: x + 0.2 * skip_gain * f(x * beta). beta is 1 / the expected standard
deviation of the input; convolutions are standardised (`layers.StandardizedConv`); `gamma` gives an
activation unit variance; skip_gain is learned and starts at 0.

They are trained with adaptive gradient clipping: `config.optimizer.adaptive_clip`, and SGD with
Nesterov's momentum, weight decay 2e-5 without gains and biases.

timm's L0 to L2 are lighter: SiLU, groups of 64, a narrower middle, less or cheaper attention.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxconv.layers import StandardizedConv, average_pool
from jaxconv.models.attention import EfficientChannelAttention
from jaxconv.models.network import Network, SqueezeExcite, global_mean, stochastic_depth
from jaxconv.models.registry import Entry

# Activations, and 1 / the standard deviation of what they make of unit normal noise.
ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], float]] = {
    "gelu": (functools.partial(nn.gelu, approximate=False), 1.7015043497085571),
    "silu": (nn.silu, 1.7881293296813965),
    "relu": (nn.relu, 1.7139588594436646),
}
# The paper's alpha: each unit adds so much of a unit variance, squared.
ALPHA = 0.2


class Unit(nn.Module):
    """A unit without norms: 1x1, 3x3, 3x3, 1x1, attention; see the module.

    Attributes:
      filters, middle, groups: of the output and of the 3x3 convolutions.
      beta: multiplies the first activation.
      conv: the standardised convolution.
      plain: the ordinary one, for attention.
      squeezed: filters of squeeze-and-excitation; 0 for efficient channel attention.
      skip_gain: whether the residual has that factor; otherwise the last gain starts at 0.
      padding: of the 3x3 with the stride, see `ConvNorm`.
    """

    filters: int
    middle: int
    groups: int
    stride: int
    beta: float
    conv: Callable[..., StandardizedConv]
    plain: Callable[..., Any]
    act: Callable[[jax.Array], jax.Array]
    train: bool
    squeezed: int
    skip_gain: bool
    drop: float = 0.0
    atrous: int = 0
    padding: int | str = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, filters]."""
        strided: dict[str, Any] = {"stride": self.stride, "atrous": self.atrous}
        wide: dict[str, Any] = {"groups": self.groups, "padding": self.padding}
        opened = self.act(x) * self.beta
        y = self.act(self.conv(self.middle, 1, name="conv1")(opened))
        y = self.act(self.conv(self.middle, 3, **strided, **wide, name="conv2")(y))
        wide["atrous"] = self.atrous * self.stride
        y = self.act(self.conv(self.middle, 3, **wide, name="conv2b")(y))
        last = {"gain_init": 1.0 if self.skip_gain else 0.0, "name": "conv3"}
        y = self.conv(self.filters, 1, **last)(y)
        if self.squeezed:
            y = 2 * SqueezeExcite(self.squeezed, self.plain, name="se")(y)
        else:
            y = 2 * EfficientChannelAttention(self.plain, name="eca")(y)
        if self.stride != 1 or x.shape[-1] != self.filters:
            x = opened
            if self.stride != 1:
                x = average_pool(x, 2, **strided, rounding="ceil", layer="shortcut")
            x = self.conv(self.filters, 1, name="shortcut")(x[:, : y.shape[1], : y.shape[2]])
        y = stochastic_depth(y, self.drop, self.train)
        if self.skip_gain:
            y *= self.param("skip_gain", nn.initializers.zeros_init(), ()).astype(y.dtype)
        return x + ALPHA * y


class NFNet(Network):
    """A normalizer-free network.

    Attributes:
      units, widths: of each stage.
      last: filters of the last convolution.
      middle, group_width: of the 3x3 convolutions: share of the width, and maps of a group.
      squeeze: filters of squeeze-and-excitation as a share of the width; 0 for efficient channel
        attention.
      act: one of `ACTIVATIONS`.
      scaled: whether the activations have the factor gamma, as the authors', and not the filters.
      skip_gain: see `Unit`.
      padding: of convolutions with a stride; the authors' weights want `same`.
      dropout: share of the last features dropped.
      drop_path: probability of dropping the last unit in training; it grows from 0 at the first.
    """

    units: Sequence[int] = (1, 2, 6, 3)
    widths: Sequence[int] = (256, 512, 1536, 1536)
    last: int = 3072
    middle: float = 0.5
    group_width: int = 128
    squeeze: float = 0.5
    act: str = "gelu"
    scaled: bool = True
    skip_gain: bool = True
    padding: int | str = "same"
    dropout: float = 0.2
    drop_path: float = 0.25

    def strides(self) -> tuple[tuple[int, ...], int]:
        """The stem's, which stays, and each stage's."""
        return (4, 1, *(2,) * (len(self.units) - 1)), 1

    def normless(self) -> str:
        """The network is made to need none."""
        return "an NFNet has no norm"

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (plain, _), spacings = self.tools(train), self.spacings()
        function, gamma = ACTIVATIONS[self.act]
        act = (lambda x: function(x) * gamma) if self.scaled else function
        settings = {"dtype": self.dtype, "gamma": 1.0 if self.scaled else gamma}
        conv = functools.partial(StandardizedConv, **settings)
        for n, (filters, stride) in enumerate(((16, 2), (32, 1), (64, 1), (128, 2)), 1):
            x = act(x) if n > 1 else x
            x = conv(filters, 3, stride, self.padding, name=f"conv1_{n}")(x)
        x, variance, done = self.note("conv1", x), 1.0, 0
        for stage, (units, width) in enumerate(zip(self.units, self.widths, strict=True), 1):
            middle = int(width * self.middle)
            for n in range(units):
                stride = 2 if stage > 1 and n == 0 else 1
                x = Unit(
                    width,
                    middle,
                    middle // self.group_width,
                    stride,
                    variance**-0.5,
                    conv=conv,
                    plain=plain,
                    act=act,
                    train=train,
                    squeezed=int(width * self.squeeze),
                    skip_gain=self.skip_gain,
                    drop=self.drop_path * done / max(1, sum(self.units) - 1),
                    atrous=spacings[stage] * (2 if stage > 1 and n else 1),
                    padding=self.padding,
                    name=f"stage{stage}_{n + 1}",
                )(x)
                # A stage's first unit has a shortcut with weights, whose variance is 1.
                variance, done = (variance if n else 1.0) + ALPHA**2, done + 1
            x = self.note(f"stage{stage}", x)
        x = self.note("last", act(conv(self.last, 1, name="last")(x)))
        x = self.note("pool", global_mean(x))
        return self.head(nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x))


# F0 to F6: image size and dropout of training, errors (Table 3; F6 with another augmentation)
F = (
    (192, 0.2, (16.4, 3.2)),
    (224, 0.3, (15.3, 2.9)),
    (256, 0.4, (14.9, 2.7)),
    (320, 0.4, (14.3, 2.5)),
    (384, 0.5, (14.1, 2.4)),
    (416, 0.5, (14.0, 2.4)),
    (448, 0.5, None),
)
_LIGHT = {"middle": 0.25, "group_width": 64, "act": "silu", "scaled": False, "skip_gain": False}
_LIGHT |= {"padding": 1}
# n as in F's units, image size, filters of the last convolution, squeeze-and-excitation
LIGHT = {
    "nfnet_l0": (0, 224, 2304, 0.25),
    "eca_nfnet_l0": (0, 224, 2304, 0.0),
    "eca_nfnet_l1": (1, 256, 3072, 0.0),
    "eca_nfnet_l2": (2, 320, 3072, 0.0),
}
PAPER = (2021, "Brock et al. 2021, arXiv:2102.06171")


def units_of(n: int) -> tuple[int, ...]:
    """Units of Fn's stages."""
    return tuple(units * (n + 1) for units in (1, 2, 6, 3))


MODELS = {
    **{
        f"dm_nfnet_f{n}": Entry(
            NFNet,
            {"units": units_of(n), "dropout": dropout},
            *PAPER,
            input_size=(size, size, 3),
            errors=errors,
        )
        for n, (size, dropout, errors) in enumerate(F)
    },
    **{
        name: Entry(
            NFNet,
            {"units": units_of(n), "last": last, "squeeze": squeeze, **_LIGHT},
            *PAPER,
            input_size=(size, size, 3),
        )
        for name, (n, size, last, squeeze) in LIGHT.items()
    },
}
