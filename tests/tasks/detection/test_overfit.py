"""COCO's recipes, with a smaller backbone, learn 32 photographs by heart."""

import json
import os

import numpy as np
import pytest

from jaxconv.config import load_config
from jaxconv.run import train
from tests.conftest import ROOT

COUNT = 32


def chosen(coco256, root):
    """A set of the photographs whose smallest object is the largest, as its own test split."""
    found = json.loads((coco256 / "train2017" / "instances.json").read_text())
    smallest = {one["id"]: np.inf for one in found["images"]}
    for one in found["annotations"]:
        side = np.inf if one["iscrowd"] else min(one["bbox"][2:])
        smallest[one["image_id"]] = min(smallest[one["image_id"]], side)
    smallest = {number: side for number, side in smallest.items() if np.isfinite(side)}
    best = sorted(smallest, key=lambda number: -smallest[number])[:COUNT]
    part = {
        "images": [one for one in found["images"] if one["id"] in best],
        "annotations": [one for one in found["annotations"] if one["image_id"] in best],
        "categories": found["categories"],
    }
    root.mkdir()
    (root / "train2017.json").write_text(json.dumps(part))
    os.symlink(coco256 / "train2017" / "images", root / "images")
    return root


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["coco_fcos", "coco_retinanet", "coco_faster_rcnn", "coco_mask_rcnn"]
)
def test_photographs_by_heart(coco256, tmp_path, one_device, name):
    root = chosen(coco256, tmp_path / "set")
    config = load_config(str(ROOT / "experiments" / f"{name}.py"))
    with config.unlocked():
        config.data.update(source=f"coco:{root}", eval_split="train2017", canvas=(192, 192))
        config.data.coco.file, config.data.max_boxes = "{split}.json", 32
        config.augment.flip = False
        config.model.kwargs = {
            "backbone": "resnet18",
            "norm": "batch",
            "filters": 64,
            "anchor_sizes": ((8,), (16,), (32,), (64,), (128,)),
        }
        if config.model.name.startswith("retinanet"):
            # Its heads begin with weights so small that without a norm 64 filters hardly learn.
            config.model.kwargs.head_norm = "group"
        if "rcnn" in config.model.name:
            config.model.kwargs.update(
                samples=64, before_nms=(300, 200), after_nms=(100, 60), box_filters=256
            )
        config.optimizer.groups = {}
        config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.001
        config.optimizer.l2 = 0.0
        config.optimizer.schedule.update(name="cosine", warmup_steps=20, boundaries=())
        config.batch_size, config.eval.batch_size, config.steps = 8, 8, 400
        config.eval.every, config.log.report, config.log.tensorboard = 400, False, False
    result = train(config, str(tmp_path / "run"), devices=one_device)
    assert result["examples"] == COUNT and result["ap50"] > 0.9
    if name == "coco_mask_rcnn":
        assert result["mask_ap50"] > 0.9
