"""Which of timm's names the modules of each family have (timm 1.0); see naming.py for the tables.

timm names some networks otherwise, and trained some by TensorFlow, whose padding and BatchNorm's
epsilon are not PyTorch's: `of_timm` says which of our networks one is, and with what arguments.
"""

import re
from typing import Any

from jaxconv.models import model_arguments
from jaxconv.weights.naming import PYTORCH, Families, Names, Scheme, by_table
from jaxconv.weights.torchvision_names import DENSENET, INCEPTION, RESNET, text_names

_REGNET = {
    r"stem/(conv|norm)": "stem.{0bn}",
    r"stage(\d)_(\d+)/(conv\d)/(conv|norm)": "s{0}.b{1}.{2=}.{3bn}",
    r"stage(\d)_(\d+)/shortcut/(conv|norm)": "s{0}.b{1}.downsample.{2bn}",
    r"stage(\d)_(\d+)/se/(reduce|expand)": "s{0}.b{1}.se.{2}",
    r"fc": "head.fc",
}
_CONVNEXT = {
    r"stem": "stem.0",
    r"stem_norm": "stem.1",
    r"res(\d)_(\d+)/depthwise": "stages.{0-2}.blocks.{1-1}.conv_dw",
    r"res(\d)_(\d+)/grn": "stages.{0-2}.blocks.{1-1}.mlp.grn",
    r"res(\d)_(\d+)/norm": "stages.{0-2}.blocks.{1-1}.norm",
    r"res(\d)_(\d+)/(expand|project)": "stages.{0-2}.blocks.{1-1}.mlp.{2mlp}",
    r"res(\d)_(\d+)": "stages.{0-2}.blocks.{1-1}",
    r"downsample(\d)_norm": "stages.{0-2}.downsample.0",
    r"downsample(\d)": "stages.{0-2}.downsample.1",
    r"norm": "head.norm",
    r"fc": "head.fc",
}
_RESNET_D = {
    r"conv1_1/(conv|norm)": "conv1.{0}",
    r"conv1_2/(conv|norm)": "conv1.{0+3}",
    r"conv1_3/conv": "conv1.6",
    r"conv1_3/norm": "bn1",
    r"pool1/(conv|norm)": "maxpool.{0}",
    r"conv(\d)_(\d+)/shortcut/(conv|norm)": "layer{0-1}.{1-1}.downsample.{2+1}",
    r"conv(\d)_(\d+)/se/(reduce|expand)": "layer{0-1}.{1-1}.se.{2}",
    r"conv(\d)_(\d+)/eca/conv": "layer{0-1}.{1-1}.se.conv",
    **RESNET,
}
_SELECTIVE = {
    r"conv(\d)_(\d+)/(conv\d)/path3/(conv|norm)": "layer{0-1}.{1-1}.{2=}.paths.0.{3bn}",
    r"conv(\d)_(\d+)/(conv\d)/path5/(conv|norm)": "layer{0-1}.{1-1}.{2=}.paths.1.{3bn}",
    r"conv(\d)_(\d+)/(conv\d)/reduce/conv": "layer{0-1}.{1-1}.{2=}.attn.fc_reduce",
    r"conv(\d)_(\d+)/(conv\d)/reduce/norm": "layer{0-1}.{1-1}.{2=}.attn.bn",
    r"conv(\d)_(\d+)/(conv\d)/select": "layer{0-1}.{1-1}.{2=}.attn.fc_select",
    r"conv(\d)_(\d+)/(conv\d)/(conv|norm)": "layer{0-1}.{1-1}.{2=}.{3bn}",
}
_REPVGG = {
    r"stage0_1/conv3x3/(conv|norm)": "stem.conv_kxk.{0bn}",
    r"stage0_1/conv1x1/(conv|norm)": "stem.conv_1x1.{0bn}",
    r"stage(\d)_(\d+)/conv3x3/(conv|norm)": "stages.{0-1}.{1-1}.conv_kxk.{2bn}",
    r"stage(\d)_(\d+)/conv1x1/(conv|norm)": "stages.{0-1}.{1-1}.conv_1x1.{2bn}",
    r"stage(\d)_(\d+)/identity": "stages.{0-1}.{1-1}.identity",
    r"stage0_1/conv": "stem.reparam_conv",
    r"stage(\d)_(\d+)/conv": "stages.{0-1}.{1-1}.reparam_conv",
    r"fc": "head.fc",
}
_CSP = {
    r"conv1/(conv|norm)": "stem.conv1.{0bn}",
    r"stage(\d)_down/(conv|norm)": "stages.{0-1}.conv_down.{1bn}",
    r"stage(\d)_expand/(conv|norm)": "stages.{0-1}.conv_exp.{1bn}",
    r"stage(\d)_inner/(conv|norm)": "stages.{0-1}.conv_transition_b.{1bn}",
    r"stage(\d)_join/(conv|norm)": "stages.{0-1}.conv_transition.{1bn}",
    r"stage(\d)_(\d)/(conv\d)/(conv|norm)": "stages.{0-1}.blocks.{1-1}.{2=}.{3bn}",
    r"fc": "head.fc",
}
_XCEPTION = {
    r"conv([12])/conv": "conv{0}",
    r"conv([12])/norm": "bn{0}",
    r"block1/conv(\d)_depthwise": "block1.rep.{0x3}.conv1",
    r"block1/conv(\d)": "block1.rep.{0x3}.pointwise",
    r"block1/norm(\d)": "block1.rep.{0x3+1}",
    r"block(\d+)/conv(\d)_depthwise": "block{0}.rep.{1x3+1}.conv1",
    r"block(\d+)/conv(\d)": "block{0}.rep.{1x3+1}.pointwise",
    r"block(\d+)/norm(\d)": "block{0}.rep.{1x3+2}",
    r"block(\d+)/shortcut/conv": "block{0}.skip",
    r"block(\d+)/shortcut/norm": "block{0}.skipbn",
    r"conv([34])_depthwise": "conv{0}.conv1",
    r"conv([34])": "conv{0}.pointwise",
    r"norm([34])": "bn{0}",
    r"fc": "fc",
}
_NFNET = {
    r"conv1_(\d)": "stem.conv{0}",
    r"stage(\d)_(\d+)/shortcut": "stages.{0-1}.{1-1}.downsample.conv",
    r"stage(\d)_(\d+)/(conv\db?)": "stages.{0-1}.{1-1}.{2=}",
    r"stage(\d)_(\d+)/se/(reduce|expand)": "stages.{0-1}.{1-1}.attn_last.{2}",
    r"stage(\d)_(\d+)/eca/conv": "stages.{0-1}.{1-1}.attn_last.conv",
    r"stage(\d)_(\d+)": "stages.{0-1}.{1-1}",
    r"last": "final_conv",
    r"fc": "head.fc",
}
# Parts of a unit of inverted residuals, in order: with a 1x1 before, without, and fused.
_PARTS = {
    ("expand", "depthwise", "project"): ("conv_pw", "conv_dw", "conv_pwl"),
    ("depthwise", "project"): ("conv_dw", "conv_pw"),
    ("fused", "project"): ("conv_exp", "conv_pwl"),
    ("fused",): ("conv",),
}
_ORDER = ("expand", "fused", "depthwise", "project")


