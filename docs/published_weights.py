"""Writes jaxconv/weights/published.tsv: what the installed torchvision and timm say of the weights
that they publish, for the networks that jaxconv has and whose names it knows.

python docs/published_weights.py        # needs torch, torchvision and timm; tests compare the table

What they do not say (a whole SHA-256, a commit, timm's top-1) stays empty.
"""

import math
import re
from pathlib import Path
from typing import Any

from jaxconv.models import list_models
from jaxconv.weights.names import schemes_of
from jaxconv.weights.published import COLUMNS
from jaxconv.weights.timm_names import of_timm

TABLE = Path(__file__).resolve().parent.parent / "jaxconv" / "weights" / "published.tsv"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# These torchvision networks normalise their input anew when they load weights: as here.
RENORMALISED = ("googlenet", "inception_v3")
# What torchvision's detectors do to images themselves: mean, std, and shorter and longer side.
DETECTORS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (*IMAGENET, (320, 640)),
    "ssd300_vgg16": ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3, (300,)),
    "ssdlite320_mobilenet_v3_large": (*HALF, (320,)),
}
OF_DETECTORS = (*IMAGENET, (800, 1333))
# torchvision's names of its weights -> timm's tags of the same, or the like.
TAGS = {
    "IMAGENET1K_V1": "tv_in1k",
    "IMAGENET1K_V2": "tv2_in1k",
    "IMAGENET1K_SWAG_E2E_V1": "swag_ft_in1k",
    "IMAGENET1K_SWAG_LINEAR_V1": "swag_lc_in1k",
    "KINETICS400_V1": "tv_k400",
    "COCO_WITH_VOC_LABELS_V1": "tv_coco_voc",
    "COCO_V1": "tv_coco",
    "COCO_LEGACY": "tv_coco_legacy",
}
# timm's names of licences -> SPDX's; weights of others, or of none that it knows, are left out.
LICENCES = {
    "apache-2.0": "Apache-2.0",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "mit": "MIT",
}
# Of Keras 3's applications: the MD5 of the file, from resnet.py, and the figures that
# keras.io/api/applications has. They are He et al.'s own weights, from Caffe.
KERAS = {
    "resnet50_v1": ("2cb95161c43110f7111970584f804107", "top-1 74.9; top-5 92.1"),
    "resnet101_v1": ("f1aeb4b969a6efcfb50fad2f0c20cfc5", "top-1 76.4; top-5 92.8"),
    "resnet152_v1": ("100835be76be38e30d865e96f2aaae62", "top-1 76.6; top-5 93.1"),
}
KERAS_PLACE = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
# Of a network in part: SSD's VGG has random layers after its features.
LEFT_OUT = {"IMAGENET1K_FEATURES"}
MEASURES = {
    "acc@1": "top-1",
    "acc@5": "top-5",
    "miou": "mean IoU",
    "pixel_acc": "pixels",
    "box_map": "box AP",
    "mask_map": "mask AP",
    "kp_map": "keypoint AP",
}


def main() -> None:
    """Write the table."""
    lines = ["\t".join(COLUMNS), *("\t".join(row) for row in rows())]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{TABLE}: {len(lines) - 1} rows")


def rows() -> list[list[str]]:
    """The rows of the table, the networks in order; the first of each is the one that `True`
    takes: torchvision's default.
    """
    found = []
    for name in list_models():
        if schemes_of(name):
            found += [*_of_torchvision(name), *_of_timm(name), *_of_keras(name)]
    return [[_text(row.get(column, "")) for column in COLUMNS] for row in found]


