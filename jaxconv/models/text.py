"""Networks written in the notation of models/notation.py, and the famous ones among them.

LeNet-5 (LeCun et al. 1998): [CONV-POOL-CONV-POOL-CONV-FC], 5x5 filters at stride 1, 2x2 subsampling
at stride 2.

AlexNet (Krizhevsky et al. 2012), as in the lecture:
    [227x227x3] INPUT
    [55x55x96] CONV1: 96 11x11 filters at stride 4, pad 0
    [27x27x96] MAX POOL1: 3x3 filters at stride 2
    [27x27x96] NORM1
    [27x27x256] CONV2: 256 5x5 filters at stride 1, pad 2
    [13x13x256] MAX POOL2: 3x3 filters at stride 2
    [13x13x256] NORM2
    [13x13x384] CONV3: 384 3x3 filters at stride 1, pad 1
    [13x13x384] CONV4: 384 3x3 filters at stride 1, pad 1
    [13x13x256] CONV5: 256 3x3 filters at stride 1, pad 1
    [6x6x256] MAX POOL3: 3x3 filters at stride 2
    [4096] FC6, [4096] FC7, [1000] FC8
`alexnet_2012` has convolutions 2, 4 and 5 in two groups and each norm before its pooling, as in the
paper.

ZFNet (Zeiler and Fergus 2013, arXiv:1311.2901): "AlexNet but: CONV1 7x7 stride 2; CONV3,4,5 with
512, 1024, 512 filters". As in the paper's Figure 3, conv2 is 5x5 at stride 2 and the first two
poolings round up. `zfnet_base` keeps 384, 384, 256.

VGG (Simonyan and Zisserman 2014, arXiv:1409.1556, Table 1), conv3 and conv1 in five stages, each
followed by a 2x2 max pool:
    A      64    | 128     | 256 256     | 512 512     | 512 512
    A-LRN  A with a norm after the first convolution
    B      64 64 | 128 128 | 256 256     | 512 512     | 512 512
    C, D   64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512   (in C, each third is conv1)
    E      64 64 | 128 128 | 256 x4      | 512 x4      | 512 x4
    FC-4096, FC-4096, FC-1000, soft-max

All-CNN-C (Springenberg et al. 2014, arXiv:1412.6806, Tables 1 and 2): the lecture's "just CONV",
with strides instead of pooling.
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxconv.arithmetic import same_padding
from jaxconv.layers import (
    Conv,
    Dense,
    Embed,
    adaptive_average_pool,
    average_pool,
    local_response_norm,
    max_pool,
)
from jaxconv.models.network import Network, every_nth, global_mean
from jaxconv.models.notation import BRACES, Branches, Items, Layer, Repeat, expand, parse
from jaxconv.models.registry import Entry

ACTIVATIONS = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": nn.sigmoid,
    "gelu": nn.gelu,
    "silu": nn.silu,
}
POOLS = {"maxpool": max_pool, "avgpool": average_pool}
# Layers that take all positions at once.
_OVERALL = ("globalpool", "globalmaxpool", "adaptpool", "fc")


class Text(Network):
    """The network that a text describes.

    Attributes:
      text: in the notation. A last `fc` or `conv` without a number has `num_classes` outputs; with
        0 classes it is left out.
      by_stage: number convolutions by stage, `conv2_1`, as in VGG, instead of consecutively,
        `conv3`.
    """

    text: str = ""
    by_stage: bool = False

    def strides(self) -> tuple[tuple[int, ...], int]:
        """Of the convolutions and poolings before all positions are taken at once; all may change.

        Raises:
          ValueError: with an `output_stride`, a stride differs between the axes, or the text has
            braces.
        """
        strides = []
        for name, layer in name_layers(parse(self.text), self.by_stage):
            if layer.kind in _OVERALL:
                break
            if layer.kind in BRACES and self.output_stride:
                raise ValueError(
                    f"output_stride is {self.output_stride}, but the text has {{ | }}, of which "
                    "each path has strides of its own"
                )
            if layer.kind in ("conv", *POOLS):
                stride = _stride(layer)
                if len({*stride}) > 1 and self.output_stride:
                    raise ValueError(
                        f"output_stride is {self.output_stride}, but the stride of {name} is "
                        f"{'x'.join(map(str, stride))}; give it one for all axes, /S"
                    )
                strides.append(max(stride))
        return tuple(strides), 0

    def normless(self) -> str:
        """It has as many norms as the text has `bn`."""
        kinds = {layer.kind for layer in expand(parse(self.text))}
        return "" if "bn" in kinds else "the text has no bn"

    @nn.compact
    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, *spatial, C] -> logits [N, num_classes], float32."""
        spacings, removed = iter(self.spacings()), 0
        # What each brace that is open takes, and what its paths have given.
        opened: list[tuple[jax.Array, list[jax.Array]]] = []
        for name, layer in name_layers(parse(self.text), self.by_stage):
            if layer.kind in ("conv", "fc") and layer.count is None and not self.num_classes:
                continue
            if layer.kind in BRACES:
                x = self._branch(name, layer.kind, x, opened)
                continue
            if layer.kind == "embed" and name != "embed":
                raise ValueError(f"{name}: takes the codes of a text; put it at the beginning")
            if layer.kind in _OVERALL:
                x, removed = x if layer.kind.startswith("global") else every_nth(x, removed), 0
            atrous = next(spacings, 0) if layer.kind in ("conv", *POOLS) else 0
            removed = atrous * max(_stride(layer)) if atrous else removed
            x = self.note(name, self._apply(name, layer, x, train, atrous))
        return x.astype(jnp.float32)

    def _branch(
        self, name: str, kind: str, x: jax.Array, opened: list[tuple[jax.Array, list[jax.Array]]]
    ) -> jax.Array:
        """What the layer after a brace takes."""
        if kind == "{":
            opened.append((x, []))
            return x
        if kind == "|":
            opened[-1][1].append(x)
            return opened[-1][0]
        outputs = [*opened.pop()[1], x]
        shapes = {output.shape[:-1] for output in outputs}
        if len(shapes) > 1:
            shown = " and ".join("x".join(map(str, shape[1:])) for shape in sorted(shapes))
            raise ValueError(f"{name}: the maps of its paths differ in size: {shown}")
        return self.note(name, jnp.concatenate(outputs, axis=-1))

    def _apply(self, name: str, layer: Layer, x: jax.Array, train: bool, atrous: int) -> jax.Array:
        count = self.num_classes if layer.count is None else layer.count
        window = layer.window[0] if len(layer.window) == 1 else layer.window
        match layer.kind:
            case "conv":
                padding = (
                    layer.padding
                    if layer.padding is not None
                    else tuple(_same(name, f, layer.dilation) for f in layer.window)
                )
                padding = (
                    padding[0] if isinstance(padding, tuple) and len(padding) == 1 else padding
                )
                sizes = (window, layer.stride or 1, padding, layer.dilation, layer.groups)
                settings = {"use_bias": layer.bias, "dtype": self.dtype, "atrous": atrous}
                return Conv(count, *sizes, layer.rounding, **settings, name=name)(x)
            case "maxpool" | "avgpool":
                sizes = (window, layer.stride or window, layer.padding or 0)
                return POOLS[layer.kind](x, *sizes, layer.rounding, layer=name, atrous=atrous)
            case "globalpool":
                return global_mean(x)
            case "globalmaxpool":
                return jnp.max(x, axis=tuple(range(1, x.ndim - 1)))
            case "embed":
                return Embed(count, dtype=self.dtype, name=name)(x)
            case "adaptpool":
                return adaptive_average_pool(x, count)
            case "bn":
                _, norm = self.tools(train)
                return norm(name=name)(x)
            case "lrn":
                return local_response_norm(x, layer.count or 5)
            case "dropout":
                return nn.Dropout(layer.share, deterministic=not train, name=name)(x)
            case "fc":
                return Dense(count, dtype=self.dtype, name=name)(x)
        return ACTIVATIONS[layer.kind](x)


