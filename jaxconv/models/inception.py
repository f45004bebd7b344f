"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567, Table 1): windows split into smaller ones.

    type              patch/stride  input         here
    conv              3x3/2         299x299x3     conv1a
    conv              3x3/1         149x149x32    conv2a
    conv padded       3x3/1         147x147x32    conv2b
    pool              3x3/2         147x147x64    pool1
    conv              3x3/1         73x73x64      conv3b, 1x1 of 80 filters
    conv              3x3/2         71x71x80      conv4a, 3x3/1 of 192
    conv              3x3/1         35x35x192     pool2, 3x3/2
    3 Inception, Figure 5           35x35x288     mixed5b, mixed5c, mixed5d
    5 Inception, Figure 6           17x17x768     mixed6a, which shrinks maps, to mixed6e
    2 Inception, Figure 7           8x8x1280      mixed7a, which shrinks maps, mixed7b, mixed7c
    pool              8x8           8x8x2048
    linear, softmax

A 5x5 is two 3x3 (Figure 5), a 7x7 is 1x7 and 7x1 (Figure 6), and a 3x3 is 1x3 and 3x1 side by side
(Figure 7). Where "here" differs it is the authors' code, which public weights are of. Modules have
the numbers of that code; branches have torchvision's names. Windows without a stride keep the size
after conv4a, those with one have no padding. In training, an auxiliary classifier with BatchNorm
(section 4) is attached to mixed6e; its loss has weight 0.4, as in the authors' code. It needs maps
of 17x17, which images of 299x299 give: for smaller ones, `auxiliary=False`.

torchvision's weights want images normalised with mean 0.5 and standard deviation 0.5.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.layers import average_pool, max_pool
from jaxconv.models.network import AUXILIARY, ConvNorm, Network, every_nth, global_mean
from jaxconv.models.registry import Entry

LOSS_WEIGHT = 0.4
# A branch is a chain of convolutions: its name, filters, filter size; those of a name that ends in
# `a` and `b` stand side by side. `pool` averages 3x3 first.
_ROWS, _COLUMNS = (1, 7), (7, 1)


