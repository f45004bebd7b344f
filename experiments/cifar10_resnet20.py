"""The residual networks of CIFAR-10 (He, Zhang, Ren and Sun 2015, arXiv:1512.03385, section 4.2): 20, 32, 44, 56 or 110 layers.

    jaxconv train --config=experiments/cifar10_resnet20.py --config.data.source=folder:DIR --workdir=/tmp/resnet20
    jaxconv train --config=experiments/cifar10_resnet20.py:resnet56 --config.data.source=folder:DIR --workdir=/tmp/resnet56
    jaxconv train --config=experiments/cifar10_resnet20.py:small --workdir=/tmp/resnet20_small      a CPU, seconds

DIR holds train/<class>/*.jpg and test/<class>/*.jpg.

The paper   64,000 steps; 4 pixels of padding, random crops, flips, the mean of each pixel taken off; SGD, batches of 128, momentum 0.9,
            weight decay 1e-4; rate 0.1, divided by 10 after 32,000 and 48,000 steps; the network of 110 layers begins at 0.01 until the
            training error is below 80% (about 400 steps)
Here        the same, with the mean and deviation of each channel; the network of 110 layers climbs to 0.1 over its first 400 steps; biases
            and BatchNorm's weights do not decay
Error       8.75% (20 layers), 7.51% (32), 7.17% (44), 6.97% (56), 6.43% (110; 6.61% with a deviation of 0.16 over five runs), Table 6
Result      not run here at full length
"""

from jaxconv import list_models
from jaxconv.config import check_argument, default_config, small


def get_config(argument="resnet20"):
    check_argument(argument, "small", *(name.removesuffix("_cifar") for name in list_models("resnet*_cifar")))
    config = default_config()
    config.data.source = "folder:cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.pad_crop = 4
    config.augment.flip = True
    config.model.name = f"{'resnet20' if argument == 'small' else argument}_cifar"
    config.steps = 64_000
    config.batch_size = 128
    config.optimizer.learning_rate = 0.1
    config.optimizer.l2 = 1e-4
    config.optimizer.schedule.name = "step"
    config.optimizer.schedule.boundaries = (32_000, 48_000)
    if argument == "resnet110":
        config.optimizer.schedule.warmup_steps = 400
    return small(config, units=(1, 1), width=4) if argument == "small" else config
