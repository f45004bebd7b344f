"""EfficientNet (Tan and Le 2019, arXiv:1905.11946, Table 1): MBConv scaled in width and depth.

MBConv is an inverted residual with squeeze-and-excitation; MBConv6 expands the filters 6 times.

    stage   operator       filters   units   stride
    1       conv3x3             32       1        2
    2       MBConv1 k3x3        16       1        1
    3       MBConv6 k3x3        24       2        2
    4       MBConv6 k5x5        40       2        2
    5       MBConv6 k3x3        80       3        2
    6       MBConv6 k5x5       112       3        1
    7       MBConv6 k5x5       192       4        2
    8       MBConv6 k3x3       320       1        1
    9       conv1x1           1280       1        1

B1 to B7 multiply filters (rounded to multiples of 8) and units (rounded up) by `SCALES`.

EfficientNet-Lite (Liu 2020, blog.tensorflow.org, "Higher accuracy on vision models with
EfficientNet-Lite") is for devices that compute in whole numbers: no squeeze-and-excitation, ReLU6,
and stages 1, 2, 8 and 9 of fixed size. Its weights were trained by TensorFlow, whose padding `same`
is not (F - 1)/2 at stride 2.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxconv.models.mobilenet import InvertedResidual
from jaxconv.models.network import ConvNorm, Network, global_mean, round_channels
from jaxconv.models.registry import Entry

# expansion, filter size, stride, filters, units
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNet(Network):
    """Scaled stages of MBConv units.

    Attributes:
      width, depth: multiply filters and units.
      dropout: share of the last features dropped.
      drop_path: probability of dropping the last unit in training; it grows from 0 at the first
        (arXiv:1603.09382).
      epsilon, momentum: of BatchNorm.
      lite: whether it is an EfficientNet-Lite, see the module.
      padding: of all windows, see `ConvNorm`.
    """

    stages: Sequence[Sequence[int]] = STAGES
    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    drop_path: float = 0.2
    epsilon: float = 1e-5
    momentum: float = 0.9
    lite: bool = False
    padding: int | str = -1

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of the first convolution, which stays, and of each stage."""
        return (2, *(stride for _, _, stride, _, _ in self.stages)), 1

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        conv, norm = self.tools(train, epsilon=self.epsilon, momentum=self.momentum)
        tools = {"conv": conv, "norm": norm, "act": nn.relu6 if self.lite else nn.silu}
        first = 32 if self.lite else round_channels(32 * self.width)
        x = ConvNorm(first, **tools, stride=2, padding=self.padding, name="stage1")(x)
        x = self.note("stage1", x)
        counts = [math.ceil(units * self.depth) for *_, units in self.stages]
        if self.lite:
            counts[0], counts[-1] = self.stages[0][-1], self.stages[-1][-1]
        spacings, done = self.spacings(), 0
        for stage, ((expansion, size, stride, filters, _), units) in enumerate(
            zip(self.stages, counts, strict=True), 2
        ):
            for n in range(units):
                x = InvertedResidual(
                    round_channels(filters * self.width),
                    x.shape[-1] * expansion,
                    size,
                    stride if n == 0 else 1,
                    **tools,
                    squeezed=0 if self.lite else max(1, x.shape[-1] // 4),
                    gate=nn.sigmoid,
                    se_act=nn.silu,
                    drop=self.drop_path * done / sum(counts),
                    train=train,
                    atrous=spacings[stage - 1] * (stride if n else 1),
                    padding=self.padding,
                    name=f"stage{stage}_{n + 1}",
                )(x)
                done += 1
            x = self.note(f"stage{stage}", x)
        last = 1280 if self.lite else 4 * x.shape[-1]
        x = self.note("stage9", ConvNorm(last, **tools, filter_size=1, name="stage9")(x))
        return self.head(
            nn.Dropout(self.dropout, deterministic=not train, name="dropout")(
                self.note("pool", global_mean(x))
            )
        )


# width, depth, dropout, input size, errors (torchvision's first weights)
SCALES = {
    "b0": (1.0, 1.0, 0.2, 224, (22.308, 6.468)),
    "b1": (1.0, 1.1, 0.2, 240, (21.358, 5.814)),
    "b2": (1.1, 1.2, 0.3, 288, (19.392, 4.69)),
    "b3": (1.2, 1.4, 0.3, 300, (17.992, 3.946)),
    "b4": (1.4, 1.8, 0.4, 380, (16.616, 3.406)),
    "b5": (1.6, 2.2, 0.4, 456, (16.556, 3.372)),
    "b6": (1.8, 2.6, 0.5, 528, (15.992, 3.084)),
    "b7": (2.0, 3.1, 0.5, 600, (15.878, 3.092)),
}
# The same of EfficientNet-Lite (TensorFlow's weights)
LITE = {
    "lite0": (1.0, 1.0, 0.2, 224, (24.9, None)),
    "lite1": (1.0, 1.1, 0.2, 240, (23.3, None)),
    "lite2": (1.1, 1.2, 0.3, 260, (22.4, None)),
    "lite3": (1.2, 1.4, 0.3, 280, (20.2, None)),
    "lite4": (1.4, 1.8, 0.3, 300, (18.5, None)),
}
_TENSORFLOW = {"epsilon": 1e-3, "momentum": 0.99}
MODELS = {
    f"efficientnet_{name}": Entry(
        EfficientNet,
        {
            "width": width,
            "depth": depth,
            "dropout": dropout,
            **(_TENSORFLOW if name >= "b5" else {}),
            **({"lite": True, "padding": "same"} if name in LITE else {}),
        },
        2020 if name in LITE else 2019,
        "Liu 2020, blog.tensorflow.org" if name in LITE else "Tan and Le 2019, arXiv:1905.11946",
        input_size=(size, size, 3),
        errors=errors,
    )
    for name, (width, depth, dropout, size, errors) in {**SCALES, **LITE}.items()
}
