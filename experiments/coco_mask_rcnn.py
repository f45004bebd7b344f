"""Mask R-CNN on COCO 2017, 80 classes (He et al. 2017, arXiv:1703.06870).

    jaxconv train --config=experiments/coco_mask_rcnn.py --workdir=/tmp/coco_mask_rcnn \\
        --config.data.source=coco:/data/coco --config.model.init_from=WEIGHTS
    jaxconv train --config=experiments/coco_mask_rcnn.py:1x --workdir=/tmp/coco_mask_rcnn_1x
    jaxconv train --config=experiments/coco_mask_rcnn.py:small --workdir=/tmp/coco_mask_rcnn_small

/data/coco holds annotations/instances_train2017.json, train2017/ and so on; WEIGHTS is what
`jaxconv convert` makes of torchvision's resnet50 (IMAGENET1K_V1). By default it is torchvision's
schedule; `1x` is detectron2's; `small` takes seconds on a CPU, on scenes of X's and O's.

torchvision 26 epochs of 16 images, SGD, momentum 0.9, weight decay 1e-4, learning rate 0.02, a
            tenth of it after 16 and 22 epochs, 1,000 steps of warm-up; the first layer and stage 2
            of the network fixed, all BatchNorm fixed; the shorter side 800 pixels, the longer at
            most 1333; flips
detectron2  the same in 90,000 steps, a tenth after 60,000 and 80,000; shorter sides 640 to 800
Here        the same, but that an image fits into 1024x1024 pixels, where it is padded
Published   AP of boxes (masks) of val2017: torchvision 37.9 (34.6); detectron2 38.6 (35.2)
            (1x), 41.0 (37.2) (3x)
Result      not run here
"""

from jaxconv.config import check_argument, default_config, group, small

# Of the small one.
TINY = {
    "filters": 8,
    "samples": 8,
    "rpn_samples": 16,
    "before_nms": (50, 50),
    "after_nms": (20, 20),
    "box_filters": 32,
    "mask_filters": 8,
}
# Steps of an epoch: 117,266 training images have objects.
EPOCH = 117_266 // 16


def get_config(argument=""):
    check_argument(argument, "1x", "small")
    config = default_config()
    config.task.name = "detection"
    config.data.source = "coco:coco"
    config.data.train_split, config.data.eval_split = "train2017", "val2017"
    config.data.canvas = (1024, 1024)
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.flip = True
    config.model.name = "maskrcnn_resnet50_fpn"
    config.optimizer.groups.early = group("^backbone/(conv1|conv2_)", frozen=True)
    config.batch_size = 16
    config.optimizer.learning_rate = 0.02
    config.optimizer.l2 = 1e-4
    config.optimizer.schedule.name = "step"
    config.optimizer.schedule.warmup_steps = 1000
    if argument == "1x":
        config.steps = 90_000
        config.optimizer.schedule.boundaries = (60_000, 80_000)
    else:
        config.steps = 26 * EPOCH
        config.optimizer.schedule.boundaries = (16 * EPOCH, 22 * EPOCH)
    config.eval.every = EPOCH
    if argument != "small":
        return config
    thin = {"units": (1, 1, 1, 1), "width": 4}
    return small(config, image_size=64, backbone_kwargs=thin, **TINY)
