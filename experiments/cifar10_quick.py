"""CIFAR-10 in minutes on a CPU: four stages of one 3x3 convolution with BatchNorm, global pooling.

    jaxconv train --config=experiments/cifar10_quick.py --config.data.source=folder:DIR \\
        --workdir=/tmp/cifar10
    jaxconv train --config=experiments/cifar10_quick.py:small --workdir=/tmp/cifar10_small

The second takes seconds. DIR holds train/<class>/*.jpg and test/<class>/*.jpg.

381,786 parameters; 5 epochs of the 50,000 training images with random crops (padding 2) and flips;
SGD with Nesterov momentum, cosine schedule, label smoothing 0.1.

Machine   2 cores of an AMD EPYC, jax 0.10.2
Time      6 min 15 s from start to finish, including reading 60,000 JPEG files and compilation
Result    80.2% of the 10,000 test images (seed 0; CIFAR-10 saved as JPEG files)
"""

from jaxconv.config import check_argument, default_config, small


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.data.source = "folder:cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.pad_crop = 2
    config.augment.flip = True
    config.model.name = "chain"
    config.model.kwargs = {"filters": (16, 64, 128, 256), "batch_norm": True, "global_pool": True}
    config.epochs = 5.0
    config.batch_size = 128
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.2
    config.optimizer.nesterov = True
    config.optimizer.l2 = 5e-4
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 300
    return small(config, filters=(8, 8, 8, 8)) if argument == "small" else config
