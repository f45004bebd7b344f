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


AKAMASTER = Scheme({r"resnet\d+_cifar": _RESNET_CIFAR})
# The authors' files for Caffe have our names, which are the paper's, and layers that see BGR.
CAFFE = Scheme(
    {r"squeezenet\w+": {}},
    leaves={"kernel": "kernel", "bias": "bias"},
    separator="/",
    bgr="conv1",
)
LITE = Scheme({r"efficientnet_lite\d": _lite_names})
