"""Which of torchvision's names the modules of each family have; see naming.py for the tables."""

import re
from collections.abc import Callable

from jaxconv.models import model_arguments
from jaxconv.models.notation import parse
from jaxconv.models.squeezenet import FIRES
from jaxconv.models.text import name_layers
from jaxconv.weights.detector_names import DETECTORS, in_detector
from jaxconv.weights.naming import SEQUENCE, Families, Names, by_table, name_modules, names_of

RESNET = {
    r"conv1/conv": "conv1",
    r"conv1/norm": "bn1",
    r"conv(\d+)_(\d+)/conv(\d)/conv": "layer{0-1}.{1-1}.conv{2}",
    r"conv(\d+)_(\d+)/conv(\d)/norm": "layer{0-1}.{1-1}.bn{2}",
    r"conv(\d+)_(\d+)/shortcut/conv": "layer{0-1}.{1-1}.downsample.0",
    r"conv(\d+)_(\d+)/shortcut/norm": "layer{0-1}.{1-1}.downsample.1",
    r"fc": "fc",
}
DENSENET = {
    r"conv1/(conv|norm)": "features.{0=}0",
    r"block(\d)_(\d+)/(\w+)": "features.denseblock{0}.denselayer{1}.{2=}",
    r"transition(\d)_norm": "features.transition{0}.norm",
    r"transition(\d)": "features.transition{0}.conv",
    r"norm": "features.norm5",
    r"fc": "classifier",
}
_REGNET = {
    r"stem/(conv|norm)": "stem.{0}",
    r"stage(\d)_(\d+)/conv(\d)/(conv|norm)": "trunk_output.block{0}.block{0}-{1-1}.f.{2a}.{3}",
    r"stage(\d)_(\d+)/shortcut/(conv|norm)": "trunk_output.block{0}.block{0}-{1-1}.proj.{2}",
    r"stage(\d)_(\d+)/se/(reduce|expand)": "trunk_output.block{0}.block{0}-{1-1}.f.se.{2}",
    r"fc": "fc",
}
_CONVNEXT = {
    r"stem": "features.0.0",
    r"stem_norm": "features.0.1",
    r"res(\d)_(\d+)/depthwise": "features.{0*}.{1-1}.block.0",
    r"res(\d)_(\d+)/norm": "features.{0*}.{1-1}.block.2",
    r"res(\d)_(\d+)/expand": "features.{0*}.{1-1}.block.3",
    r"res(\d)_(\d+)/project": "features.{0*}.{1-1}.block.5",
    r"res(\d)_(\d+)": "features.{0*}.{1-1}",
    r"downsample(\d)_norm": "features.{0/}.0",
    r"downsample(\d)": "features.{0/}.1",
    r"norm": "classifier.0",
    r"fc": "classifier.2",
}
_GOOGLENET = {
    r"conv1/(conv|norm)": "conv1.{0bn}",
    r"conv2_reduce/(conv|norm)": "conv2.{0bn}",
    r"conv2/(conv|norm)": "conv3.{0bn}",
    r"(inception\d\w)/conv1x1/(conv|norm)": "{0}.branch1.{1bn}",
    r"(inception\d\w)/reduce3x3/(conv|norm)": "{0}.branch2.0.{1bn}",
    r"(inception\d\w)/conv3x3/(conv|norm)": "{0}.branch2.1.{1bn}",
    r"(inception\d\w)/reduce5x5/(conv|norm)": "{0}.branch3.0.{1bn}",
    r"(inception\d\w)/conv5x5/(conv|norm)": "{0}.branch3.1.{1bn}",
    r"(inception\d\w)/pool_proj/(conv|norm)": "{0}.branch4.1.{1bn}",
    r"aux(\d)_conv/(conv|norm)": "aux{0}.conv.{1bn}",
    r"aux(\d)_fc(\d)": "aux{0}.fc{1}",
    r"fc": "fc",
}
_MNASNET = {
    r"conv1/(conv|norm)": "layers.{0}",
    r"block2_1/depthwise/(conv|norm)": "layers.{0+3}",
    r"block2_1/project/(conv|norm)": "layers.{0+6}",
    r"block(\d)_(\d)/expand/(conv|norm)": "layers.{0+5}.{1-1}.layers.{2}",
    r"block(\d)_(\d)/depthwise/(conv|norm)": "layers.{0+5}.{1-1}.layers.{2+3}",
    r"block(\d)_(\d)/project/(conv|norm)": "layers.{0+5}.{1-1}.layers.{2+6}",
    r"conv2/(conv|norm)": "layers.{0+14}",
    r"fc": "classifier.1",
}
_SHUFFLENET = {
    r"(conv[15])/(conv|norm)": "{0}.{1}",
    r"(stage\d)_(\d)/shortcut_depthwise/(conv|norm)": "{0}.{1-1}.branch1.{2}",
    r"(stage\d)_(\d)/shortcut/(conv|norm)": "{0}.{1-1}.branch1.{2+2}",
    r"(stage\d)_(\d)/conv1/(conv|norm)": "{0}.{1-1}.branch2.{2}",
    r"(stage\d)_(\d)/depthwise/(conv|norm)": "{0}.{1-1}.branch2.{2+3}",
    r"(stage\d)_(\d)/conv2/(conv|norm)": "{0}.{1-1}.branch2.{2+5}",
}
_EFFICIENTNET_V2 = {
    r"stage(\d)/(conv|norm)": "features.{0}.{1}",
    r"stage(\d)_(\d+)/(?:fused|expand)/(conv|norm)": "features.{0}.{1-1}.block.0.{2}",
    r"stage([1-3])_(\d+)/project/(conv|norm)": "features.{0}.{1-1}.block.1.{2}",
    r"stage(\d)_(\d+)/depthwise/(conv|norm)": "features.{0}.{1-1}.block.1.{2}",
    r"stage(\d)_(\d+)/se/(reduce|expand)": "features.{0}.{1-1}.block.2.{2}",
    r"stage(\d)_(\d+)/project/(conv|norm)": "features.{0}.{1-1}.block.3.{2}",
    r"fc": "classifier.1",
}
INCEPTION = {
    r"conv3b/(conv|norm)": "Conv2d_3b_1x1.{0bn}",
    r"conv(\d\w)/(conv|norm)": "Conv2d_{0=}_3x3.{1bn}",
    r"mixed(\d\w)/(\w+)/(conv|norm)": "Mixed_{0=}.{1=}.{2bn}",
    r"aux_conv(\d)/(conv|norm)": "AuxLogits.conv{0=}.{1bn}",
    r"aux_fc": "AuxLogits.fc",
}
_VIDEO = {
    r"conv1_space/(conv|norm)": "stem.{0}",
    r"conv(\d)_(\d)/shortcut/(conv|norm)": "layer{0-1}.{1-1}.downsample.{2}",
    r"conv(\d)_(\d)/conv(\d)_space/(conv|norm)": "layer{0-1}.{1-1}.conv{2}.0.{3}",
    r"conv(\d)_(\d)/conv(\d)/norm": "layer{0-1}.{1-1}.conv{2}.1",
}
_R3D = _VIDEO | {
    r"conv1/(conv|norm)": "stem.{0}",
    r"conv(\d)_(\d)/conv(\d)/conv": "layer{0-1}.{1-1}.conv{2}.0",
}
_R2PLUS1D = _VIDEO | {
    r"conv1/(conv|norm)": "stem.{0+3}",
    r"conv(\d)_(\d)/conv(\d)/conv": "layer{0-1}.{1-1}.conv{2}.0.3",
}
_FCN = {
    r"(head|aux)/hidden/(conv|norm)": "{0seg}.{1}",
    r"(head|aux)/classes": "{0seg}.4",
}
_DEEPLAB = {
    r"aspp/view(\d)/(conv|norm)": "classifier.0.convs.{0-1}.{1}",
    r"aspp/mean/(conv|norm)": "classifier.0.convs.4.{0+1}",
    r"aspp/project/(conv|norm)": "classifier.0.project.{0}",
    r"head/(conv|norm)": "classifier.{0+1}",
    r"fc": "classifier.4",
    r"(aux)/hidden/(conv|norm)": "{0seg}.{1}",
    r"(aux)/classes": "{0seg}.4",
}
_LRASPP = {
    r"high/(conv|norm)": "classifier.cbr.{0}",
    r"scale": "classifier.scale.1",
    r"low_fc": "classifier.low_classifier",
    r"fc": "classifier.high_classifier",
}