def _stride(layer: Layer) -> tuple[int, ...]:
    """Of a convolution or pooling: one number, or one per axis."""
    if layer.stride is None:
        return (1,) if layer.kind == "conv" else layer.window
    return (layer.stride,)


def _same(name: str, size: int, dilation: int) -> int:
    try:
        return same_padding((size - 1) * dilation + 1)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def name_layers(items: Items, by_stage: bool = False) -> Iterator[tuple[str, Layer]]:
    """Name each layer: conv1, relu1, pool1, norm1, ...

    The numbers of fully connected layers continue those of the convolutions. With `by_stage`,
    conv2_1 is the first convolution after the first pooling, and they continue those of the stages.
    """
    counts: dict[str, int] = {}
    taken: dict[str, int] = {}
    stage, in_stage, last = 1, 0, "input"
    for layer in expand(items):
        if layer.kind == "conv":
            in_stage += 1
            counts["conv"] = counts.get("conv", 0) + 1
            name = last = f"conv{stage}_{in_stage}" if by_stage else f"conv{counts['conv']}"
        elif layer.kind == "fc":
            counts["fc"] = (
                counts.get("fc", stage - 1 + bool(in_stage) if by_stage else counts.get("conv", 0))
                + 1
            )
            name = last = f"fc{counts['fc']}"
        elif layer.kind in ("maxpool", "avgpool"):
            name, stage, in_stage = f"pool{stage}", stage + 1, 0
        elif layer.kind == "bn":
            name = (
                last.replace("conv", "norm").replace("fc", "norm_fc")
                if last != "input"
                else "norm_input"
            )
        elif layer.kind == "lrn":
            counts["lrn"] = counts.get("lrn", 0) + 1
            name = f"norm{counts['lrn']}"
        elif layer.kind in ("globalpool", "globalmaxpool", "adaptpool"):
            name = layer.kind
        elif layer.kind in BRACES:
            name = {"{": "branches", "|": "branch", "}": "concat"}[layer.kind]
        elif layer.kind == "embed":
            name = "embed" if last == "input" and not taken else "embed_inside"
        else:
            name = (
                last.replace("conv", layer.kind)
                if last.startswith("conv")
                else f"{layer.kind}_{last}"
            )
        taken[name] = taken.get(name, 0) + 1
        yield name if taken[name] == 1 else f"{name}_again{taken[name] - 1}", layer


