"""Penn-Fudan: pedestrians and their masks, by a Mask R-CNN on EfficientNet-Lite0.

    jaxconv convert efficientnet_lite0.npz --model=efficientnet_lite0 --out=/tmp/lite0
    jaxconv train --config=experiments/pennfudan.py --workdir=/tmp/pennfudan \\
        --config.data.source=coco:/data/pennfudan --config.model.init_from=/tmp/lite0
    jaxconv train --config=experiments/pennfudan.py:small --workdir=/tmp/pennfudan_small

The backbone starts from ImageNet's weights. The last command trains a tiny network on X's and O's.

Data      Wang, Shi, Song and Shen 2007 (ACCV), 170 photographs, of which every fifth is to test,
          here shrunk to 320 pixels along the longer side
Machine   2 cores of an AMD EPYC, jax 0.10.2
Time      39 minutes while other programs ran
Result    boxes: AP50 96.6% [94.4, 99.4], AP 58.4% [54.7, 63.6]; masks: AP50 91.3% [83.6, 98.2], AP
          52.6% [45.5, 60.2], of 84 persons in the 34 test images (seed 0)
"""

from jaxconv.config import check_argument, default_config, group, small


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.task.name = "detection"
    config.data.source = "coco:pennfudan"
    config.data.canvas = (320, 320)
    config.data.max_boxes = 24
    # What the backbone was trained with: minus 127, over 128.
    config.data.mean, config.data.std = (127 / 255,), (128 / 255,)
    config.augment.flip = True
    config.augment.large_scale_jitter = (0.6, 1.4)
    jitter = config.augment.colour_jitter
    jitter.brightness = jitter.contrast = jitter.saturation = 0.3
    config.model.name = "maskrcnn_resnet50_fpn"
    config.model.kwargs = {
        "backbone": "efficientnet_lite0",
        "norm": "batch",
        "anchor_sizes": ((16,), (32,), (64,), (128,), (256,)),
        "anchor_ratios": (1.0, 2.0, 3.0),
        "filters": 96,
        "before_nms": (500, 250),
        "after_nms": (200, 100),
        "samples": 64,
        "aligned": True,
    }
    config.optimizer.groups.backbone = group("^backbone/", learning_rate=0.3)
    config.batch_size = 4
    config.epochs = 40.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.001
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 100
    config.ema.decay = 0.99
    config.eval.every = 340
    config.eval.batch_size = 4
    if argument != "small":
        return config
    config.model.kwargs.backbone = "resnet18"
    thin = {"units": (1, 1, 1, 1), "width": 4}
    few = {"samples": 8, "before_nms": (50, 50), "after_nms": (20, 20)}
    return small(config, backbone_kwargs=thin, filters=8, box_filters=32, mask_filters=8, **few)
