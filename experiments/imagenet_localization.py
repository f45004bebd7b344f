"""ImageNet's classes with a box each, by ResNet (He, Zhang, Ren and Sun 2015, arXiv:1512.03385).

    jaxconv train --config=experiments/imagenet_localization.py --workdir=/tmp/located \\
        --config.data.boxes=DIR
    jaxconv train --config=experiments/imagenet_localization.py:resnet50_v1 \\
        --workdir=/tmp/located50 --config.data.boxes=DIR
    jaxconv train --config=experiments/imagenet_localization.py:small --workdir=/tmp/located_small

DIR holds ILSVRC's XML files, of training and validation images, at any depth. `small` takes seconds
on a CPU, on X's and O's with boxes.

The paper   its appendix C: per-class regression on ResNet-101, from boxes that a region proposal
            network of each class suggests, then again on their regions by R-CNN
Here        per-class regression from the whole image, as in Simonyan and Zisserman 2014,
            arXiv:1409.1556, appendix A: logits, and a box for each class, from one pooled vector;
            otherwise the recipe of imagenet_resnet50.py. The 58% of the training images that have
            no box teach the class alone
Published   9.0% top-5 localization error on the test images (appendix C), by an ensemble with
            region proposals; a regression from the whole image alone is behind that
Result      not run here
"""

from jaxconv import list_models
from jaxconv.config import check_argument, default_config, small

PASS = 1_281_167 / 256


def get_config(argument="resnet101_v1"):
    check_argument(argument, "small", *list_models("resnet*_v1"))
    config = default_config()
    config.task.name = "localization"
    config.data.source = "tfds:imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.crop_ratio = 0.875
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.scale_jitter = (256, 480)
    config.augment.flip = True
    config.augment.pca_colour = 0.1
    config.model.name = "resnet50_v1" if argument == "small" else argument
    config.steps = 600_000
    config.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.l2 = 1e-4
    config.optimizer.schedule.name = "step"
    config.optimizer.schedule.boundaries = tuple(round(n * PASS) for n in (30, 60, 90))
    return small(config, image_size=32, units=(1, 1), width=8) if argument == "small" else config
