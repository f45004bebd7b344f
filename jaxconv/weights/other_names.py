"""Names in weights that single authors have published; see naming.py for the tables' form."""

import re

from jaxconv.weights.naming import Scheme

# github.com/akamaster/pytorch_resnet_cifar10; its shortcuts without weights are ours.
_RESNET_CIFAR = {
    r"conv1/conv": "conv1",
    r"conv1/norm": "bn1",
    r"conv(\d)_(\d+)/conv(\d)/conv": "layer{0-1}.{1-1}.conv{2}",
    r"conv(\d)_(\d+)/conv(\d)/norm": "layer{0-1}.{1-1}.bn{2}",
    r"fc": "linear",
}


def _lite_names(_: str, modules: list[str]) -> dict[str, str]:
    """Names in EfficientNet-Lite: those of its conversion to PyTorch (efficientnet_lite_pytorch).

    The units are numbered through, and every norm stands beside its convolution.
    """
    table = {
        r"stage1/(conv|norm)": {"conv": "_conv_stem", "norm": "_bn0"},
        r"stage9/(conv|norm)": {"conv": "_conv_head", "norm": "_bn1"},
    }
    named = {"fc": "_fc"}
    for pattern, names in table.items():
        named |= {m: names[f[1]] for m in modules if (f := re.fullmatch(pattern, m))}
    numbers = {module.split("/")[0] for module in modules if re.match(r"stage\d_", module)}
    order = sorted(numbers, key=lambda unit: tuple(map(int, re.findall(r"\d+", unit))))
    parts = {"expand": 0, "depthwise": 1, "project": 2}
    for module in modules:
        if found := re.fullmatch(r"(stage\d_\d+)/(\w+)/(conv|norm)", module):
            unit, part, kind = found.groups()
            leaf = f"_{part}_conv" if kind == "conv" else f"_bn{parts[part]}"
            named[module] = f"_blocks.{order.index(unit)}.{leaf}"
    return named


_KERAS_VGG = {
    r"conv(\d)_(\d)": "block{0}_conv{1}",
    r"fc6": "fc1",
    r"fc7": "fc2",
    r"fc8": "predictions",
}
_KERAS_RESNET = {
    r"conv1/(conv|norm)": "conv1_{0bn}",
    r"conv(\d)_(\d+)/conv(\d)/(conv|norm)": "conv{0}_block{1}_{2}_{3bn}",
    r"conv(\d)_(\d+)/shortcut/(conv|norm)": "conv{0}_block{1}_0_{2bn}",
    r"fc": "predictions",
}
_KERAS_DENSENET = {
    r"conv1/(conv|norm)": "conv1_{0bn}",
    r"block(\d)_(\d+)/conv(\d)": "conv{0+1}_block{1}_{2}_conv",
    r"block(\d)_(\d+)/norm(\d)": "conv{0+1}_block{1}_{2-1}_bn",
    r"transition(\d)_norm": "pool{0+1}_bn",
    r"transition(\d)": "pool{0+1}_conv",
    r"norm": "bn",
    r"fc": "predictions",
}


def _keras_efficientnet(_: str, modules: list[str]) -> dict[str, str]:
    """`block2a_expand_conv`: stages are counted from the first with units, units by letters."""
    parts = {"depthwise/conv": "dwconv", "depthwise/norm": "bn", "se/reduce": "se_reduce"}
    parts |= {"se/expand": "se_expand"}
    parts |= {f"{part}/conv": f"{part}_conv" for part in ("expand", "project")}
    parts |= {f"{part}/norm": f"{part}_bn" for part in ("expand", "project")}
    named = {"stage1/conv": "stem_conv", "stage1/norm": "stem_bn", "fc": "predictions"}
    named |= {"stage9/conv": "top_conv", "stage9/norm": "top_bn"}
    for module in modules:
        if found := re.fullmatch(r"stage(\d)_(\d+)/(\w+/\w+)", module):
            stage, unit, part = int(found[1]) - 1, chr(96 + int(found[2])), parts[found[3]]
            named[module] = f"block{stage}{unit}_{part}"
    return named


AKAMASTER = Scheme({r"resnet\d+_cifar": _RESNET_CIFAR})
# The authors' files for Caffe have our names, which are the paper's, and layers that see BGR.
CAFFE = Scheme(
    {r"squeezenet\w+": {}},
    leaves={"kernel": "kernel", "bias": "bias"},
    separator="/",
    bgr=r"squeezenet\w+/conv1",
)
LITE = Scheme({r"efficientnet_lite\d": _lite_names})
# Keras' applications. VGG and ResNet are Caffe's, and see BGR.
_KERAS_LEAVES = {
    "kernel": "kernel",
    "scale": "gamma",
    "bias": "bias",
    "mean": "moving_mean",
    "var": "moving_variance",
}
KERAS = Scheme(
    {
        r"vgg1[69]": _KERAS_VGG,
        r"resnet(50|101|152)_v1": _KERAS_RESNET,
        r"densenet(121|169|201)": _KERAS_DENSENET,
        r"efficientnet_b\d": _keras_efficientnet,
    },
    leaves=_KERAS_LEAVES,
    odd_leaves={r"[^/]+/(.*/)?(transition\d_)?norm\d?/bias": "beta"},
    separator="/",
    bgr=r"vgg1[69]/conv1_1|resnet\d+_v1/conv1/conv",
    channels_last=True,
    unused=r"normalization/(mean|variance|count)",
)