def outputs_of(text: str) -> int | None:
    """The number of outputs that a text specifies; None if it leaves the number open."""
    return _outputs(parse(text), None)


def _outputs(items: Items, before: int | None) -> int | None:
    """The channels after these items, None where the text leaves them open."""
    for item in items:
        if isinstance(item, Branches):
            each = [_outputs(path, before) for path in item.paths]
            before = None if None in each else sum(filter(None, each))
        elif isinstance(item, Repeat):
            before = _outputs(item.items, before)
        elif item.kind in ("conv", "fc", "embed"):
            before = item.count
    return before


def _counts(text: str) -> list[int | None]:
    """Filters or neurons of each layer that has weights; None where the text leaves them open."""
    return [layer.count for layer in expand(parse(text)) if layer.kind in ("conv", "fc")]


def from_text(
    text: str, num_classes: int | None = None, by_stage: bool = False, **fields: Any
) -> Text:
    """Build the network of a text.

    Args:
      text: in the notation; see models/notation.py.
      num_classes: for a last layer without a number; otherwise optional.
      by_stage: see `name_layers`.
      **fields: `dtype`, `axis_name`, `frozen_norm`.

    Raises:
      NotationError: a mistake in the text.
      ValueError: the text leaves the number of classes open and `num_classes` is not given, or the
        two differ.
    """
    given, still_open = outputs_of(text), None in _counts(text)
    if num_classes is None and still_open:
        raise ValueError(f"{text!r} leaves the number of classes open; give num_classes")
    if num_classes and not still_open and given not in (None, num_classes):
        raise ValueError(
            f"{text!r} ends in {given} logits, and there are {num_classes} classes; end it in fc"
        )
    return Text(
        num_classes=(given or 0) if num_classes is None else num_classes,
        text=text,
        by_stage=by_stage,
        **fields,
    )


LENET5 = "conv5-6p0 tanh avgpool2 conv5-16p0 tanh avgpool2 conv5-120p0 tanh fc84 tanh fc"
HEAD = "fc4096 relu dropout0.5 fc4096 relu dropout0.5 fc"
ALEXNET = (
    "conv11-96/4p0 relu maxpool3/2 lrn conv5-256 relu maxpool3/2 lrn conv3-384 relu conv3-384 relu "
    "conv3-256 relu maxpool3/2 " + HEAD
)
ALEXNET_2012 = (
    "conv11-96/4p0 relu lrn maxpool3/2 conv5-256g2 relu lrn maxpool3/2 conv3-384 relu conv3-384g2 "
    "relu conv3-256g2 relu maxpool3/2 " + HEAD
)
ALEXNET_TORCHVISION = (
    "conv11-64/4p2 relu maxpool3/2 conv5-192 relu maxpool3/2 conv3-384 relu [conv3-256 relu]*2 "
    "maxpool3/2 "
    "adaptpool6 dropout0.5 fc4096 relu dropout0.5 fc4096 relu fc"
)
ZFNET = (
    "conv7-96/2p1 relu maxpool3/2ceil lrn conv5-256/2p0 relu maxpool3/2ceil lrn conv3-{} relu "
    "conv3-{} relu conv3-{} relu maxpool3/2 {}"
)
ALL_CNN_C = (
    "dropout0.2 [conv3-96 relu]*2 conv3-96/2 relu dropout0.5 [conv3-192 relu]*2 conv3-192/2 relu "
    "dropout0.5 "
    "conv3-192p0 relu conv1-192 relu conv1 relu globalpool"
)
# {0} is what follows each convolution.
VGG = {
    "vgg11": "conv3-64 {0} maxpool2 conv3-128 {0} maxpool2 [conv3-256 {0}]*2 maxpool2 [[conv3-512 "
    "{0}]*2 maxpool2]*2",
    "vgg13": "[conv3-64 {0}]*2 maxpool2 [conv3-128 {0}]*2 maxpool2 [conv3-256 {0}]*2 maxpool2 "
    "[[conv3-512 {0}]*2 maxpool2]*2",
    "vgg16_conv1": "[conv3-64 {0}]*2 maxpool2 [conv3-128 {0}]*2 maxpool2 "
    "[conv3-256 {0}]*2 conv1-256 {0} maxpool2 "
    "[[conv3-512 {0}]*2 conv1-512 {0} maxpool2]*2",
    "vgg16": "[conv3-64 {0}]*2 maxpool2 [conv3-128 {0}]*2 maxpool2 [conv3-256 {0}]*3 maxpool2 "
    "[[conv3-512 {0}]*3 maxpool2]*2",
    "vgg19": "[conv3-64 {0}]*2 maxpool2 [conv3-128 {0}]*2 maxpool2 [conv3-256 {0}]*4 maxpool2 "
    "[[conv3-512 {0}]*4 maxpool2]*2",
}