def _same_size(pool: int) -> tuple:
    """Figure 5: mixed5."""
    return (
        (("branch1x1", 64, 1),),
        (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        (("branch_pool", pool, 1),),
    )


def _factorized(n: int) -> tuple:
    """Figure 6, with n filters: mixed6b to mixed6e."""
    return (
        (("branch1x1", 192, 1),),
        (("branch7x7_1", n, 1), ("branch7x7_2", n, _ROWS), ("branch7x7_3", 192, _COLUMNS)),
        (
            ("branch7x7dbl_1", n, 1),
            ("branch7x7dbl_2", n, _COLUMNS),
            ("branch7x7dbl_3", n, _ROWS),
            ("branch7x7dbl_4", n, _COLUMNS),
            ("branch7x7dbl_5", 192, _ROWS),
        ),
        (("branch_pool", 192, 1),),
    )


# Figure 7: mixed7b and mixed7c.
_EXPANDED = (
    (("branch1x1", 320, 1),),
    (("branch3x3_1", 384, 1), ("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))),
    (
        ("branch3x3dbl_1", 448, 1),
        ("branch3x3dbl_2", 384, 3),
        ("branch3x3dbl_3a", 384, (1, 3)),
        ("branch3x3dbl_3b", 384, (3, 1)),
    ),
    (("branch_pool", 192, 1),),
)
# The first modules of a grid: the last convolution of each branch has stride 2 and no padding, and
# a max pooling stands beside them.
_REDUCTIONS = {
    "6a": (
        (("branch3x3", 384, 3),),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
    ),
    "7a": (
        (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)),
        (
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, _ROWS),
            ("branch7x7x3_3", 192, _COLUMNS),
            ("branch7x7x3_4", 192, 3),
        ),
    ),
}
MODULES = {
    "5b": _same_size(32),
    "5c": _same_size(64),
    "5d": _same_size(64),
    "6a": _REDUCTIONS["6a"],
    "6b": _factorized(128),
    "6c": _factorized(160),
    "6d": _factorized(160),
    "6e": _factorized(192),
    "7a": _REDUCTIONS["7a"],
    "7b": _EXPANDED,
    "7c": _EXPANDED,
}


class Mixed(nn.Module):
    """An inception module: branches of convolutions, concatenated.

    Attributes:
      branches: a row of `MODULES`.
      conv: builds a convolution together with what follows it.
      reduces: whether it makes the maps smaller.
      atrous: see `layers.convolve`.
    """

    branches: tuple
    conv: Callable[..., nn.Module]
    reduces: bool = False
    atrous: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, K], or of (H - 3) / 2 + 1 positions if it reduces."""
        outputs = [self._branch(x, branch) for branch in self.branches]
        if self.reduces:
            outputs.append(max_pool(x, 3, 2, layer=self.name or "", atrous=self.atrous))
        return jnp.concatenate(outputs, axis=-1)

    def _branch(self, x: jax.Array, branch: tuple) -> jax.Array:
        if branch[0][0] == "branch_pool":
            x = average_pool(x, 3, 1, 1, atrous=self.atrous)
        beside = []
        for name, filters, size in branch:
            last = {"stride": 2, "padding": 0} if self.reduces and name == branch[-1][0] else {}
            y = self.conv(filters, size, atrous=self.atrous, name=name, **last)(x)
            if name[-1] in "ab":
                beside.append(y)
            else:
                x = y
        return jnp.concatenate(beside, axis=-1) if beside else x


class InceptionV3(Network):
    """Inception modules, with an auxiliary classifier.

    Attributes:
      auxiliary: add it. In training, its logits are stored in the collection `auxiliary`.
      modules: the inception modules to include, such as `5b 6a 7a` for a smaller network.
    """

    auxiliary: bool = True
    modules: str = " ".join(MODULES)

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of conv1a, pool1 and pool2, which stay, and of mixed6a and mixed7a."""
        return (2, 2, 2, 2, 2), 3

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
        plain, norm = self.tools(train, epsilon=1e-3)

        def conv(filters: int, size: int, **arguments: Any) -> nn.Module:
            return ConvNorm(filters, plain, norm, filter_size=size, **arguments)

        x = self.note("conv1a", conv(32, 3, stride=2, padding=0, name="conv1a")(x))
        x = self.note("conv2a", conv(32, 3, padding=0, name="conv2a")(x))
        x = self.note("conv2b", conv(64, 3, name="conv2b")(x))
        x = self.note("pool1", max_pool(x, 3, 2, layer="pool1"))
        x = self.note("conv3b", conv(80, 1, name="conv3b")(x))
        x = self.note("conv4a", conv(192, 3, padding=0, name="conv4a")(x))
        x = self.note("pool2", max_pool(x, 3, 2, layer="pool2"))
        spacings, atrous = dict(zip(_REDUCTIONS, self.spacings()[3:], strict=True)), 0
        for name in (name for name in MODULES if name in self.modules.split()):
            reduces = name in _REDUCTIONS
            spacing = spacings[name] if reduces else atrous
            module = Mixed(MODULES[name], conv, reduces, spacing, name=f"mixed{name}")
            x, atrous = self.note(f"mixed{name}", module(x)), spacing * (2 if reduces else 1)
            wanted = self.auxiliary and self.classifies() and (train or self.is_initializing())
            if name == "6e" and wanted:
                self._auxiliary(every_nth(x, atrous), conv, train)
        x = self.note("pool", global_mean(x))
        return self.head(nn.Dropout(0.5, deterministic=not train, name="dropout")(x))

    def _auxiliary(self, x: jax.Array, conv: Callable[..., nn.Module], train: bool) -> None:
        """5x5/3 average pool, 1x1 of 128, 5x5 of 768, mean, logits."""
        x = conv(128, 1, name="aux_conv0")(average_pool(x, 5, 3, layer="aux"))
        x = conv(768, 5, padding=0, name="aux_conv1")(x)
        logits = self.head(global_mean(x), "aux_fc")
        if train:
            self.keep(AUXILIARY, "aux", (logits, LOSS_WEIGHT))


MODELS = {
    "inception_v3": Entry(
        InceptionV3,
        {},
        2015,
        "Szegedy et al. 2015, arXiv:1512.00567",
        input_size=(299, 299, 3),
        errors=(22.706, 6.55),
    )
}