def text_names(name: str, modules: list[str]) -> dict[str, str]:
    """Names of a chain's layers, numbered in torchvision's `features` and `classifier`.

    `classifier` starts after the adaptive pooling.
    """
    arguments, named, part, number = model_arguments(name), {}, "features", 0
    for path, layer in name_layers(parse(arguments["text"]), arguments["by_stage"]):
        if layer.kind == "adaptpool":
            part, number = "classifier", 0
            continue
        named[path] = f"{part}.{number}"
        number += 1
    return named


def _squeezenet_names(network: str, _: list[str]) -> dict[str, str]:
    """Names in SqueezeNet's `features`, where ReLU and pooling are numbered too."""
    pools, number = model_arguments(network)["pools"], 2
    named = {"conv1": "features.0", "conv10": "classifier.1"}
    for layer in (1, *FIRES):
        if layer in FIRES:
            inner = ("squeeze1x1", "expand1x1", "expand3x3")
            theirs = ("squeeze", "expand1x1", "expand3x3")
            named |= {
                f"fire{layer}/{ours}": f"features.{number}.{name}"
                for ours, name in zip(inner, theirs, strict=True)
            }
            number += 1
        number += layer in pools
    return named


def _inverted_residual_names(
    modules: list[str], first: str, last: str, head: dict[str, str], block: str
) -> dict[str, str]:
    """Names in MobileNets and EfficientNets: units numbered in order, and parts within a unit.

    Args:
      first, last: our names of the convolutions before and after the units.
      head: our names of fully connected layers -> torchvision's.
      block: the template of a unit's part: {unit} counts units from 1, {stage} and {n} come from
        our name, {part} counts parts from 0.
    """
    named = {f"{first}/{part}": f"features.0.{SEQUENCE[part]}" for part in ("conv", "norm")} | head
    units: dict[str, list[str]] = {}
    for module in modules:
        unit, _, rest = module.partition("/")
        if rest and unit not in (first, last):
            units.setdefault(unit, [])
            part = rest.split("/")[0]
            if part not in units[unit]:
                units[unit].append(part)
    order = ["expand", "depthwise", "se", "project"]
    key = lambda unit: tuple(map(int, re.findall(r"\d+", unit)))  # noqa: E731
    stages = {key(unit)[0] for unit in units}
    for count, unit in enumerate(sorted(units, key=key), 1):
        stage, n = key(unit)[0] - 1, key(unit)[-1] - 1
        for number, part in enumerate(sorted(units[unit], key=order.index)):
            prefix = block.format(unit=count, stage=stage, n=n, part=number)
            inner = ("reduce", "expand") if part == "se" else ("conv", "norm")
            for position, name in enumerate(inner):
                # In version 2 the last 1x1 and its norm are not a sequence, but the unit's next two
                # parts.
                flat = block.startswith("features.{unit}.conv") and part == "project"
                named[f"{unit}/{part}/{name}"] = (
                    block.format(unit=count, stage=stage, n=n, part=number + position)
                    if flat
                    else f"{prefix}.{SEQUENCE[name]}"
                )
    after = len(units) + 1 if "{unit}" in block else len(stages) + 1
    return named | {
        f"{last}/{part}": f"features.{after}.{SEQUENCE[part]}" for part in ("conv", "norm")
    }