def _vgg_names(network: str, modules: list[str]) -> dict[str, str]:
    """The classifier is convolutions, of which the first takes the whole map."""
    head = {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2", "fc8": "head.fc"}
    return text_names(network, modules) | head


def _place(network: str, unit: str, first: int) -> str:
    """`blocks.STAGE.N` of a unit; MobileNetV3's stages are units of as many filters in a row."""
    stage, n = (int(number) for number in re.findall(r"\d+", unit + "_1")[:2])
    if network.startswith("mobilenet_v3"):
        filters = [row[2] for row in model_arguments(network)["rows"]][:stage]
        starts = [i for i, f in enumerate(filters) if i == 0 or f != filters[i - 1]]
        return f"blocks.{len(starts) - 1}.{stage - 1 - starts[-1]}"
    return f"blocks.{stage - first}.{n - 1}"


def _inverted_residuals(stem: str, last: str, first: int) -> Names:
    """MobileNets and EfficientNets.

    Args:
      stem, last: our convolutions before and after the units; `last` is a pattern.
      first: the number of our first stage of units.
    """
    around = {
        rf"{stem}/conv": "conv_stem",
        rf"{stem}/norm": "bn1",
        rf"{last}/conv": "conv_head",
        rf"{last}/norm": "bn2",
        r"fc": "classifier",
    }

    def names(network: str, modules: list[str]) -> dict[str, str]:
        named, units = {}, {}
        for module in modules:
            if found := re.fullmatch(r"((?:block|stage)\d+(?:_\d+)?)/(\w+)/(\w+)", module):
                units.setdefault(found[1], {}).setdefault(found[2], []).append(found[3])
        for unit, parts in units.items():
            place = _place(network, unit, first)
            have = tuple(part for part in _ORDER if part in parts)
            for n, (part, theirs) in enumerate(zip(have, _PARTS[have], strict=True), 1):
                named[f"{unit}/{part}/conv"] = f"{place}.{theirs}"
                named[f"{unit}/{part}/norm"] = f"{place}.bn{n}"
            for part in parts.get("se", ()):
                named[f"{unit}/se/{part}"] = f"{place}.se.conv_{part}"
        return named | by_table(around, modules)

    return names


def _mobilenet_v3_names(network: str, modules: list[str]) -> dict[str, str]:
    """The 1x1 after the units is the last stage; that after the mean, a convolution."""
    stage = int(_place(network, f"block{len(model_arguments(network)['rows'])}", 0).split(".")[1])
    last = {"conv2/conv": f"blocks.{stage + 1}.0.conv", "conv2/norm": f"blocks.{stage + 1}.0.bn1"}
    inner = _inverted_residuals("conv1", "none", 0)
    assert callable(inner)
    return inner(network, modules) | last | {"fc1": "conv_head", "fc2": "classifier"}


FAMILIES: Families = {
    r"vgg\d+(_bn)?": _vgg_names,
    r"densenet\w+": DENSENET,
    r"inception_v3": INCEPTION,
    r"regnet\w+": _REGNET,
    r"convnext\w+": _CONVNEXT,
    r"mobilenet_v2": _inverted_residuals("conv1", "conv2", 2),
    r"mobilenet_v3\w+": _mobilenet_v3_names,
    r"mnasnet\w+": _inverted_residuals("conv1", "conv2", 2),
    r"efficientnet_v2\w+": _inverted_residuals("stage0", r"stage\d", 1),
    r"efficientnet\w+": _inverted_residuals("stage1", "stage9", 2),
    r"(wide_)?resnet\d+(_2|_v1)?|resnext\w+": RESNET,
    r"resnet\d+d|resnetrs\d+|ecaresnet\w+": _RESNET_D,
    r"repvgg\w+": _REPVGG,
    r"(dm|eca)_nfnet\w+|nfnet\w+": _NFNET,
    r"darknet53|csp\w+": _CSP,
    r"xception": _XCEPTION,
    r"skresnet\d+|skresnext\w+": _SELECTIVE | RESNET,
    r"skresnet\d+d": _SELECTIVE | _RESNET_D,
}
TIMM = Scheme(
    FAMILIES,
    leaves={**PYTORCH, "gain": "gain"},
    odd_leaves={
        r"convnext\w+/res\d_\d+/scale": "gamma",
        r"\w*nfnet\w+/stage\d_\d+/skip_gain": "skipinit_gain",
    },
)

_TENSORFLOW = {"padding": "same", "epsilon": 1e-3}
_PYTORCH = {"padding": -1, "epsilon": 1e-5}
_B = range(8)
# timm's name -> ours, and the arguments with which ours is it; others have our name and defaults.
OTHERWISE: dict[str, tuple[str, dict[str, Any]]] = {
    "legacy_xception": ("xception", {}),
    "mobilenetv2_100": ("mobilenet_v2", {}),
    "mobilenetv3_large_100": ("mobilenet_v3_large", {"epsilon": 1e-5}),
    "mobilenetv3_small_100": ("mobilenet_v3_small", {"epsilon": 1e-5}),
    "tf_mobilenetv3_large_100": ("mobilenet_v3_large", _TENSORFLOW),
    "tf_mobilenetv3_small_100": ("mobilenet_v3_small", _TENSORFLOW),
    "mnasnet_050": ("mnasnet0_5", {}),
    "mnasnet_075": ("mnasnet0_75", {}),
    "mnasnet_100": ("mnasnet1_0", {}),
    **{f"efficientnet_b{n}": (f"efficientnet_b{n}", _PYTORCH) for n in _B},
    **{f"tf_efficientnet_b{n}": (f"efficientnet_b{n}", _TENSORFLOW) for n in _B},
    **{f"efficientnet_lite{n}": (f"efficientnet_lite{n}", _PYTORCH) for n in range(5)},
    **{f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}", _TENSORFLOW) for n in range(5)},
    **{f"tf_efficientnetv2_{n}": (f"efficientnet_v2_{n}", _TENSORFLOW) for n in "sml"},
    **{f"efficientnetv2_{n}": (f"efficientnet_v2_{n}", _PYTORCH) for n in "sml"},
    **{
        f"regnet{kind}_{number}": (f"regnet_{kind}_{size}", {})
        for kind in "xy"
        for number, size in {
            "004": "400mf",
            "008": "800mf",
            "016": "1_6gf",
            "032": "3_2gf",
            "080": "8gf",
            "160": "16gf",
            "320": "32gf",
            "1280": "128gf",
        }.items()
        if (kind, number) not in (("x", "004"), ("x", "1280"))
    },
    # timm's own regnetx_004 has other widths.
    "regnetx_004_tv": ("regnet_x_400mf", {}),
}


def of_timm(name: str) -> tuple[str, dict[str, Any]]:
    """Our network that timm calls `name`, and the arguments that make it the same.

    `tf_efficientnet_b0` is `efficientnet_b0` with `padding="same"` and `epsilon=1e-3`.
    """
    ours, arguments = OTHERWISE.get(name, (name, {}))
    return ours, dict(arguments)