def _of_torchvision(name: str) -> list[dict[str, Any]]:
    import torchvision

    theirs = name.removesuffix("_torchvision")
    if theirs not in torchvision.models.list_models():
        return []
    enum: Any = torchvision.models.get_model_weights(theirs)
    found: list[dict[str, Any]] = []
    members = [weights for weights in enum if weights.name not in LEFT_OUT]
    for weights in sorted(members, key=lambda weights: weights is not enum.DEFAULT):
        (metrics,) = weights.meta["_metrics"].values()
        found.append(
            {
                "network": name,
                "tag": TAGS[weights.name],
                "place": weights.url,
                "licence": "CC-BY-NC-4.0" if "SWAG" in weights.name else "BSD-3-Clause",
                "MiB": weights.meta["_file_size"],
                "published": "; ".join(f"{MEASURES[key]} {metrics[key]}" for key in metrics),
                **_preprocessing(theirs, weights.transforms),
            }
        )
    return found


def _preprocessing(theirs: str, transforms: Any) -> dict[str, Any]:
    kind = getattr(transforms, "func", transforms).__name__
    if kind == "ObjectDetection":
        mean, std, size = DETECTORS.get(theirs, OF_DETECTORS)
        return {"size": size, "interpolation": "bilinear", "mean": mean, "std": std}
    made = transforms()
    mean, std = HALF if theirs in RENORMALISED else (made.mean, made.std)
    found = {"mean": mean, "std": std, "interpolation": made.interpolation.value}
    resized = made.resize_size[0]  # a clip's height; it is as wide as its aspect ratio asks
    if kind == "SemanticSegmentation":
        return found | {"size": (resized,), "crop": 1}
    size = made.crop_size[0]
    return found | {"size": (size,), "crop": _share(size, resized)}


def _share(size: int, resized: int) -> float:
    """The share of the shorter side, rounded down: see `geometry.eval_box`, which rounds too."""
    return math.floor(size / resized * 10_000) / 10_000


def _of_timm(name: str) -> list[dict[str, Any]]:
    """Those of timm's hub, but for what torchvision has itself."""
    import timm

    found = []
    theirs = [of for of in timm.list_models() if of_timm(of)[0] == name]
    known = {full: of for of in theirs for full in timm.list_pretrained(f"{of}.*")}
    usual = {of: f"{of}.{getattr(timm.get_pretrained_cfg(of), 'tag', '')}" for of in theirs}
    for full in sorted(known, key=lambda full: full != usual[known[full]]):
        settings: Any = timm.get_pretrained_cfg(full)
        architecture, _, tag = full.partition(".")
        arguments = of_timm(architecture)[1]
        if settings.license not in LICENCES:
            continue
        # torchvision's own are above; others than ImageNet's have no layer of its classes.
        if tag in TAGS.values() or not settings.hf_hub_id or not re.search(r"in\d+k", tag):
            continue
        train = settings.input_size[-1]
        test = (settings.test_input_size or settings.input_size)[-1]
        found.append(
            {
                "network": name,
                "tag": tag,
                "arguments": " ".join(f"{key}={value}" for key, value in arguments.items()),
                "place": f"hf:{settings.hf_hub_id}",
                "licence": LICENCES[settings.license],
                "size": (train,),
                "test_size": "" if test == train else test,
                "crop": settings.test_crop_pct or settings.crop_pct,
                "interpolation": settings.interpolation,
                "mean": settings.mean,
                "std": settings.std,
            }
        )
    return found


def _of_keras(name: str) -> list[dict[str, Any]]:
    if name not in KERAS:
        return []
    md5, published = KERAS[name]
    file = f"{name.removesuffix('_v1')}_weights_tf_dim_ordering_tf_kernels.h5"
    return [
        {
            "network": name,
            "tag": "keras_in1k",
            "place": KERAS_PLACE + file,
            "sha256": f"md5:{md5}",
            "licence": "MIT",
            "published": published,
            "size": (224,),
            "crop": 0.875,
            "interpolation": "bilinear",
            "mean": (0.485016, 0.457957, 0.407604),  # 123.68, 116.779, 103.939 of 255
            "std": (1 / 255,) * 3,
        }
    ]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ",".join(map(_text, value)) if isinstance(value, (tuple, list)) else str(value)


if __name__ == "__main__":
    main()