def _units(first: str, last: str, head: dict[str, str], block: str) -> Names:
    """`_inverted_residual_names` with these arguments."""
    return lambda _, modules: _inverted_residual_names(modules, first, last, head, block)


def _segmentation_names(head: dict[str, str]) -> Callable[[str, list[str]], dict[str, str]]:
    """A backbone without its `features`, which are the whole of it there, and this head."""

    def names(network: str, modules: list[str]) -> dict[str, str]:
        inner = [m.removeprefix("backbone/") for m in modules if m.startswith("backbone/")]
        backbone = _in_backbone(network.partition("_")[2], inner)
        of_backbone = {
            f"backbone/{ours}": f"backbone.{theirs.removeprefix('features.')}"
            for ours, theirs in backbone.items()
        }
        own = [module for module in modules if not module.startswith("backbone/")]
        return of_backbone | by_table(head, own)

    return names


def _detector_names(head: dict[str, str]) -> Callable[[str, list[str]], dict[str, str]]:
    """A backbone as `in_detector` has it, and this head."""

    def names(network: str, modules: list[str]) -> dict[str, str]:
        inner = [m.removeprefix("backbone/") for m in modules if m.startswith("backbone/")]
        backbone = _in_backbone(model_arguments(network)["backbone"], inner)
        of_backbone = {
            f"backbone/{ours}": in_detector(network, theirs)
            for ours, theirs in backbone.items()
            if ours in inner
        }
        own = [module for module in modules if not module.startswith("backbone/")]
        return by_table(head, own) | of_backbone

    return names


def _in_backbone(network: str, modules: list[str]) -> dict[str, str]:
    names = names_of(TORCHVISION, network)
    return name_modules(names, network, modules) if names else {}


_HEADS = {"fcn": _FCN, "deeplabv3": _DEEPLAB, "lraspp": _LRASPP}
TORCHVISION: Families = {
    r"alexnet_torchvision|vgg\d+(_bn)?": text_names,
    r"mobilenet_v2": _units(
        "conv1", "conv2", {"fc": "classifier.1"}, "features.{unit}.conv.{part}"
    ),
    r"mobilenet_v3\w+": _units(
        "conv1",
        "conv2",
        {"fc1": "classifier.0", "fc2": "classifier.3"},
        "features.{unit}.block.{part}",
    ),
    r"efficientnet_b\d": _units(
        "stage1", "stage9", {"fc": "classifier.1"}, "features.{stage}.{n}.block.{part}"
    ),
    r"densenet\w+": DENSENET,
    r"regnet\w+": _REGNET,
    r"convnext_(tiny|small|base|large)": _CONVNEXT,
    r"googlenet_torchvision": _GOOGLENET,
    r"inception_v3": INCEPTION,
    r"squeezenet\w+": _squeezenet_names,
    r"mnasnet\w+": _MNASNET,
    r"shufflenet_v2\w+": _SHUFFLENET,
    r"efficientnet_v2\w+": _EFFICIENTNET_V2,
    r"r3d_18|mc3_18": _R3D,
    r"r2plus1d_18": _R2PLUS1D,
    r"(wide_)?resnet\d+(_2|_v1)?|resnext\w+": RESNET,
    **{rf"{family}_\w+": _segmentation_names(head) for family, head in _HEADS.items()},
    **{family: _detector_names(head) for family, head in DETECTORS.items()},
}
