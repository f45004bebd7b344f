"""Which of torchvision's names each of our modules and parameters has, by family."""

import re
from collections.abc import Iterable

from jaxconv.models import model_arguments
from jaxconv.models.notation import parse
from jaxconv.models.text import name_layers
from jaxconv.weights.detector_names import in_detector, table_of

# Our module's path -> torchvision's, by family; the first matching pattern is used. {0}, {1} are
# its groups as `_fill` formats them: {0-1} is one less, {0=} is unchanged, and so on.
_RESNET = {
    r"conv1/conv": "conv1",
    r"conv1/norm": "bn1",
    r"conv(\d+)_(\d+)/conv(\d)/conv": "layer{0-1}.{1-1}.conv{2}",
    r"conv(\d+)_(\d+)/conv(\d)/norm": "layer{0-1}.{1-1}.bn{2}",
    r"conv(\d+)_(\d+)/shortcut/conv": "layer{0-1}.{1-1}.downsample.0",
    r"conv(\d+)_(\d+)/shortcut/norm": "layer{0-1}.{1-1}.downsample.1",
    r"fc": "fc",
}
_DENSENET = {
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
_FCN = {
    r"(head|aux)/hidden/(conv|norm)": "{0seg}.{1}",
    r"(head|aux)/classes": "{0seg}.4",
}
_DEEPLAB = {
    r"aspp/view(\d)/(conv|norm)": "classifier.0.convs.{0-1}.{1}",
    r"aspp/mean/(conv|norm)": "classifier.0.convs.4.{0after}",
    r"aspp/project/(conv|norm)": "classifier.0.project.{0}",
    r"head/(conv|norm)": "classifier.{0after}",
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
_SEQUENCE = {"conv": "0", "norm": "1", "reduce": "fc1", "expand": "fc2"}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _fill(template: str, found: tuple[str, ...]) -> str:
    """Fill a template with a pattern's groups; the suffix after the number says how."""
    ways = {
        "": lambda v: _SEQUENCE.get(v, v),
        "=": lambda v: v,
        "-1": lambda v: str(int(v) - 1),
        "a": lambda v: "abc"[int(v) - 1],
        "*": lambda v: str(2 * (int(v) - 2) + 1),
        "/": lambda v: str(2 * (int(v) - 2)),
        "bn": lambda v: {"conv": "conv", "norm": "bn"}[v],
        "after": lambda v: {"conv": "1", "norm": "2"}[v],
        "x2": lambda v: str(2 * (int(v) - 1)),
        "x3": lambda v: str(3 * (int(v) - 1)),
        "x3+1": lambda v: str(3 * (int(v) - 1) + 1),
        "part": lambda v: {"reduce": "0", "depthwise": "1", "project": "2"}[v],
        "tower": lambda v: {
            "classes": "classification_head",
            "logits": "classification_head",
            "boxes": "regression_head",
            "codes": "regression_head",
        }[v],
        "seg": lambda v: {"head": "classifier", "aux": "aux_classifier"}[v],
    }
    return re.sub(r"\{(\d)([^}]*)\}", lambda m: ways[m[2]](found[int(m[1])]), template)


def _by_table(table: dict[str, str], modules: list[str]) -> dict[str, str]:
    named = {}
    for module in modules:
        for pattern, template in table.items():
            if match := re.fullmatch(pattern, module):
                named[module] = _fill(template, match.groups())
                break
    return named


def _text_names(name: str) -> dict[str, str]:
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
    named = {f"{first}/{part}": f"features.0.{_SEQUENCE[part]}" for part in ("conv", "norm")} | head
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
                    else f"{prefix}.{_SEQUENCE[name]}"
                )
    after = len(units) + 1 if "{unit}" in block else len(stages) + 1
    return named | {
        f"{last}/{part}": f"features.{after}.{_SEQUENCE[part]}" for part in ("conv", "norm")
    }


def _lite_names(modules: list[str]) -> dict[str, str]:
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


def torchvision_modules(name: str, modules: list[str]) -> dict[str, str]:
    """torchvision's name for each of our modules.

    Raises:
      ValueError: torchvision does not have the network.
    """
    if (
        name.startswith(("alexnet_torchvision", "vgg"))
        and "lrn" not in name
        and "conv1" not in name
    ):
        return _text_names(name)
    if name.startswith("mobilenet_v2"):
        return _inverted_residual_names(
            modules, "conv1", "conv2", {"fc": "classifier.1"}, "features.{unit}.conv.{part}"
        )
    if name.startswith("mobilenet_v3"):
        head = {"fc1": "classifier.0", "fc2": "classifier.3"}
        return _inverted_residual_names(
            modules, "conv1", "conv2", head, "features.{unit}.block.{part}"
        )
    if name.startswith("efficientnet_lite"):
        return _lite_names(modules)
    if name.startswith("efficientnet"):
        return _inverted_residual_names(
            modules, "stage1", "stage9", {"fc": "classifier.1"}, "features.{stage}.{n}.block.{part}"
        )
    heads = {"fcn": _FCN, "deeplabv3": _DEEPLAB, "lraspp": _LRASPP}
    family, _, backbone = name.partition("_")
    if family in heads:
        inner = [module for module in modules if module.startswith("backbone/")]
        own = {module.removeprefix("backbone/") for module in inner}
        # There, the features of a MobileNet are the whole backbone.
        of_backbone = {
            f"backbone/{ours}": f"backbone.{theirs.removeprefix('features.')}"
            for ours, theirs in torchvision_modules(backbone, sorted(own)).items()
        }
        return of_backbone | _by_table(heads[family], [m for m in modules if m not in inner])
    if table := table_of(name):
        prefix, backbone = "backbone/", model_arguments(name)["backbone"]
        own = [m.removeprefix(prefix) for m in modules if m.startswith(prefix)]
        of_backbone = {
            f"{prefix}{ours}": in_detector(name, theirs)
            for ours, theirs in torchvision_modules(backbone, own).items()
            if ours in own
        }
        return _by_table(table, [m for m in modules if not m.startswith(prefix)]) | of_backbone
    tables = {
        "densenet": _DENSENET,
        "regnet": _REGNET,
        "convnext": _CONVNEXT,
        "googlenet_torchvision": _GOOGLENET,
    }
    resnets = ("resnet", "resnext", "wide_resnet")
    if name.startswith(resnets) and not name.endswith(("_v2", "_cifar")):
        return _by_table(_RESNET, modules)
    for prefix, table in tables.items():
        if name.startswith(prefix):
            return _by_table(table, modules)
    raise ValueError(f"torchvision has no network in the layout of {name!r}")


def torchvision_keys(name: str, paths: Iterable[str]) -> dict[str, str]:
    """torchvision's name of each of our variables, by path: `params/fc/kernel` is `fc.weight`.

    Raises:
      ValueError: torchvision has no such network.
    """
    parts = {path: path.split("/", 1)[1].rsplit("/", 1) for path in paths}
    names = torchvision_modules(name, sorted({module for module, _ in parts.values()}))
    return {
        path: f"{names.get(module, module)}.{_leaf(name, module, kind)}"
        for path, (module, kind) in parts.items()
    }


def _leaf(name: str, module: str, kind: str) -> str:
    if module == "scale" and name.startswith("ssd"):
        return "scale_weight"
    of_block = name.startswith("convnext") and re.fullmatch(r"res\d_\d+", module)
    return "layer_scale" if of_block and kind == "scale" else _LEAVES[kind]
