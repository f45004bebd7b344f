"""RepVGG (Ding et al. 2021, arXiv:2101.03697, Tables 2 and 3): a VGG whose layers train as three.

A layer in training is the sum of a 3x3, a 1x1 and, where the shape stays, the identity, each with
BatchNorm; then ReLU. All are linear, so after training they are one 3x3: see `reparameterize`.

    stage  output   A: layers, filters   B: layers, filters
    0      112x112  1, min(64, 64a)      1, min(64, 64a)
    1      56x56    2, 64a               4, 64a
    2      28x28    4, 128a              6, 128a
    3      14x14    14, 256a             16, 256a
    4      7x7      1, 512b              1, 512b

Each stage's first layer has stride 2. In `g4` the convolutions of layers 2, 4, 6 ..., counted
from 0 through the whole network, have 4 groups.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxconv.layers import Conv, relu
from jaxconv.models.network import ConvNorm, Network, Norm, global_mean
from jaxconv.models.registry import Entry


class Layer(nn.Module):
    """Branches `conv3x3`, `conv1x1` and `identity`, or, if `plain`, the one convolution `conv`."""

    filters: int
    stride: int
    conv: Callable[..., Conv]
    norm: Norm
    groups: int = 1
    atrous: int = 0
    plain: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, filters]."""
        strided: dict[str, Any] = {"stride": self.stride, "groups": self.groups}
        strided["atrous"] = self.atrous
        if self.plain:
            return relu(self.conv(self.filters, 3, padding=1, **strided, name="conv")(x))
        tools: dict[str, Any] = {"conv": self.conv, "norm": self.norm, "act": None, **strided}
        y = ConvNorm(self.filters, **tools, name="conv3x3")(x)
        y += ConvNorm(self.filters, **tools, filter_size=1, name="conv1x1")(x)
        if self.stride == 1 and x.shape[-1] == self.filters:
            y += self.norm(name="identity")(x)
        return relu(y)


class RepVGG(Network):
    """A RepVGG.

    Attributes:
      layers, widths: of each stage, from the first layer on.
      groups: of layers 2, 4, 6 ...
      plain: whether each layer is one convolution with a bias, without BatchNorm: see
        `reparameterize`.
    """

    layers: Sequence[int] = (1, 2, 4, 14, 1)
    widths: Sequence[int] = (48, 48, 96, 192, 1280)
    groups: int = 1
    plain: bool = False

    def strides(self) -> tuple[tuple[int, ...], int]:
        """The first layer's, which stays, and each stage's."""
        return (2,) * len(self.layers), 1

    def normless(self) -> str:
        """A plain one has no norm."""
        return "the network is plain, without norms" if self.plain else ""

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        (conv, norm), spacings, done = self.tools(train), self.spacings(), 0
        for stage, (layers, width) in enumerate(zip(self.layers, self.widths, strict=True)):
            for n in range(layers):
                x = Layer(
                    width,
                    1 if n else 2,
                    conv=conv if not self.plain else self.biased(conv),
                    norm=norm,
                    groups=self.groups if done and done % 2 == 0 else 1,
                    atrous=spacings[stage] * (2 if n else 1),
                    plain=self.plain,
                    name=f"stage{stage}_{n + 1}",
                )(x)
                done += 1
            x = self.note(f"stage{stage}", x)
        return self.head(self.note("pool", global_mean(x)))

    def biased(self, conv: Callable[..., Conv]) -> Callable[..., Conv]:
        """The convolutions of a plain network."""
        return lambda *sizes, **settings: conv(*sizes, **settings, use_bias=True)


def reparameterize(
    model: RepVGG, variables: Mapping[str, Any], epsilon: float = 1e-5
) -> tuple[RepVGG, dict[str, Any]]:
    """A trained RepVGG as plain 3x3 convolutions: the same outputs with `train=False`.

    With BatchNorm's running statistics, each branch is a convolution with a bias; the 1x1 and the
    identity are 3x3 whose other weights are 0. Their sum is one 3x3 (section 3.3).

    Args:
      variables: `params` and `batch_stats` of the model.
      epsilon: of its BatchNorm.

    Returns:
      The plain network, and its variables.

    Raises:
      ValueError: the network is already plain, or its norm is not BatchNorm.
    """
    if model.plain or model.norm not in ("batch", "frozen"):
        what = "is plain already" if model.plain else f"has norm={model.norm!r}, not batch"
        raise ValueError(f"the RepVGG {what}; only BatchNorm joins convolutions")
    flat: dict[str, Any] = {}
    for collection in ("params", "batch_stats"):
        flat |= flatten_dict(dict(variables.get(collection, {})), sep="/")
    plain = {path: value for path, value in flat.items() if path.startswith("fc/")}
    for layer in sorted({path.split("/")[0] for path in flat} - {"fc"}):
        kernel, bias = _joined(flat, layer, epsilon)
        plain |= {f"{layer}/conv/kernel": kernel, f"{layer}/conv/bias": bias}
    fields = {"plain": True, "norm": "batch", "frozen_norm": False, "norm_groups": 1}
    return model.clone(**fields), {"params": unflatten_dict(plain, sep="/")}


def _joined(flat: Mapping[str, Any], layer: str, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Kernel [3, 3, C / groups, K] and bias [K] of a layer's branches together."""

    def norm(path: str) -> tuple[jax.Array, jax.Array]:
        names = ("scale", "bias", "mean", "var")
        scale, bias, mean, var = (jnp.asarray(flat[f"{path}/{name}"]) for name in names)
        factor = scale / jnp.sqrt(var + epsilon)
        return factor, bias - mean * factor

    factor, bias = norm(f"{layer}/conv3x3/norm")
    kernel = flat[f"{layer}/conv3x3/conv/kernel"] * factor.reshape(1, 1, 1, -1)
    factor, more = norm(f"{layer}/conv1x1/norm")
    kernel = kernel.at[1, 1].add(flat[f"{layer}/conv1x1/conv/kernel"][0, 0] * factor[None])
    bias += more
    if f"{layer}/identity/mean" in flat:
        factor, more = norm(f"{layer}/identity")
        filters = jnp.arange(len(factor))
        # Filter k of a group sees the map k as the one of its place in the group.
        kernel = kernel.at[1, 1, filters % kernel.shape[2], filters].add(factor)
        bias += more
    return kernel, bias


# layers of stages 1 to 4, a, b, groups, top-1 error (Table 4; B2g4 to B3: Table 5, trained longer
# with AutoAugment, mixup and label smoothing)
A, B = (2, 4, 14, 1), (4, 6, 16, 1)
TABLE = {
    "a0": (A, 0.75, 2.5, 1, 27.59),
    "a1": (A, 1, 2.5, 1, 25.54),
    "a2": (A, 1.5, 2.75, 1, 23.52),
    "b0": (B, 1, 2.5, 1, 24.86),
    "b1": (B, 2, 4, 1, 21.63),
    "b1g4": (B, 2, 4, 4, 22.42),
    "b2": (B, 2.5, 5, 1, 21.22),
    "b2g4": (B, 2.5, 5, 4, 20.62),
    "b3": (B, 3, 5, 1, 19.48),
    "b3g4": (B, 3, 5, 4, 19.79),
}
MODELS = {
    f"repvgg_{name}": Entry(
        RepVGG,
        {
            "layers": (1, *layers),
            "widths": (min(64, int(64 * a)), *(int(w * a) for w in (64, 128, 256)), int(512 * b)),
            "groups": groups,
        },
        2021,
        "Ding et al. 2021, arXiv:2101.03697",
        errors=(error, None),
    )
    for name, (layers, a, b, groups, error) in TABLE.items()
}
