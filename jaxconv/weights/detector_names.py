"""Which of torchvision's names the modules of detectors have; see naming.py for the form."""

import re
from collections.abc import Iterable

_PYRAMID = {
    r"fpn/lateral(\d)/(conv|norm)": "backbone.fpn.inner_blocks.{0-1}.{1}",
    r"fpn/output(\d)/(conv|norm)": "backbone.fpn.layer_blocks.{0-1}.{1}",
    r"fpn/(p6|p7)": "backbone.fpn.extra_blocks.{0}",
}
_LAST = {
    r"classes/logits": "head.classification_head.cls_logits",
    r"boxes/codes": "head.regression_head.bbox_reg",
    r"boxes/centerness": "head.regression_head.bbox_ctrness",
}
_RCNN = _PYRAMID | {
    r"rpn/conv(\d)/conv": "rpn.head.conv.{0-1}.0",
    r"rpn/objectness": "rpn.head.cls_logits",
    r"rpn/codes": "rpn.head.bbox_pred",
    r"boxes/conv(\d)/(conv|norm)": "roi_heads.box_head.{0-1}.{1}",
    r"boxes/(fc\d)": "roi_heads.box_head.{0=}",
    r"boxes/last/logits": "roi_heads.box_predictor.cls_score",
    r"boxes/last/codes": "roi_heads.box_predictor.bbox_pred",
    r"masks/conv(\d)/(conv|norm)": "roi_heads.mask_head.{0-1}.{1}",
    r"masks/up": "roi_heads.mask_predictor.conv5_mask",
    r"masks/logits": "roi_heads.mask_predictor.mask_fcn_logits",
    r"keypoints/conv(\d)/conv": "roi_heads.keypoint_head.{0x2}",
    r"keypoints/up": "roi_heads.keypoint_predictor.kps_score_lowres",
}
_SSD = {
    r"scale": "backbone",
    r"fc6": "backbone.extra.0.7.1",
    r"fc7": "backbone.extra.0.7.3",
    r"extra(\d)_(\d)": "backbone.extra.{0=}.{1x2}",
    r"extra(\d)/(\w+)/(conv|norm)": "backbone.extra.{0-1}.{1part}.{2}",
    r"(logits|codes)(\d)": "head.{0tower}.module_list.{1-1}",
    r"(logits|codes)(\d)/depthwise/(conv|norm)": "head.{0tower}.module_list.{1-1}.0.{2}",
    r"(logits|codes)(\d)/project": "head.{0tower}.module_list.{1-1}.1",
}
# The first part of a name, or a whole name, -> the table; the whole name comes first.
# A regular expression of our detectors' names -> their heads' table.
DETECTORS = {
    r"retinanet_\w+": _PYRAMID
    | _LAST
    | {r"(classes|boxes)/conv(\d)/(conv|norm)": "head.{0tower}.conv.{1-1}.{2}"},
    r"fcos_\w+": _PYRAMID
    | _LAST
    | {
        r"(classes|boxes)/conv(\d)/conv": "head.{0tower}.conv.{1x3}",
        r"(classes|boxes)/conv(\d)/norm": "head.{0tower}.conv.{1x3+1}",
    },
    r"(faster|mask)rcnn_resnet50_fpn_v2": {r"boxes/fc6": "roi_heads.box_head.5"} | _RCNN,
    r"(faster|mask|keypoint)rcnn_\w+": _RCNN,
    r"ssd300_\w+": _SSD,
    r"ssdlite320_\w+": _SSD,
}
# Names in the files that torchvision published first -> those of today.
_FIRST_NAMES = {
    r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(\w+)": r"\1.0.\2",
    r"rpn\.head\.conv\.(\w+)": r"rpn.head.conv.0.0.\1",
    r"(head\.\w+_head\.conv)\.([0246])\.(\w+)": lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
    r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)": (
        lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}"
    ),
}


def in_detector(name: str, theirs: str) -> str:
    """What a module of torchvision's backbone, such as `layer1.0.conv1`, is called in a detector.

    That of SSD and SSDlite is cut in two: in SSD before the fourth pooling, layer 23; in SSDlite
    after the expansion of unit 13.
    """
    theirs = theirs.removeprefix("features.")
    first, _, rest = theirs.partition(".")
    if name.startswith("ssdlite"):
        if first != "13":
            part = f"0.{first}" if int(first) < 13 else f"1.{int(first) - 13}"
            return f"backbone.features.{part}.{rest}"
        inner = rest.removeprefix("block.")
        part = "0.13" if inner.startswith("0.") else "1.0"
        return f"backbone.features.{part}.{inner.removeprefix('0.') if part == '0.13' else inner}"
    if name.startswith("ssd"):
        after = int(first) - 23
        return f"backbone.features.{first}" if after < 0 else f"backbone.extra.0.{after}"
    return f"backbone.body.{theirs}"


def todays_names(name: str, keys: Iterable[str]) -> dict[str, str]:
    """Today's name for each name in a file, which may be torchvision's first of this detector."""
    found = {key: key for key in keys}
    # FCOS's towers were and are numbered in a row.
    if name.startswith("fcos") or not any(re.fullmatch(of, name) for of in DETECTORS):
        return found
    for key in found:
        for pattern, to in _FIRST_NAMES.items():
            if re.fullmatch(pattern, key):
                found[key] = re.sub(pattern, to, key)
    return found


def is_transposed(module: str) -> bool:
    """Whether a module of ours is a transposed convolution, whose weight PyTorch has [C, K, H, W]
    and for the other direction.
    """
    return module in ("masks/up", "keypoints/up")
