"""ResNet-50 on ImageNet with the original recipe (He, Zhang, Ren and Sun 2015, arXiv:1512.03385).

    jaxconv train --config=experiments/imagenet_resnet50.py --workdir=/tmp/resnet50
    jaxconv train --config=experiments/imagenet_resnet50.py:resnet101_v1 --workdir=/tmp/resnet101
    jaxconv train --config=experiments/imagenet_resnet50.py:small --workdir=/tmp/resnet50_small

`small` takes seconds on a CPU.

The paper   600,000 steps (120 epochs); a random shorter side from 256 to 480, a crop of 224, flips,
            AlexNet's color shift; SGD, batches of 256, momentum 0.9, weight decay 1e-4, no dropout;
            learning rate 0.1, "divided by 10 when the error plateaus"
Here        the same, but: the learning rate is divided after 30, 60 and 90 epochs; biases and
            BatchNorm's weights do not decay; normalization by mean and deviation of each channel,
            not the mean of each pixel
Error       24.7% top-1, 7.8% top-5 on the validation images, one crop (the authors'
            github.com/KaimingHe/deep-residual-networks); 22.85%, 6.71% for the mean of ten crops
            (Table 3), as by jaxconv evaluate --views=10-crop
Result      not run here
"""

from jaxconv import list_models
from jaxconv.config import check_argument, default_config, small

PASS = 1_281_167 / 256


def get_config(argument="resnet50_v1"):
    check_argument(argument, "small", *list_models("resnet*_v1"))
    config = default_config()
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