def vgg(name: str, after: str = "relu") -> str:
    """A configuration of VGG's Table 1, with `relu` or `bn relu` after each convolution."""
    return f"{VGG[name].format(after)} adaptpool7 {HEAD}"


PAPERS = {
    "lenet": "LeCun et al. 1998, Proceedings of the IEEE 86(11)",
    "alexnet": "Krizhevsky et al. 2012, NeurIPS 25",
    "weird": "Krizhevsky 2014, arXiv:1404.5997",
    "zfnet": "Zeiler and Fergus 2013, arXiv:1311.2901",
    "vgg": "Simonyan and Zisserman 2014, arXiv:1409.1556",
    "all": "Springenberg et al. 2014, arXiv:1412.6806",
}
DENSE = "ILSVRC 2012 validation, dense evaluation at one scale"
VGG_ERRORS = {
    "vgg11": (29.6, 10.4),
    "vgg13": (28.7, 9.9),
    "vgg16_conv1": (27.3, 8.8),
    "vgg16": (25.6, 8.1),
    "vgg19": (25.5, 8.0),
}
VGG_BN_ERRORS = {
    "vgg11": (29.63, 10.19),
    "vgg13": (28.414, 9.626),
    "vgg16": (26.64, 8.484),
    "vgg19": (25.782, 8.158),
}


def _entry(text: str, year: int, paper: str, by_stage: bool = False, **settings: Any) -> Entry:
    return Entry(Text, {"text": text, "by_stage": by_stage}, year, PAPERS[paper], **settings)


MODELS = {
    "lenet5": _entry(LENET5, 1998, "lenet", input_size=(32, 32, 1), errors=(0.95,), data="MNIST"),
    "alexnet": _entry(ALEXNET, 2012, "alexnet", input_size=(227, 227, 3)),
    "alexnet_2012": _entry(
        ALEXNET_2012, 2012, "alexnet", input_size=(227, 227, 3), errors=(40.7, 18.2)
    ),
    "alexnet_torchvision": _entry(ALEXNET_TORCHVISION, 2014, "weird", errors=(43.478, 20.934)),
    "zfnet": _entry(ZFNET.format(512, 1024, 512, HEAD), 2013, "zfnet", errors=(37.5, 16.0)),
    "zfnet_base": _entry(ZFNET.format(384, 384, 256, HEAD), 2013, "zfnet", errors=(38.3, 16.4)),
    **{
        name: _entry(vgg(name), 2014, "vgg", True, errors=errors, data=DENSE)
        for name, errors in VGG_ERRORS.items()
    },
    "vgg11_lrn": _entry(
        vgg("vgg11").replace("relu", "relu lrn", 1),
        2014,
        "vgg",
        True,
        errors=(29.7, 10.5),
        data=DENSE,
    ),
    **{
        f"{name}_bn": _entry(vgg(name, "bn relu"), 2014, "vgg", True, errors=errors)
        for name, errors in VGG_BN_ERRORS.items()
    },
    "vgg16_conv1_bn": _entry(vgg("vgg16_conv1", "bn relu"), 2014, "vgg", True),
    "all_cnn_c": _entry(
        ALL_CNN_C,
        2014,
        "all",
        input_size=(32, 32, 3),
        errors=(9.08,),
        data="CIFAR-10, no augmentation",
    ),
}
