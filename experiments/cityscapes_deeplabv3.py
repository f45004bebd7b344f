"""DeepLabV3 on Cityscapes' street scenes, 19 classes (Chen et al. 2017, arXiv:1706.05587).

    jaxconv prepare cityscapes/semantic_segmentation --manual_dir=DIR
    jaxconv train --config=experiments/cityscapes_deeplabv3.py --workdir=/tmp/cityscapes
    jaxconv train --config=experiments/cityscapes_deeplabv3.py:small --workdir=/tmp/cityscapes_small

DIR holds leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip. `small` takes seconds on a CPU,
on scenes of X's and O's. The backbone starts from ImageNet's weights with
--config.model.init_from=WEIGHTS, which `jaxconv convert` makes of deeplabv3_resnet101's.

The paper   ResNet-101 at output stride 16; SGD, batches of 16, momentum 0.9, weight decay 1e-4;
            learning rate 0.007 times (1 - step/90,000)^0.9; crops of 769 of images scaled by 0.5 to
            2, flips; BatchNorm trained
Here        the same, but: images are scaled by 0.75 to 2, since a crop must fit; torchvision's
            ResNet, and its second head in training. Evaluation sees the middle 1024x1024 pixels of
            each 1024x2048 image, not all of them
Published   mean IoU 77.23% of the validation images at output stride 16, 79.30% at stride 8 with
            several scales and flips, by the 2,975 fine training images alone
Result      not run here
"""

from jaxconv.config import check_argument, default_config, small


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.task.name = "segmentation"
    config.data.source = "tfds:cityscapes/semantic_segmentation"
    config.data.eval_split = "validation"
    config.data.image_size = 769
    config.data.eval_image_size = 1024
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.scale_jitter = (769, 2048)
    config.augment.flip = True
    config.model.name = "deeplabv3_resnet101"
    config.model.kwargs = {"output_stride": 16, "dilations": (6, 12, 18)}
    config.steps = 90_000
    config.batch_size = 16
    config.eval.batch_size = 16
    config.optimizer.learning_rate = 0.007
    config.optimizer.l2 = 1e-4
    config.optimizer.schedule.name = "optax.polynomial_schedule"
    config.optimizer.schedule.kwargs = {"power": 0.9, "end_value": 0.0}
    if argument != "small":
        return config
    thin = {"units": (1, 1, 1, 1), "width": 4}
    return small(config, image_size=48, backbone_kwargs=thin)
